"""FedDLP in which the pruned local adapters are averaged too, as the caption of Fig. 3 says and nothing else does.

A client sends its local adapter without the pruned ranks; the server fills them with zeros and averages (as HetLoRA,
Cho et al. 2024); a client takes back the ranks that it has itself, and keeps its own A and B of the others, should
their gates come back. Bytes are counted for the ranks that are left, plus one bit a rank to say which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from feddlp.methods.feddlp import FedDLP
from feddlp.model.adapters import Theta
from feddlp.model.gates import along, gated_leaves, gates, pruned_bytes, without_pruned


@dataclass(frozen=True, kw_only=True)
class FedDLPShared(FedDLP):
    """FedDLP whose pruned local adapters are averaged as well, zero-padded (the caption of Fig. 3)."""

    shared: ClassVar[tuple[str, ...]] = ("global", "local")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compact or (self.factors_trained, self.factors_sent, self.average_of) != ("AB", "AB", "factors"):
            raise ValueError("a shared local adapter is averaged rank by rank; leave compact, factors_* and average_of")

    def send(self, name: str, theta: Theta) -> Theta:
        return super().send(name, without_pruned(theta))

    def payload(self, name: str, sent: Theta) -> Tensor:
        return pruned_bytes(sent) if gates(sent) else super().payload(name, sent)

    def take(self, name: str, theta: Theta, received: Theta) -> Theta:
        whole = super().take(name, theta, received)
        for leaf, kind, gate in gated_leaves(theta):
            whole[leaf] = torch.where(along(theta[gate] != 0, kind), whole[leaf], theta[leaf])
        return whole
