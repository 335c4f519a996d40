"""Gated LoRA and what becomes of its ranks: thresholds, active ranks, physical removal, honest bytes.

SoRA (Ding et al. 2023; paper §IV-B, §V-G): dW = scaling B diag(g) A, and after each step the gates pass through a
proximal operator with threshold xi. A rank whose gate is 0 contributes nothing: it is pruned.

    soft        T_xi(g) = sign(g) max(|g| - xi, 0), the published operator
    sora_code   shrink where |g| > xi, then zero where |g| < xi, as SoRA's and FedDLP's public code: all below 2 xi -> 0
    hard        zero where |g| <= xi, no shrinking

SoRA needs no singular value decomposition; the paper's remark that it does describes AdaLoRA. A gate that is 0 may
come back as long as its rank is there; `compact` takes the rank away, for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feddlp.model.adapters import LoRA, Site, Theta

GateInit = Literal["normal", "ones"]
Prox = Literal["soft", "sora_code", "hard"]
GateSchedule = Literal["constant", "rise", "fall"]
RANK_AXIS = {"A": 1, "B": 2, "gate": 1}  # in a leaf with its client axis


@dataclass(frozen=True)
class GatedLoRA(LoRA):
    """SoRA: LoRA with a gate for each rank. Leaves A (r, d_in), B (d_out, r) and gate (r).

    The gates are not part of the clipped gradient norm, as in SoRA's and FedDLP's public code.

    Args:
        gate_threshold: xi, taken off per step; absolute, a learning rate is multiplied in by the method. A number, or
            one for each client, [K].
        gate_schedule: "constant"; "rise" goes linearly from 0 to xi over `gate_schedule_rounds`, "fall" from xi to 0.
    """

    gate_threshold: float | Tensor = 5e-5
    gate_init: GateInit = "normal"
    prox: Prox = "soft"
    gate_schedule: GateSchedule = "constant"
    gate_schedule_rounds: int = 100
    compact: bool = False  # take pruned ranks away after each round
    unclipped: ClassVar[frozenset[str]] = frozenset({"gate"})

    def shapes(self, name: str, site: Site) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes(name, site)
        return {**shapes, "gate": (self.rank,)} if shapes else {}

    def init_site(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Theta:
        theta = super().init_site(shapes, generator)
        gate = torch.empty(self.rank).normal_(generator=generator)
        return {**theta, "gate": gate if self.gate_init == "normal" else torch.ones_like(gate)}

    def factors(self, theta: Theta, site: str) -> tuple[Tensor, Tensor]:
        down, up = super().factors(theta, site)
        return down * theta[f"{site}.gate"][..., None], up

    def project(self, theta: Theta, progress: float) -> Theta:
        threshold = torch.as_tensor(self.gate_threshold, dtype=torch.float64).view(-1, 1)  # (K or 1, 1)
        threshold = threshold * self.schedule(progress)
        return {name: PROXIMAL[self.prox](gate, threshold.to(gate)) for name, gate in gates(theta).items()}

    def schedule(self, progress: float) -> float:
        """The share of xi that acts after `progress` rounds."""
        if self.gate_schedule == "constant":
            return 1.0
        grown = min(1.0, progress / self.gate_schedule_rounds)
        return grown if self.gate_schedule == "rise" else 1 - grown


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """T_xi(g) = sign(g) max(|g| - xi, 0), elementwise (paper §V-G)."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def sora_code_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """The operator of the public code: soft where |g| > xi, and then 0 where |g| < xi."""
    shrunk = torch.where(values.abs() > threshold, values - values.sign() * threshold, values)
    return torch.where(shrunk.abs() < threshold, 0, shrunk)


def hard_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """0 where |g| <= xi, unchanged elsewhere."""
    return torch.where(values.abs() <= threshold, 0, values)


PROXIMAL = {"soft": soft_threshold, "sora_code": sora_code_threshold, "hard": hard_threshold}


def gates(theta: Theta) -> Theta:
    """The gate leaves, [K, r] each; empty where the adapter has none."""
    return {name: leaf for name, leaf in theta.items() if name.endswith(".gate")}


def active_by_site(theta: Theta) -> dict[str, Tensor]:
    """Gates of each client that are not zero, by site. [K] each"""
    return {name.removesuffix(".gate"): gate.detach().count_nonzero(dim=-1) for name, gate in gates(theta).items()}


def gated_leaves(theta: Theta) -> list[tuple[str, str, str]]:
    """(leaf name, its kind A, B or gate, the name of its gate) for every leaf at a gated site."""
    found = []
    for gate in gates(theta):
        site = gate.removesuffix(".gate")
        found += [(f"{site}.{kind}", kind, gate) for kind in RANK_AXIS]
    return found


def without_pruned(theta: Theta) -> Theta:
    """The same adapter with A and B of pruned ranks set to zero (HetLoRA's zero padding); the rest as it is."""
    alive = {name: gate != 0 for name, gate in gates(theta).items()}  # (K, r)
    padded = {
        name: leaf * along(alive[gate], kind) for name, kind, gate in gated_leaves(theta) for leaf in [theta[name]]
    }
    return theta | padded


def along(ranks: Tensor, kind: str) -> Tensor:
    """[K, r] shaped to multiply a leaf with its client axis: A [K, r, d_in], B [K, d_out, r], gate [K, r]."""
    return {"A": ranks[:, :, None], "B": ranks[:, None, :], "gate": ranks}[kind]


def pruned_bytes(theta: Theta) -> Tensor:
    """Bytes of what is left: the active ranks of A, B and gate, and one bit a rank to say which. [K]"""
    total = torch.zeros(len(next(iter(theta.values()))), dtype=torch.int64)
    for name, active in active_by_site(theta).items():
        down, up, gate = (theta[f"{name}.{leaf}"] for leaf in ("A", "B", "gate"))
        size = down.element_size() * (down.shape[2] + up.shape[1] + 1)
        total += active.cpu() * size + math.ceil(gate.shape[1] / 8)
    return total


def survivors(theta: Theta) -> dict[str, tuple[Tensor, Tensor]]:
    """For each gate: which ranks to keep, and which of them live. ([K, r'], [K, r'])

    r' is the largest number of active ranks of any client at that site; a client with fewer keeps dead ones as filling.
    """
    kept = {}
    for name, gate in gates(theta).items():
        alive = gate != 0
        width = int(alive.sum(1).max())
        order = alive.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]  # (K, r')
        kept[name] = (order, alive.gather(1, order))
    return kept


def keep(theta: Theta, kept: Mapping[str, tuple[Tensor, Tensor]]) -> Theta:
    """Only the surviving ranks of an adapter, or of some of its leaves (the optimiser's moments of those that learn).

    Filling ranks become zero in every leaf, gates included, so they have neither effect nor gradient: dead for good,
    exactly as if the client had been alone and they had been cut off.
    """
    smaller = dict(theta)
    for name, kind, gate in gated_leaves(theta):
        if name not in theta:
            continue
        order, alive = kept[gate]
        axis = RANK_AXIS[kind]
        shape = list(theta[name].shape)
        shape[axis] = order.shape[1]
        picked = theta[name].gather(axis, along(order, kind).expand(shape))
        smaller[name] = picked * along(alive, kind)
    return smaller
