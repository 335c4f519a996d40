"""A federation in one process: servers, the cohort of all clients, and one round after another.

    round:  who takes part -> download the shared adapters -> local epochs -> evaluate -> upload -> aggregate

Clients are evaluated after their local epochs and before the server averages, as in the paper's protocol: what is
scored is the model that a client would use. A client that sits a round out keeps its model, so its score stays.

A federation may be played several times side by side, a lane each: other seeds, or other trials of the same method.
Lanes share the frozen backbone and every step of the loop, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.data.batches import Batch, ClientData
from feddlp.data.prompts import Prompts
from feddlp.federation.aggregation import Server
from feddlp.federation.participation import draw
from feddlp.memory import peak_mib
from feddlp.methods.base import Method
from feddlp.model.adapters import Theta
from feddlp.model.backbone import Backbone
from feddlp.model.forward import Forward
from feddlp.model.gates import active_by_site, gates
from feddlp.training.cohort import Cohort, Slot, initial

EVALUATION_BATCH = 128


def planned_rounds(method: Method, rounds: int) -> int:
    """How many rounds there are to play; a method that trains nothing is scored once."""
    return rounds if method.adapters() else 1


@dataclass(frozen=True)
class FederatedData:
    """The three parts of every client's samples."""

    ids: tuple[int, ...]
    train: ClientData
    validation: ClientData
    test: ClientData

    def select(self, rows: Sequence[int]) -> FederatedData:
        """The data of some of the clients, in the given order; repeats are welcome."""
        parts = (part.select(rows) for part in (self.train, self.validation, self.test))
        return FederatedData(tuple(self.ids[row] for row in rows), *parts)


class Lane(NamedTuple):
    """One run of the federation."""

    seed: int
    method: Method


def side_by_side(lanes: Sequence[Lane], data: FederatedData) -> tuple[list[Slot], FederatedData]:
    """The same clients once for each lane: their slots, and their data as often."""
    slots = [Slot(client, lane.seed, lane.method) for lane in lanes for client in data.ids]
    return slots, data.select([row for _ in lanes for row in range(len(data.ids))])


@dataclass(frozen=True)
class RoundResult:
    """What one round did in one lane; every tensor [K], with NaN or 0 for clients that sat it out."""

    round: int
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


class Federation:
    """One method, one or several lanes.

    Args:
        lanes: seeds, and trials of the method that differ in `methods.base.STACKABLE` fields only.
        backbone: frozen; shared by all clients and lanes.
        prompts: of the classes.
        data: of all clients.
        training: rounds, local epochs, batch size, who takes part.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        backbone: Backbone,
        prompts: Prompts,
        data: FederatedData,
        training: TrainingConfig,
    ):
        self.lanes, self.data, self.training = tuple(lanes), data, training
        slots, self.everyone = side_by_side(lanes, data)
        self.cohort = Cohort(slots, backbone, prompts)
        self.servers = [self._server(lane, backbone) for lane in lanes]
        shape = (len(lanes), len(data.ids))
        self.correct = {part: torch.full(shape, -1) for part in ("validation", "test")}  # -1: not scored yet
        self.round = 0

    def _server(self, lane: Lane, backbone: Backbone) -> Server:
        """The server's adapters before the first round."""
        shared: dict[str, Theta] = {}
        for name in lane.method.shared:
            theta = initial(lane.method.adapters()[name], backbone, lane.seed, name, "server")
            like = self.cohort.theta[name]
            shared[name] = {
                leaf: value.to(like[leaf]) for leaf, value in theta.items() if lane.method.sends(name, leaf)
            }
        return Server(shared, lane.method.server_momentum)

    @property
    def rounds(self) -> int:
        return planned_rounds(self.lanes[0].method, self.training.rounds)

    def steps(self) -> int:
        """Training steps of a round, at most."""
        longest = int(self.data.train.sizes().max())
        return self.training.local_epochs * -(-longest // self.training.batch_size)

    def play_round(self, on_step: Callable[[], None] = lambda: None) -> list[RoundResult]:
        """The next round, in every lane."""
        started = time.perf_counter()
        ids = self.data.ids
        draws = [draw(lane.seed, self.round, ids, self.training) for lane in self.lanes]
        rows = torch.cat([lane * len(ids) + joins.nonzero()[:, 0] for lane, (joins, _) in enumerate(draws)])
        all_join = len(rows) == len(self.cohort.slots)
        if not all_join:
            self._score_at_start()
        cohort = self.cohort if all_join else self.cohort.rows(rows)
        data = self.everyone.select(rows.tolist())

        self.download(cohort)
        diagnostics = self._received(cohort, data)
        bytes_down = cohort.payload()
        losses = self._train(cohort, data, on_step)
        self._score(cohort, data, rows)
        if self.training.diagnostics:
            diagnostics |= cohort.correct(data.test, EVALUATION_BATCH, cohort.method.inferences)
        if diagnostics:
            diagnostics["predicted"] = self.correct["test"].view(-1)[rows]
        bytes_up = cohort.payload()
        reports = torch.cat([reports[joins] for joins, reports in draws])
        self._aggregate(cohort, data.train.sizes(), reports)
        if not all_join:
            self.cohort.put_back(rows, cohort)
        self.cohort.compact()
        self.round += 1
        seconds = time.perf_counter() - started
        found = Found(rows, reports, losses, diagnostics, data.test.sizes(), bytes_down, bytes_up * reports)
        return [self._result(lane, seconds, found) for lane in range(len(self.lanes))]

    def blocks(self, cohort: Cohort) -> Iterator[tuple[Server, slice]]:
        """Each lane's server and where its clients stand in a cohort; lanes send equally many."""
        width = len(cohort.slots) // len(self.lanes)
        for lane, server in enumerate(self.servers):
            yield server, slice(lane * width, (lane + 1) * width)

    def download(self, cohort: Cohort) -> None:
        """Give a cohort of these lanes what their servers hold, and start its round."""
        for server, block in self.blocks(cohort):
            cohort.download(server.shared, block)
        cohort.start_round(float(self.round))

    def _received(self, cohort: Cohort, data: FederatedData) -> dict[str, Tensor]:
        """How many test samples the shared adapter gets right as it arrives, before any local step."""
        shared = cohort.method.shared
        if not self.training.diagnostics or not shared:
            return {}

        def arrives(f: Forward, batch: Batch) -> dict[str, Tensor]:
            return {"received": f.frozen(batch, shared[0])}

        return cohort.correct(data.test, EVALUATION_BATCH, arrives)

    def _train(self, cohort: Cohort, data: FederatedData, on_step: Callable[[], None]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for epoch in range(self.training.local_epochs if cohort.adapters else 0):
            batches = data.train.shuffled(self.training.batch_size, cohort.owners, self.round, epoch)
            losses = cohort.fit(batches, on_step)
        return losses

    def _score(self, cohort: Cohort, data: FederatedData, rows: Tensor) -> None:
        for part, samples in (("validation", data.validation), ("test", data.test)):
            self.correct[part].view(-1)[rows] = cohort.correct(samples, EVALUATION_BATCH)[""]

    def _score_at_start(self) -> None:
        """Before the first round, clients that may sit it out are scored as they are."""
        if (self.correct["test"] < 0).any():
            self._score(self.cohort, self.everyone, torch.arange(len(self.cohort.slots)))

    def _aggregate(self, cohort: Cohort, samples: Tensor, reports: Tensor) -> None:
        """The server's step of each lane, from the clients that reported; without any, nothing changes."""
        uploads = cohort.upload()
        weights = torch.ones_like(samples) if cohort.method.averaging == "uniform" else samples
        for server, block in self.blocks(cohort):
            chosen = torch.arange(len(weights))[block][reports[block]]
            if len(chosen) and uploads:
                averages = {name: cohort.method.average() for name in uploads}
                for name, up in uploads.items():
                    averages[name].add({leaf: v[chosen.to(v.device)] for leaf, v in up.items()}, weights[chosen])
                server.step({name: average.result() for name, average in averages.items()})

    def _result(self, lane: int, seconds: float, found: Found) -> RoundResult:
        clients = len(self.data.ids)
        mine = found.rows // clients == lane  # among the participants
        places = found.rows[mine] % clients
        block = slice(lane * clients, (lane + 1) * clients)

        def spread(values: Tensor, fill: float) -> Tensor:
            whole = torch.full((clients,), fill, dtype=values.dtype)
            whole[places] = values[mine]
            return whole

        samples = found.test_sizes[mine].sum().item()
        gated = {name: theta for name, theta in self.cohort.theta.items() if gates(theta)}
        return RoundResult(
            round=self.round,
            seconds=seconds,
            participated=spread(torch.ones_like(mine), False),
            reported=spread(found.reports, False),
            losses={name: spread(loss, float("nan")) for name, loss in found.losses.items()},
            validation_correct=self.correct["validation"][lane].clone(),
            test_correct=self.correct["test"][lane].clone(),
            diagnostics={
                k: 100 * v[mine].sum().item() / samples for k, v in found.diagnostics.items() if k and samples
            },
            active={
                f"{name}/{site}": active[block].cpu()
                for name, theta in gated.items()
                for site, active in active_by_site(theta).items()
            },
            ranks={
                f"{name}/{site}": self.cohort.adapters[name].shapes(site, self.cohort.backbone.sites[site])["gate"][0]
                for name, theta in gated.items()
                for site in active_by_site(theta)
            },
            bytes_down=spread(found.bytes_down, 0),
            bytes_up=spread(found.bytes_up, 0),
            lanes=len(self.lanes),
            peak_mib=peak_mib(),
        )

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane: its server, its clients, and their scores."""
        clients = len(self.data.ids)
        block = slice(lane * clients, (lane + 1) * clients)
        state = {f"server/{name}": value for name, value in self.servers[lane].state_dict().items()}
        state |= {f"cohort/{name}": value[block] for name, value in self.cohort.state_dict().items()}
        return state | {f"correct/{part}": counts[lane] for part, counts in self.correct.items()}

    def load_state_dict(self, round: int, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on after `round` from what `state_dict` gave then, for each lane."""
        self.round = round
        for lane, state in enumerate(states):
            self.servers[lane].load_state_dict(part(state, "server/"))
            for name, counts in part(state, "correct/").items():
                self.correct[name][lane] = counts
        cohorts = [part(state, "cohort/") for state in states]
        self.cohort.load_state_dict({name: torch.cat([one[name] for one in cohorts]) for name in cohorts[0]})


@dataclass(frozen=True)
class Found:
    """What a round gave for its participants in all lanes, [P] each; rows say where they stand among all slots."""

    rows: Tensor
    reports: Tensor
    losses: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor]
    test_sizes: Tensor
    bytes_down: Tensor
    bytes_up: Tensor


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
