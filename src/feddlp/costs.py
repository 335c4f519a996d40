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
        leaves = [(leaf, shape) for site, at in sites.items() for leaf, shape in named(site, adapter.shapes(site, at))]
        counts[name] = sum(math.prod(shape) for leaf, shape in leaves if method.learns(name, leaf))
    return {name: count for name, count in counts.items() if name not in method.frozen}


def named(site: str, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    """Leaves under their full names."""
    return [(f"{site}.{leaf}", shape) for leaf, shape in shapes.items()]
