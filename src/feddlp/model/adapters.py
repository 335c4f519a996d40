"""Adapters: what is trained beside a frozen linear layer, for K clients at once.

    x [K, N, d_in] ----> W0 (frozen, shared) --------------------------> + ----> y [K, N, d_out]
                   \\--> A_k [r, d_in] --> (* g_k [r]) --> B_k [d_out, r] --> * scaling --/

Every leaf carries the client axis: client k has its own A_k, B_k, g_k, and the adapter of all clients is two batched
matrix products. The frozen product stays one large GEMM over the rows of all clients.

LoRA       Hu et al. 2022: dW = scaling B A, B = 0 at the start.
GatedLoRA  SoRA, Ding et al. 2023 (paper §IV-B, §V-G): dW = scaling B diag(g) A, and after each step the gates pass
           through the soft threshold T_xi(g) = sign(g) max(|g| - xi, 0). A rank whose gate is 0 is pruned.
           SoRA needs no singular value decomposition; the paper's remark that it does describes AdaLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Theta = dict[str, Tensor]
"""One adapter: "site.leaf" -> [K, *leaf shape], or without the K axis for one client or the server."""

LoRAInit = Literal["kaiming", "authors"]
GateInit = Literal["normal", "ones"]
Draw = Callable[[str], torch.Generator]
"""A site's name -> the generator of its initial values."""


class Site(NamedTuple):
    """The shape of a linear layer that can be adapted."""

    in_features: int
    out_features: int


class Adapter(Protocol):
    """What a cohort needs to know of a kind of adapter."""

    unclipped: ClassVar[frozenset[str]]  # leaves that stay out of the gradient norm and its clipping

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """The leaves at one site, without the client axis."""
        ...

    def init(self, sites: Mapping[str, Site], draw: Draw) -> Theta:
        """Initial values for one client, no K axis."""
        ...

    def delta(self, theta: Theta, site: str, x: Tensor, y: Tensor) -> Tensor:
        """What is added to the frozen layer's output y = W0 x.

        Args:
            x: [K, N, d_in]; y: [K, N, d_out]; the leaves of `theta`: [K, ...].
        """
        ...

    def project(self, theta: Theta) -> Theta:
        """The leaves that change after an optimiser step, with their new values."""
        ...


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation. Leaves A (r, d_in) and B (d_out, r).

    `init="kaiming"` draws A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)) (the LoRA authors' code); `"authors"` draws
    A ~ N(0, 1)/sqrt(r), the start of FedDLP's public code, whose learning rates belong to it.
    """

    rank: int
    lora_alpha: float = 16.0
    lora_init: LoRAInit = "kaiming"
    unclipped: ClassVar[frozenset[str]] = frozenset()

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.rank

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        return {"A": (self.rank, site.in_features), "B": (site.out_features, self.rank)}

    def init(self, sites: Mapping[str, Site], draw: Draw) -> Theta:
        theta = {}
        for name, site in sites.items():
            theta.update({f"{name}.{leaf}": value for leaf, value in self.init_site(site, draw(name)).items()})
        return theta

    def init_site(self, site: Site, generator: torch.Generator) -> Theta:
        down = torch.empty(self.rank, site.in_features)
        if self.lora_init == "kaiming":
            bound = 1 / math.sqrt(site.in_features)
            down.uniform_(-bound, bound, generator=generator)
        else:
            down.normal_(generator=generator).div_(math.sqrt(self.rank))
        return {"A": down, "B": torch.zeros(site.out_features, self.rank)}

    def delta(self, theta: Theta, site: str, x: Tensor, y: Tensor) -> Tensor:
        return self.scaling * self.bottleneck(theta, site, x) @ theta[f"{site}.B"].to(x.dtype).mT

    def bottleneck(self, theta: Theta, site: str, x: Tensor) -> Tensor:
        return x @ theta[f"{site}.A"].to(x.dtype).mT  # (K, N, r)

    def project(self, theta: Theta) -> Theta:
        return {}


@dataclass(frozen=True)
class GatedLoRA(LoRA):
    """SoRA: LoRA with a gate for each rank. Leaves A (r, d_in), B (d_out, r) and gate (r).

    The gates are not part of the clipped gradient norm, as in SoRA's and FedDLP's public code.
    """

    gate_threshold: float = 5e-5  # xi, per step, absolute: not multiplied by the learning rate
    gate_init: GateInit = "normal"
    unclipped: ClassVar[frozenset[str]] = frozenset({"gate"})

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(site), "gate": (self.rank,)}

    def init_site(self, site: Site, generator: torch.Generator) -> Theta:
        theta = super().init_site(site, generator)
        gate = torch.empty(self.rank).normal_(generator=generator)
        return {**theta, "gate": gate if self.gate_init == "normal" else torch.ones_like(gate)}

    def bottleneck(self, theta: Theta, site: str, x: Tensor) -> Tensor:
        return super().bottleneck(theta, site, x) * theta[f"{site}.gate"].to(x.dtype)[:, None]  # (K, 1, r)

    def project(self, theta: Theta) -> Theta:
        return {name: soft_threshold(gate, self.gate_threshold) for name, gate in gates(theta).items()}


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """T_xi(g) = sign(g) max(|g| - xi, 0), elementwise (paper §V-G)."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def gates(theta: Theta) -> Theta:
    """The gate leaves, [K, r] each; empty where the adapter has none."""
    return {name: leaf for name, leaf in theta.items() if name.endswith(".gate")}


def active_ranks(theta: Theta) -> Tensor | None:
    """How many gates of each client are not zero, over all sites. [K]; None where the adapter has no gates."""
    found = [gate.detach() for gate in gates(theta).values()]
    return torch.cat(found, dim=-1).count_nonzero(dim=-1) if found else None


def count_parameters(adapter: Adapter, sites: Mapping[str, Site]) -> int:
    """Trainable parameters of one client's adapter over all sites."""
    return sum(math.prod(shape) for site in sites.values() for shape in adapter.shapes(site).values())
