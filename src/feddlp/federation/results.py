"""What a round gave: of each wave while it is played, and of each lane when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from feddlp.federation.waves import Wave
from feddlp.memory import peak_mib


@dataclass(frozen=True)
class RoundResult:
    """What one round did in one lane; every tensor [K], with NaN or 0 for clients that sat it out."""

    round: int  # 0: before the first, everybody as they begin
    seconds: float  # of the round, all lanes together
    participated: Tensor  # bool
    reported: Tensor  # bool
    losses: Mapping[str, Tensor]  # by adapter, mean over the last local epoch
    validation_correct: Tensor
    test_correct: Tensor
    diagnostics: Mapping[str, float]  # pooled test accuracy in % of other ways to predict, participants only
    active: Mapping[str, Tensor]  # gates that are not zero, by "adapter/site"; empty without gates
    ranks: Mapping[str, int]  # ranks at the start, by "adapter/site"
    bytes_down: Tensor
    bytes_up: Tensor
    lanes: int  # how many trained side by side
    peak_mib: float  # since the method began, all lanes together


@dataclass(frozen=True)
class Found:
    """What a wave, or all waves of a round, gave for its clients. [W] each"""

    lanes: Tensor
    rows: Tensor
    losses: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor]  # test samples predicted rightly in other ways
    correct: Mapping[str, Tensor]  # samples predicted rightly, by part of the data
    active: Mapping[str, Tensor]  # gates that are not zero, by "adapter/site"
    bytes_down: Tensor
    bytes_up: Tensor  # if the report arrives


_NONE = torch.empty(0, dtype=torch.int64)
NOBODY = Found(_NONE, _NONE, {}, {}, {}, {}, _NONE, _NONE)


def join(parts: Sequence[Found]) -> Found:
    """Several waves as one. One whose clients had nothing to train on, or to test, counts as 0."""
    sizes = [len(part.rows) for part in parts]
    return Found(**{field.name: cat([getattr(part, field.name) for part in parts], sizes) for field in fields(Found)})


def cat(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    like = {name: value[name] for value in values for name in value}
    return {
        name: torch.cat([v[name] if name in v else some.new_zeros(n) for v, n in zip(values, sizes, strict=True)])
        for name, some in like.items()
    }


@dataclass(frozen=True)
class Known:
    """What is known of every client of every lane, whenever it last took part. [lanes, K] each"""

    correct: dict[str, Tensor]  # "validation", "test": samples predicted rightly; -1 = not scored yet
    active: dict[str, Tensor]  # gates that are not zero, by "adapter/site"
    ranks: Mapping[str, int]  # at the start, by "adapter/site"

    @classmethod
    def at_start(cls, lanes: int, clients: int, ranks: Mapping[str, int]) -> Known:
        correct = {part: torch.full((lanes, clients), -1) for part in ("validation", "test")}
        active = {key: torch.full((lanes, clients), count, dtype=torch.int32) for key, count in ranks.items()}
        return cls(correct, active, ranks)

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        tables = {"correct": self.correct, "active": self.active}
        return {f"{kind}/{key}": table[lane] for kind, part in tables.items() for key, table in part.items()}

    def load_state_dict(self, lane: int, state: Mapping[str, Tensor]) -> None:
        for name, values in self.state_dict(lane).items():
            values.copy_(state[name])

    def score(self, wave: Wave, correct: Mapping[str, Tensor]) -> None:
        """Some clients' samples predicted rightly."""
        for part, hits in correct.items():
            self.correct[part][wave] = hits

    def update(self, found: Found) -> None:
        """What a wave of clients became."""
        wave = Wave(found.lanes, found.rows)
        self.score(wave, found.correct)
        for key, counts in found.active.items():
            self.active[key][wave] = counts

    def result(self, lane: int, found: Found, reports: Tensor, test_sizes: Tensor, **about: Any) -> RoundResult:
        """One lane's part of a round. reports, test_sizes: of all clients, [K]"""
        mine = found.lanes == lane
        rows, clients = found.rows[mine], self.correct["test"].shape[1]

        def spread(values: Tensor, fill: float) -> Tensor:
            whole = torch.full((clients,), fill, dtype=values.dtype)
            whole[rows] = values[mine]
            return whole

        samples = test_sizes[rows].sum().item()
        shares = {key: 100 * hits[mine].sum().item() / samples for key, hits in found.diagnostics.items() if samples}
        return RoundResult(
            participated=spread(torch.ones_like(mine), False),
            reported=reports & spread(torch.ones_like(mine), False),
            losses={name: spread(loss, float("nan")) for name, loss in found.losses.items()},
            validation_correct=self.correct["validation"][lane].clone(),
            test_correct=self.correct["test"][lane].clone(),
            diagnostics={key: share for key, share in shares.items() if key},
            active={key: active[lane].clone() for key, active in self.active.items()},
            ranks=self.ranks,
            bytes_down=spread(found.bytes_down, 0),
            bytes_up=spread(found.bytes_up, 0) * reports,
            peak_mib=peak_mib(),
            **about,
        )
