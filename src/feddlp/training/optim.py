"""AdamW with a client axis: K optimisers in a handful of tensor operations.

Every leaf is [K, ...]. Moments, step counts and gradient norms belong to a client, never to the stack: client k takes
exactly the step that torch.optim.AdamW would take for it alone. A client that sits a step out (its samples are used
up) keeps weights, moments and step count untouched, to the bit.

The gradients of all leaves are laid side by side in one [K, P] matrix, so that the norm is one reduction over P and the
moments are two matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from feddlp.model.adapters import Theta


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019) with gradient clipping per client.

    Args:
        theta: the leaves to be stepped in place, [K, ...] each.
        max_grad_norm: largest Euclidean norm of a client's gradient over all clipped leaves; 0 = no clipping.
        unclipped: leaf names ("gate") that neither count towards the norm nor are scaled by it.
    """

    def __init__(
        self,
        theta: Theta,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        unclipped: frozenset[str] = frozenset(),
    ):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.max_grad_norm = max_grad_norm
        leaves = list(theta.values())
        flat = torch.cat([leaf.detach().flatten(1) for leaf in leaves], dim=1)  # (K, P)
        clipped = [
            torch.full((leaf[0].numel(),), name.rpartition(".")[2] not in unclipped) for name, leaf in theta.items()
        ]
        self.clipped = torch.cat(clipped).to(flat.device)  # (P,)
        self.m, self.v = torch.zeros_like(flat), torch.zeros_like(flat)
        self.steps = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)  # (K,)

    @torch.no_grad()
    def step(self, theta: Theta, gradients: Sequence[Tensor], active: Tensor) -> None:
        """One step of the active clients. gradients as the leaves of `theta`; active [K] bool"""
        g = self._clip(torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))  # (K, P)
        beta1, beta2 = self.betas
        rows = active[:, None]
        self.steps += active
        torch.where(rows, self.m.lerp(g, 1 - beta1), self.m, out=self.m)
        torch.where(rows, self.v * beta2 + (1 - beta2) * g * g, self.v, out=self.v)
        steps = self.steps[:, None].clamp(min=1).double()
        correction1, correction2 = (1 - beta1**steps).to(g.dtype), (1 - beta2**steps).sqrt().to(g.dtype)
        update = self.lr * (self.m / correction1) / (self.v.sqrt() / correction2 + self.eps)
        update = torch.where(rows, update, 0)
        decay = 1 - self.lr * self.weight_decay * active.to(g.dtype)
        parts = torch.split(update, [leaf[0].numel() for leaf in theta.values()], dim=1)
        for leaf, part in zip(theta.values(), parts, strict=True):
            if self.weight_decay:
                leaf.mul_(decay.view(-1, *[1] * (leaf.dim() - 1)))
            leaf.sub_(part.view_as(leaf))

    def _clip(self, g: Tensor) -> Tensor:
        """Scale each client's clipped leaves to at most the largest norm, as torch.nn.utils.clip_grad_norm_."""
        if not self.max_grad_norm:
            return g
        norm = torch.where(self.clipped, g, 0).norm(dim=1, keepdim=True)  # (K, 1)
        factor = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1)
        return torch.where(self.clipped, g * factor, g)

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors: m and v [K, P], steps [K]."""
        return {"m": self.m, "v": self.v, "steps": self.steps}
