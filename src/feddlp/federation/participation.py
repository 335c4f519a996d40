"""Who takes part in a round, and whose report arrives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.randomness import generator


def draw(seed: int, round: int, ids: Sequence[int], training: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Which clients join round `round` (counted from 0), and which of them report. bool [K] each

    As many as `participation` asks for, rounded, at least one, drawn without replacement; each report is lost with
    probability 1 - `report_rate`, independently. Both depend on (seed, round) and, for reports, the client alone.
    """
    joins, reports = torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.bool)
    order = torch.randperm(len(ids), generator=generator(seed, "participants", round))
    joins[order[: count_joining(len(ids), training)]] = True
    for row in joins.nonzero()[:, 0].tolist():
        chance = torch.rand((), generator=generator(seed, "report", round, ids[row])).item()
        reports[row] = chance < training.report_rate
    return joins, reports


def count_joining(clients: int, training: TrainingConfig) -> int:
    """How many of the clients join a round."""
    return max(1, round_half_up(training.participation * clients))


def round_half_up(value: float) -> int:
    return int(value + 0.5)
