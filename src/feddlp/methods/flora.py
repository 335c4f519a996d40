"""FLoRA: federated averaging of one LoRA on every linear layer of a tower (Nguyen et al. 2024; the paper's §VI).

    each round, each client, each batch:  theta <- theta - grad CE
    server:                               theta <- sum_k n_k / n theta^k

A client predicts with its own theta after the local epoch, before the server averages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Forward, Method, Positive, Rank
from feddlp.model.adapters import Adapter, LoRA, LoRAInit


@dataclass(frozen=True, kw_only=True)
class FLoRA(Method):
    """One LoRA on every linear layer, shared and averaged."""

    shared: ClassVar[tuple[str, ...]] = ("adapter",)

    rank: Rank = 2
    lora_alpha: Positive = 16.0
    lora_init: LoRAInit = "kaiming"

    def adapters(self) -> dict[str, Adapter]:
        return {"adapter": LoRA(self.rank, self.lora_alpha, self.lora_init)}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "adapter", self.ce(f(batch, "adapter"), batch)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, "adapter")
