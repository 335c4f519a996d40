"""FedCLIP (Lu et al. 2023): an attention over the output features of a frozen tower, shared and averaged.

    f' = f * softmax(W2 tanh(W1 f + b1) + b2)
    each round, each client, each batch:  theta <- theta - grad CE
    server:                               theta <- sum_k n_k / n theta^k

The original (variant `fedclip_original`) trains CLIP's in-batch loss with Adam and an L2 term, averages uniformly, and
forgets the moments each round; the fields here are as FedDLP's authors ran it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Forward, Method
from feddlp.model.adapters import Adapter, AttentionInit, FeatureAttention


@dataclass(frozen=True, kw_only=True)
class FedCLIP(Method):
    """An attention over the tower's output features, shared and averaged."""

    shared: ClassVar[tuple[str, ...]] = ("attention",)

    attention_init: AttentionInit = "identity"

    def adapters(self) -> dict[str, Adapter]:
        return {"attention": FeatureAttention(self.attention_init)}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "attention", self.ce(f(batch, "attention"), batch)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, "attention")
