"""A frozen linear layer with a low-rank change for each of K clients, forward and backward.

    y_k = x_k W0^T + x_k D_k^T U_k^T + b = x_k W0^T + [x_k D_k^T, 1] [U_k, b]^T

The frozen product is one large GEMM over the rows of all clients; everything else is one skinny batched product that
is added in place, the bias riding along as one more rank. The backward pass needs no gradient of W0, and adds the
adapters' part of the input's gradient in place too. Its products are written so that a processor reads the large
operand along its rows: x^T (g U), as autograd would have it, can take ten times as long as (g U)^T x.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def by_client(rows: Tensor, clients: int) -> Tensor:
    """[K n, ..., d] -> [K, N, d]"""
    return rows.reshape(clients, -1, rows.shape[-1])


class AdaptedLinear(torch.autograd.Function):
    """x W^T + (x D^T) U^T + b.

    x [K n, ..., d_in], W [d_out, d_in], b [d_out] or None, D [K, r, d_in], U [K, d_out, r]
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        rows, factor = by_client(x, len(down)), up
        if bias is not None:
            factor = torch.cat([up, bias[:, None].expand(len(up), -1, -1)], dim=2)  # (K, d_out, r + 1)
            down = F.pad(down, (0, 0, 0, 1))  # (K, r + 1, d_in)
        hidden = rows @ down.mT  # (K, N, r + 1)
        if bias is not None:
            hidden[..., -1] = 1
        y = x.flatten(0, -2) @ weight.mT  # (K N, d_out)
        by_client(y, len(up)).baddbmm_(hidden, factor.mT)
        ctx.save_for_backward(x, weight, down, up, hidden)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, hidden = ctx.saved_tensors
        rank = up.shape[2]
        needs_x, _, _, needs_down, needs_up = ctx.needs_input_grad
        g = by_client(gradients[0], len(up))  # (K, N, d_out)
        through = g @ up  # (K, N, r)
        of_x = None
        if needs_x:
            of_x = g.flatten(0, 1) @ weight  # (K N, d_in)
            by_client(of_x, len(up)).baddbmm_(through, down[:, :rank])
            of_x = of_x.view_as(x)
        of_down = through.mT @ by_client(x, len(up)) if needs_down else None
        of_up = (hidden.mT @ g)[:, :rank].mT if needs_up else None
        return of_x, None, None, of_down, of_up


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    """`AdaptedLinear`, whose factors may be kept in a wider dtype than the layer computes in."""
    y: Tensor = AdaptedLinear.apply(x, weight, bias, down.to(x.dtype), up.to(x.dtype))  # type: ignore[no-untyped-call]
    return y
