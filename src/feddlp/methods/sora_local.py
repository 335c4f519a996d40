"""SoRA-local: each client trains a gated LoRA on its own samples (Fig. 2 of the paper, beside Local)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Count, Forward, GatedMethod
from feddlp.model.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class SoRALocal(GatedMethod):
    """One gated LoRA per client, never sent."""

    rank: Count = 2

    def adapters(self) -> dict[str, Adapter]:
        return {"adapter": self.gated(self.rank)}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "adapter", self.ce(f(batch, "adapter"), batch)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, "adapter")
