"""The slow twin beside the fast path: the same starts for both, and the same names for what they learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feddlp.federation.rounds import Federation
from feddlp.methods import registry
from feddlp.training.cohort import initial
from reference.client import Client
from reference.federation import SHARED, Server

TOLERANCE = {"rtol": 0, "atol": 1e-9}


def twins(fast: Federation, clip: nn.Module, tower: str) -> tuple[list[Client], Server]:
    """The twin's clients and server, with the starts that the addresses give."""
    method = fast.lanes[0].method
    kind = next(name for name, known in registry().items() if type(method) is known)

    def start(key, owner):
        values = initial(method.adapters()[key], fast.clients.sites, 0, key, owner)
        return {leaf: value.double() for leaf, value in values.items()}

    starts = [
        {key: start(key, "server" if key in SHARED[kind] else number) for key in method.adapters()}
        for number in range(3)
    ]
    clients = [Client(clip, tower, kind, method, theta) for theta in starts]
    held = {key: {leaf: v.detach().clone() for leaf, v in clients[0].leaves(key).items()} for key in SHARED[kind]}
    travelling = {
        key: {leaf: value for leaf, value in theta.items() if clients[0].travels(leaf)} for key, theta in held.items()
    }
    return clients, Server(travelling, method)


def as_fast(clip: nn.Module, theta: dict[str, Tensor]) -> dict[str, Tensor]:
    """The twin's leaves in the fast path's terms: of full fine-tuning the difference to the checkpoint."""
    weights = dict(clip.named_parameters())
    return {
        f"{leaf}.difference" if leaf in weights else leaf: value.detach() - weights.get(leaf, 0)
        for leaf, value in theta.items()
    }


def assert_same(fast: dict[str, Tensor], slow: dict[str, Tensor]) -> None:
    assert fast.keys() == slow.keys()
    for leaf, value in fast.items():
        torch.testing.assert_close(value, slow[leaf], **TOLERANCE, msg=lambda text, leaf=leaf: f"{leaf}: {text}")
