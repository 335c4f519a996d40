"""What the server does with the uploads: averages, and a momentum on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from feddlp.model.adapters import Theta


class Average(Protocol):
    """A mean over clients that is fed a few of them at a time, so that memory does not grow with their number."""

    total: float  # weight of all clients so far

    def add(self, theta: Theta, weights: Tensor) -> None:
        """Some more clients: leaves [W, ...] and their weights [W] >= 0, for example training samples."""
        ...

    def result(self) -> Theta:
        """The mean over all clients so far: the leaves without the client axis, in the dtype in which they came."""
        ...


def as_weights(weights: Tensor, leaf: Tensor) -> Tensor:
    """In float64, where the leaf is. [W]"""
    return weights.to("cpu", torch.float64).to(leaf.device)


def capped(weights: Tensor, share: float) -> Tensor:
    """The largest weights cut to one value, so that none is more than a share of all; two clients keep theirs. [W]"""
    if share == 1 or len(weights) < 3:
        return weights
    rest = weights.double().sort().values.cumsum(0).flip(0)  # without the 0, 1, 2, ... largest
    left = 1 - share * torch.arange(len(weights))
    return weights.double().clamp(max=(share * rest / left)[left > 0].min())


class WeightedMean:
    """FedAvg (McMahan et al. 2017): sum_k w_k theta_k / sum_k w_k, each leaf by itself.

    Summed in float64, so that the order of clients hardly matters.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.sums: Theta = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def add(self, theta: Theta, weights: Tensor) -> None:
        self.total += weights.sum().item()
        for name, leaf in theta.items():
            summed = torch.tensordot(as_weights(weights, leaf), leaf.double(), dims=1)
            self.sums[name] = self.sums[name] + summed if name in self.sums else summed
            self.dtypes[name] = leaf.dtype

    def result(self) -> Theta:
        return {name: (summed / self.total).to(self.dtypes[name]) for name, summed in self.sums.items()}


class ProductMean:
    """FlexLoRA (Bai et al. 2024): the weighted mean of the products B A of a LoRA, cut back to its rank by an SVD.

    sum_k w_k B_k A_k is itself a product, of [d_out, K r] and [K r, d_in], and that is how it is kept. Where K r
    exceeds the narrower side of a layer, the product is written as itself times an identity: exact, and never larger.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}  # by site: (d_out, R), (R, d_in)
        self.like: dict[str, Tensor] = {}  # by site: one client's A, for its rank and dtype

    def add(self, theta: Theta, weights: Tensor) -> None:
        self.total += weights.sum().item()
        for site in [name.removesuffix(".A") for name in theta if name.endswith(".A")]:
            down, up = theta[f"{site}.A"], theta[f"{site}.B"]  # (W, r, d_in), (W, d_out, r)
            self.like[site] = down[0]
            weighed = (down.double() * as_weights(weights, down)[:, None, None]).flatten(0, 1)  # (W r, d_in)
            wide = up.double().transpose(0, 1).flatten(1)  # (d_out, W r)
            if site in self.factors:
                before_up, before_down = self.factors[site]
                wide, weighed = torch.cat([before_up, wide], 1), torch.cat([before_down, weighed])
            self.factors[site] = narrowed(wide, weighed)

    def result(self) -> Theta:
        averaged: Theta = {}
        for site, (up, down) in self.factors.items():
            (rank, _), dtype = self.like[site].shape, self.like[site].dtype
            small_up, small_down = truncated(up, down / self.total, rank)
            averaged |= {f"{site}.A": small_down.to(dtype), f"{site}.B": small_up.to(dtype)}
        return averaged


def narrowed(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product [d_out, R] [R, d_in] with an inner width of at most min(d_out, d_in)."""
    outer, inner = len(up), down.shape[1]
    if up.shape[1] <= min(outer, inner):
        return up, down
    one = torch.eye(min(outer, inner), dtype=up.dtype, device=up.device)
    return (one, up @ down) if outer < inner else (up @ down, one)


def truncated(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a product by one of inner width `rank`; the root of the singular values to either side.

    After two QR decompositions the SVD is one of R x R. Ranks that a narrow layer cannot fill are zero.
    """
    q_up, r_up = torch.linalg.qr(up)  # (d_out, R)
    q_down, r_down = torch.linalg.qr(down.mT)
    u, s, v = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    root = s[:rank].sqrt()
    spare = rank - len(root)
    return F.pad((q_up @ u[:, :rank]) * root, (0, spare)), F.pad(
        root[:, None] * (v[:rank] @ q_down.mT), (0, 0, 0, spare)
    )


class Server:
    """The shared adapters and what the server remembers of its steps.

    Args:
        shared: the adapters before the first round, no K axis.
        momentum: FedAvgM's beta (Hsu et al. 2019): v <- beta v + (theta - average), theta <- theta - v; 0 = averaging.
    """

    def __init__(self, shared: dict[str, Theta], momentum: float = 0.0):
        self.shared, self.momentum = shared, momentum
        self.velocity = {
            name: {leaf: torch.zeros_like(value) for leaf, value in theta.items()} if momentum else {}
            for name, theta in shared.items()
        }

    def step(self, averages: dict[str, Theta]) -> None:
        """Take over the averages, with momentum where there is one."""
        for name, average in averages.items():
            for leaf, velocity in self.velocity[name].items():
                velocity.mul_(self.momentum).add_(self.shared[name][leaf] - average[leaf])
                average = {**average, leaf: self.shared[name][leaf] - velocity}
            self.shared[name] = average

    def state_dict(self) -> dict[str, Tensor]:
        """Live tensors by "shared/adapter/leaf" and "velocity/adapter/leaf"."""
        kept = {"shared": self.shared, "velocity": self.velocity}
        return {
            f"{part}/{name}/{leaf}": value
            for part, thetas in kept.items()
            for name, theta in thetas.items()
            for leaf, value in theta.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back copies of what `state_dict` gave, where and as the server keeps them."""
        for part, thetas in (("shared", self.shared), ("velocity", self.velocity)):
            for name, theta in thetas.items():
                for leaf, value in theta.items():
                    theta[leaf] = state[f"{part}/{name}/{leaf}"].to(value, copy=True)
