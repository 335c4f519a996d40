"""Clients that join when the federation is over: first as they come, then fine-tuned on their own samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.evaluation import accuracy
from feddlp.federation.host import FederatedData, Host, Order
from feddlp.federation.waves import EVALUATION_BATCH, Wave, split
from feddlp.model.adapters import View
from feddlp.model.forward import Forward
from feddlp.training.cohort import Cohort, Slot


def join(host: Host, order: Order, data: FederatedData, epochs: int) -> list[dict[str, Any]]:
    """Welcome new clients in every lane of a finished federation.

    Args:
        order: what its servers hold in the end.

    Returns:
        For each lane the test accuracies, in %: of the frozen model ("zero_shot"), of the shared adapter as it arrives
        ("received", None where nothing is shared), and of the method's own prediction after each of `epochs` epochs of
        local training ("tuned").
    """
    lanes, width = len(host.lanes), len(data.ids)
    stages: list[dict[str, Tensor]] = []
    for wave in in_waves(host, data):
        for stage, scores in enumerate(welcome(host, order, wave, data, epochs)):
            if stage == len(stages):
                stages.append({name: torch.zeros(lanes, width, dtype=torch.int64) for name in scores})
            for name, correct in scores.items():
                stages[stage][name][wave] = correct

    def summary(lane: int, stage: int, name: str) -> dict[str, float] | None:
        found = accuracy(stages[stage][name][lane], data.test.sizes()) if name in stages[stage] else None
        return found.as_dict() if found else None

    return [
        {
            "clients": width,
            "zero_shot": summary(lane, 0, "zero_shot"),
            "received": summary(lane, 0, "received"),
            "tuned": [summary(lane, stage, "") for stage in range(1, len(stages))],
        }
        for lane in range(lanes)
    ]


def in_waves(host: Host, data: FederatedData) -> Iterator[Wave]:
    """All newcomers of all lanes."""
    lanes, rows = torch.ones(len(host.lanes), len(data.ids)).nonzero().unbind(1)
    return split(lanes, rows, data.train.sizes(), host.wave or host.plan.wave)


def welcome(host: Host, order: Order, wave: Wave, data: FederatedData, epochs: int) -> Iterator[dict[str, Tensor]]:
    """Test samples that a wave of newcomers gets right: as they arrive, and after each epoch. [W] each"""
    lanes = [host.lanes[lane] for lane in wave.lanes.tolist()]
    slots = [Slot(data.ids[row], *lane) for row, lane in zip(wave.rows.tolist(), lanes, strict=True)]
    cohort, mine = Cohort(slots, host.backbone, host.prompts), data.select(wave.rows.tolist())
    host.download(cohort, wave, order)
    views: dict[str, View] = {"zero_shot": {}}
    if cohort.method.shared:
        views["received"] = cohort.method.shared[0]

    def arriving(f: Forward, batch: Batch) -> dict[str, Tensor]:
        return {name: f.frozen(batch, view) for name, view in views.items()}

    yield cohort.correct(mine.test, EVALUATION_BATCH, arriving)
    for epoch in range(epochs if cohort.adapters else 0):
        cohort.fit(mine.train.shuffled(host.training.batch_size, cohort.owners, order.round, epoch))
        yield cohort.correct(mine.test, EVALUATION_BATCH)
