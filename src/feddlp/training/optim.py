"""AdamW with a client axis: K optimisers in a handful of tensor operations.

Every leaf is [K, ...]. Moments, step counts and gradient norms belong to a client, never to the stack: client k takes
exactly the step that torch.optim.AdamW would take for it alone. A client that sits a step out (its samples are used
up) keeps weights, moments and step count untouched, to the bit.

The gradients of all leaves are laid side by side in one [K, P] matrix, so that the norm is one reduction over P and the
moments are two matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from feddlp.model.adapters import Theta

Decay = Literal["decoupled", "l2"]


def flatten(leaves: Iterable[Tensor]) -> Tensor:
    """The leaves side by side, a row for each client. [K, ...] each -> [K, P]"""
    return torch.cat([leaf.detach().flatten(1) for leaf in leaves], dim=1)


class AdamW:
    """Adam with weight decay and gradient clipping per client.

    Args:
        theta: the leaves to be stepped in place, [K, ...] each.
        lr: a number, or one for each client, [K].
        decay: "decoupled" takes lr * weight_decay off the weights (AdamW, Loshchilov and Hutter 2019); "l2" adds
            weight_decay * weights to the gradient (Adam, as FLoRA and FedCLIP were released).
        max_grad_norm: largest Euclidean norm of a client's gradient over all clipped leaves; 0 = no clipping.
        unclipped: leaf names ("gate") that neither count towards the norm nor are scaled by it.
    """

    def __init__(
        self,
        theta: Theta,
        *,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Decay = "decoupled",
        max_grad_norm: float = 1.0,
        unclipped: frozenset[str] = frozenset(),
    ):
        self.betas, self.eps, self.max_grad_norm = betas, eps, max_grad_norm
        self.shrink, self.l2 = (weight_decay, 0.0) if decay == "decoupled" else (0.0, weight_decay)
        self.unclipped = unclipped
        flat = flatten(theta.values())  # (K, P)
        self.lr = torch.as_tensor(lr, dtype=torch.float64).to(flat.device).expand(len(flat))[:, None]  # (K, 1)
        self.clipped = self._clipped(theta)  # (P,)
        self.m, self.v = torch.zeros_like(flat), torch.zeros_like(flat)
        self.steps = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)  # (K,)

    def _clipped(self, theta: Theta) -> Tensor:
        """Which entries of a client's gradient are clipped. [P]"""
        named = theta.items()
        marks = [torch.full((leaf[0].numel(),), name.rpartition(".")[2] not in self.unclipped) for name, leaf in named]
        return torch.cat(marks).to(next(iter(theta.values())).device)

    @torch.no_grad()
    def step(self, theta: Theta, gradients: Sequence[Tensor], active: Tensor) -> None:
        """One step of the active clients. gradients as the leaves of `theta`; active [K] bool"""
        g = self._clip(flatten(gradients))  # (K, P)
        if self.l2:
            g = g + self.l2 * flatten(theta.values())
        beta1, beta2 = self.betas
        rows = active[:, None]
        self.steps += active
        torch.where(rows, self.m.lerp(g, 1 - beta1), self.m, out=self.m)
        torch.where(rows, self.v * beta2 + (1 - beta2) * g * g, self.v, out=self.v)
        steps = self.steps[:, None].clamp(min=1).double()
        correction1, correction2 = (1 - beta1**steps).to(g.dtype), (1 - beta2**steps).sqrt().to(g.dtype)
        lr = self.lr.to(g.dtype)
        update = lr * (self.m / correction1) / (self.v.sqrt() / correction2 + self.eps)
        update = torch.where(rows, update, 0)
        decay = 1 - lr * self.shrink * rows  # (K, 1)
        parts = torch.split(update, [leaf[0].numel() for leaf in theta.values()], dim=1)
        for leaf, part in zip(theta.values(), parts, strict=True):
            if self.shrink:
                leaf.mul_(decay.view(-1, *[1] * (leaf.dim() - 1)))
            leaf.sub_(part.view_as(leaf))

    def _clip(self, g: Tensor) -> Tensor:
        """Scale each client's clipped leaves to at most the largest norm, as torch.nn.utils.clip_grad_norm_."""
        if not self.max_grad_norm:
            return g
        norm = torch.where(self.clipped, g, 0).norm(dim=1, keepdim=True)  # (K, 1)
        factor = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1)
        return torch.where(self.clipped, g * factor, g)

    def reshape(self, theta: Theta, change: Callable[[Theta], Theta]) -> None:
        """Carry the moments along when leaves change shape: `change` maps what is shaped as `theta` to its new form."""
        m, v = (change(moment) for moment in self.moments(theta))
        self.m, self.v = flatten(m.values()), flatten(v.values())
        self.clipped = self._clipped(m)

    def moments(self, theta: Theta) -> tuple[Theta, Theta]:
        """m and v as leaves, shaped as those of `theta`; views of the live tensors."""
        sizes = [leaf[0].numel() for leaf in theta.values()]
        m, v = (zip(theta.items(), torch.split(flat, sizes, dim=1), strict=True) for flat in (self.m, self.v))
        return ({n: part.view_as(leaf) for (n, leaf), part in m}, {n: part.view_as(leaf) for (n, leaf), part in v})

    def forget(self) -> None:
        """As if no client had ever stepped."""
        for moment in (self.m, self.v, self.steps):
            moment.zero_()
