"""Clients that join when the federation is over: first as they come, then fine-tuned on their own samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.evaluation import accuracy
from feddlp.federation.rounds import EVALUATION_BATCH, FederatedData, Federation, side_by_side
from feddlp.model.adapters import View
from feddlp.model.forward import Forward
from feddlp.training.cohort import Cohort


def join(federation: Federation, data: FederatedData, epochs: int) -> list[dict[str, Any]]:
    """Welcome new clients in every lane of a finished federation.

    Returns:
        For each lane the test accuracies, in %: of the frozen model ("zero_shot"), of the shared adapter as it arrives
        ("received", None where nothing is shared), and of the method's own prediction after each of `epochs` epochs of
        local training ("tuned").
    """
    lanes, width = federation.lanes, len(data.ids)
    slots, everyone = side_by_side(lanes, data)
    cohort = Cohort(slots, federation.cohort.backbone, federation.cohort.prompts)
    federation.download(cohort)
    shared = cohort.method.shared

    views: dict[str, View] = {"zero_shot": {}}
    if shared:
        views["received"] = shared[0]

    def arriving(f: Forward, batch: Batch) -> dict[str, Tensor]:
        return {name: f.frozen(batch, view) for name, view in views.items()}

    scores = [cohort.correct(everyone.test, EVALUATION_BATCH, arriving)]
    for epoch in range(epochs if cohort.adapters else 0):
        cohort.fit(everyone.train.shuffled(federation.training.batch_size, cohort.owners, federation.round, epoch))
        scores.append(cohort.correct(everyone.test, EVALUATION_BATCH))

    def summary(lane: int, stage: int, name: str) -> dict[str, float] | None:
        if name not in scores[stage]:
            return None
        found = accuracy(scores[stage][name].view(len(lanes), width)[lane], data.test.sizes())
        return found.as_dict() if found else None

    return [
        {
            "clients": width,
            "zero_shot": summary(lane, 0, "zero_shot"),
            "received": summary(lane, 0, "received"),
            "tuned": [summary(lane, stage, "") for stage in range(1, len(scores))],
        }
        for lane in range(len(lanes))
    ]
