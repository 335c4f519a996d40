"""What a method costs: trainable parameters, and bytes on the wire from the real tensors."""

from __future__ import annotations

from collections.abc import Mapping

from feddlp.methods.base import Method
from feddlp.model.adapters import Site, Theta, count_parameters

MIB = 2**20


def trainable_parameters(method: Method, sites: Mapping[str, Site]) -> dict[str, int]:
    """Parameters of one client's adapters, by name."""
    return {name: count_parameters(adapter, sites) for name, adapter in method.adapters().items()}


def payload_bytes(shared: Mapping[str, Theta]) -> int:
    """Bytes of the tensors as they are: without the K axis what one client gets, with it what all of them send."""
    return sum(leaf.numel() * leaf.element_size() for theta in shared.values() for leaf in theta.values())
