"""FLoRA: federated averaging of one LoRA (Nguyen et al. 2024, arXiv 2404.15182; the baseline of the paper's §VI).

    each round, each client, each batch:  theta <- theta - grad CE
    server:                               theta <- sum_k n_k / n theta^k

A client predicts with its own theta after the local epoch, before the server averages. The paper adapts every linear
layer of a tower; FLoRA as released adapts the output projections of attention in the text tower (`flora_released`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Count, Forward, LoRAMethod
from feddlp.model.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class FLoRA(LoRAMethod):
    """One LoRA, shared and averaged."""

    shared: ClassVar[tuple[str, ...]] = ("adapter",)

    rank: Count = 2

    def adapters(self) -> dict[str, Adapter]:
        return {"adapter": self.lora(self.rank)}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "adapter", self.ce(f(batch, "adapter"), batch)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, "adapter")
