"""FedPer (Arivazhagan et al. 2019) with LoRA: the lower layers are shared, the upper ones stay with the client.

    each round, each client, each batch:  theta <- theta - grad CE
    server:                               theta_lower <- sum_k n_k / n theta_lower^k

A method of your own is one file like this. Put it in a folder, name the folder in FEDDLP_METHODS, and it is there:

    FEDDLP_METHODS=examples/methods feddlp run methods=fedper,flora training.rounds=3

The run records the file, so that `feddlp resume`, `export` and the like find it without the variable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from feddlp.methods.base import Count
from feddlp.methods.flora import FLoRA


@dataclass(frozen=True, kw_only=True)
class FedPer(FLoRA):
    """FLoRA whose upper layers, and the projection, stay private."""

    shared_layers: Count = 2

    def sends(self, name: str, leaf: str) -> bool:
        layer = re.search(r"\.layers\.(\d+)\.", leaf)
        return super().sends(name, leaf) and layer is not None and int(layer[1]) < self.shared_layers
