"""Zero-shot: the frozen model over the class prompts, the reference line of every table (the paper's §IV-A)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Forward, Method
from feddlp.model.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Method):
    """The frozen model, nothing trained: the reference line."""

    def adapters(self) -> dict[str, Adapter]:
        return {}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield from ()

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, {})
