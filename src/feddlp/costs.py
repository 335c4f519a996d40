"""What a method costs in parameters; bytes are counted where tensors travel (`Method.payload`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from feddlp.methods.base import Method
from feddlp.model.adapters import Site


def trainable_parameters(method: Method, sites: Mapping[str, Site]) -> dict[str, int]:
    """Parameters that one client trains, by adapter."""
    counts = {}
    for name, adapter in method.adapters().items():
        shapes = {site: adapter.shapes(site, at) for site, at in sites.items()}
        leaves = [(f"{site}.{leaf}", shape) for site, own in shapes.items() for leaf, shape in own.items()]
        counts[name] = sum(math.prod(shape) for leaf, shape in leaves if method.learns(name, leaf))
    return {name: count for name, count in counts.items() if name not in method.frozen}
