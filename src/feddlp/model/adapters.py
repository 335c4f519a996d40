"""Adapters: what is trained beside a frozen model, for K clients at once.

    x [K, N, d_in] ----> W0 (frozen, shared) --------------------------> + ----> y [K, N, d_out]
                   \\--> A_k [r, d_in] --> (* g_k [r]) --> B_k [d_out, r] --> * scaling --/

Every leaf carries the client axis: client k has its own A_k, B_k, g_k, and the adapter of all clients is two batched
matrix products. The frozen product stays one large GEMM over the rows of all clients.

LoRA              Hu et al. 2022: dW = scaling B A, B = 0 at the start. Here.
GatedLoRA         SoRA: a gate for each rank, pruned while training (`model.gates`).
FeatureAttention  FedCLIP: an attention over the tower's output features. Here.
Dense             full fine-tuning: a difference for every weight of the tower. Here.

An adapter acts at sites. There are three kinds, and `shapes` is empty for those that an adapter leaves alone.
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

View = str | Mapping[str, float]
"""The adapters that act, and their weights: "local", or {"local": 0.5, "teacher": 0.5}; {} is the frozen model."""

LoRAInit = Literal["kaiming", "authors"]
LoRAScaling = Literal["standard", "rslora"]
Layers = Literal["all", "attention_out"]
AttentionInit = Literal["default", "identity", "neutral"]
Draw = Callable[[str], torch.Generator]
"""A site's name -> the generator of its initial values."""


class LinearSite(NamedTuple):
    """A linear layer, under its name in the checkpoint."""

    in_features: int
    out_features: int


class FeatureSite(NamedTuple):
    """The output of a tower before normalisation, under the name "image.features" or "text.features"."""

    width: int


class WeightSite(NamedTuple):
    """Any parameter of a tower, under its name in the checkpoint."""

    shape: tuple[int, ...]


Site = LinearSite | FeatureSite | WeightSite


class Adapter(Protocol):
    """What a cohort needs to know of a kind of adapter."""

    unclipped: ClassVar[frozenset[str]]  # leaves that stay out of the gradient norm and its clipping

    def shapes(self, name: str, site: Site) -> dict[str, tuple[int, ...]]:
        """The leaves at one site, without the client axis; empty where the adapter does not act."""
        ...

    def init(self, sites: Mapping[str, Site], draw: Draw) -> Theta:
        """Initial values for one client, no K axis."""
        ...

    def project(self, theta: Theta, progress: float) -> Theta:
        """The leaves that change after an optimiser step, with their new values.

        Args:
            progress: rounds finished; schedules depend on it.
        """
        ...


class LinearAdapter(Adapter, Protocol):
    """A kind that acts at linear layers, by a change of low rank."""

    def factors(self, theta: Theta, site: str) -> tuple[Tensor, Tensor]:
        """D and U of W0 + U D. [K, r, d_in] and [K, d_out, r]"""
        ...


class FeatureAdapter(Adapter, Protocol):
    """A kind that acts on the output features of a tower."""

    def transform(self, theta: Theta, site: str, features: Tensor) -> Tensor:
        """The features that take the place of the frozen ones. [K, n, d] -> [K, n, d]"""
        ...


def sites_of(theta: Theta) -> dict[str, list[str]]:
    """The sites at which an adapter has leaves, with the names of those leaves."""
    found: dict[str, list[str]] = {}
    for name in theta:
        site, _, leaf = name.rpartition(".")
        found.setdefault(site, []).append(leaf)
    return found


def at_every_site(adapter: LoRA | FeatureAttention, sites: Mapping[str, Site], draw: Draw) -> Theta:
    """The initial leaves at all sites where an adapter acts."""
    theta = {}
    for name, site in sites.items():
        if shapes := adapter.shapes(name, site):
            values = adapter.init_site(shapes, draw(name))
            theta.update({f"{name}.{leaf}": value for leaf, value in values.items()})
    return theta


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of linear layers. Leaves A (r, d_in) and B (d_out, r).

    Args:
        lora_init: "kaiming" draws A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)) (the LoRA authors' code); "authors" draws
            A ~ N(0, 1)/sqrt(r), the start of FedDLP's public code, whose learning rates belong to it.
        lora_scaling: "standard" multiplies by lora_alpha / r, "rslora" by lora_alpha / sqrt(r) (Kalajdzievski 2023).
        layers: "all" linear layers, or only the output projections of attention ("attention_out", FLoRA as released).
    """

    rank: int
    lora_alpha: float = 16.0
    lora_init: LoRAInit = "kaiming"
    lora_scaling: LoRAScaling = "standard"
    layers: Layers = "all"
    unclipped: ClassVar[frozenset[str]] = frozenset()

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (self.rank if self.lora_scaling == "standard" else math.sqrt(self.rank))

    def shapes(self, name: str, site: Site) -> dict[str, tuple[int, ...]]:
        chosen = self.layers == "all" or name.endswith(".out_proj")
        if not isinstance(site, LinearSite) or not chosen:
            return {}
        return {"A": (self.rank, site.in_features), "B": (site.out_features, self.rank)}

    def init(self, sites: Mapping[str, Site], draw: Draw) -> Theta:
        return at_every_site(self, sites, draw)

    def init_site(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Theta:
        down = torch.empty(shapes["A"])
        if self.lora_init == "kaiming":
            bound = 1 / math.sqrt(down.shape[1])
            down.uniform_(-bound, bound, generator=generator)
        else:
            down.normal_(generator=generator).div_(math.sqrt(self.rank))
        return {"A": down, "B": torch.zeros(shapes["B"])}

    def factors(self, theta: Theta, site: str) -> tuple[Tensor, Tensor]:
        return theta[f"{site}.A"], self.scaling * theta[f"{site}.B"]

    def project(self, theta: Theta, progress: float) -> Theta:
        return {}


@dataclass(frozen=True)
class FeatureAttention:
    """FedCLIP (Lu et al. 2023): f * softmax(W2 tanh(W1 f + b1) + b2) on the output features f of a tower.

    Args:
        attention_init: "default" is torch.nn.Linear's own start; "identity" sets W1 = W2 = 1, b = 0 (FedDLP's authors);
            "neutral" sets W2 = 0, b2 = 0, so that after normalisation the model starts as the frozen one.
    """

    attention_init: AttentionInit = "default"
    unclipped: ClassVar[frozenset[str]] = frozenset()

    def shapes(self, name: str, site: Site) -> dict[str, tuple[int, ...]]:
        if not isinstance(site, FeatureSite):
            return {}
        square, row = (site.width, site.width), (site.width,)
        return {"W1": square, "b1": row, "W2": square, "b2": row}

    def init(self, sites: Mapping[str, Site], draw: Draw) -> Theta:
        return at_every_site(self, sites, draw)

    def init_site(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Theta:
        width = shapes["b1"][0]
        bound = 1 / math.sqrt(width)
        drawn = {
            leaf: torch.empty(shape).uniform_(-bound, bound, generator=generator) for leaf, shape in shapes.items()
        }
        zero = torch.zeros(width)
        if self.attention_init == "identity":
            return {"W1": torch.eye(width), "b1": zero, "W2": torch.eye(width), "b2": zero.clone()}
        if self.attention_init == "neutral":
            return drawn | {"W2": torch.zeros(width, width), "b2": zero}
        return drawn

    def transform(self, theta: Theta, site: str, features: Tensor) -> Tensor:
        w1, b1, w2, b2 = (theta[f"{site}.{leaf}"].to(features.dtype) for leaf in ("W1", "b1", "W2", "b2"))
        hidden = (features @ w1.mT + b1[:, None]).tanh()  # (K, n, d)
        return features * (hidden @ w2.mT + b2[:, None]).softmax(-1)

    def project(self, theta: Theta, progress: float) -> Theta:
        return {}


@dataclass(frozen=True)
class Dense:
    """Full fine-tuning: one leaf "difference" for every parameter of the tower, 0 at the start.

    There is nothing to share between clients then: `model.forward` runs the tower once for each, with the weights
    W0 + difference, and no frozen product is computed on top.
    """

    unclipped: ClassVar[frozenset[str]] = frozenset()

    def shapes(self, name: str, site: Site) -> dict[str, tuple[int, ...]]:
        return {"difference": site.shape} if isinstance(site, WeightSite) else {}

    def init(self, sites: Mapping[str, Site], draw: Draw) -> Theta:
        weights = {name: site.shape for name, site in sites.items() if isinstance(site, WeightSite)}
        return {f"{name}.difference": torch.zeros(shape) for name, shape in weights.items()}

    def project(self, theta: Theta, progress: float) -> Theta:
        return {}


def count_parameters(adapter: Adapter, sites: Mapping[str, Site]) -> int:
    """Parameters of one client's adapter over all sites."""
    return sum(math.prod(shape) for name, site in sites.items() for shape in adapter.shapes(name, site).values())
