"""The fused layer is the plain one, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.model.linear import adapted_linear

few = settings(max_examples=30)


def plain(x, weight, bias, down, up):
    """The same with autograd's own operations, one client after the other."""
    parts = zip(x.chunk(len(down)), down, up, strict=True)
    return torch.cat([F.linear(rows, weight, bias) + rows @ (u @ d).T for rows, d, u in parts])


def operands(clients, rank, bias, dims, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    x = draw(clients * 2, *(3,) * dims, 5)
    return x, draw(4, 5).detach(), draw(4).detach() if bias else None, draw(clients, rank, 5), draw(clients, 4, rank)


@few
@given(clients=st.integers(1, 3), rank=st.integers(0, 4), bias=st.booleans(), dims=st.integers(0, 2))
def test_output_and_gradients_equal_the_plain_layer(clients, rank, bias, dims):
    x, weight, b, down, up = operands(clients, rank, bias, dims)
    ours, theirs = adapted_linear(x, weight, b, down, up), plain(x, weight, b, down, up)
    torch.testing.assert_close(ours, theirs)
    out = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(theirs, (x, down, up), out)
    for gradient, expected in zip(torch.autograd.grad(ours, (x, down, up), out), wanted, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_rows_need_not_lie_one_after_the_other_in_memory():
    x, weight, bias, down, up = operands(2, 3, True, 1)
    spread = x.detach().mT.contiguous().mT
    assert not spread.is_contiguous()
    torch.testing.assert_close(adapted_linear(spread, weight, bias, down, up), plain(x, weight, bias, down, up))


@pytest.mark.parametrize("learns", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_asked_gradients_are_computed(learns):
    x, weight, bias, down, up = operands(2, 3, True, 1)
    leaves = [leaf.detach().requires_grad_(on) for leaf, on in zip((x, down, up), learns, strict=True)]
    adapted_linear(leaves[0], weight, bias, *leaves[1:]).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == list(learns)


def test_under_bfloat16_rows_the_leaves_keep_their_float32_gradients():
    x, weight, bias, down, up = (v.detach() for v in operands(2, 3, True, 1))
    down, up = down.float().requires_grad_(), up.float().requires_grad_()
    y = adapted_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), down, up)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), plain(x, weight, bias, down.double(), up.double()), rtol=0.05, atol=0.1)
    y.float().sum().backward()
    assert down.grad.dtype == up.grad.dtype == torch.float32
