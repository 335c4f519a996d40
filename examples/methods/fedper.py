"""FedPer (Arivazhagan et al. 2019) with LoRA: the lower layers are shared, the upper ones stay with the client.

    each round, each client, each batch:  theta <- theta - grad CE
    server:                               theta_lower <- sum_k n_k / n theta_lower^k

A method of your own is one file like this. Put it in a folder, name the folder in FEDDLP_METHODS, and it is there:

    FEDDLP_METHODS=examples/methods feddlp run methods=fedper,flora training.rounds=3
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Count, Forward, LoRAMethod
from feddlp.model.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class FedPer(LoRAMethod):
    """One LoRA whose lower layers are shared and whose upper layers are private."""

    shared: ClassVar[tuple[str, ...]] = ("adapter",)

    rank: Count = 2
    shared_layers: Count = 2

    def adapters(self) -> dict[str, Adapter]:
        return {"adapter": self.lora(self.rank)}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "adapter", self.ce(f(batch, "adapter"), batch)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, "adapter")

    def sends(self, name: str, leaf: str) -> bool:
        layer = re.search(r"\.layers\.(\d+)\.", leaf)
        return super().sends(name, leaf) and layer is not None and int(layer[1]) < self.shared_layers
