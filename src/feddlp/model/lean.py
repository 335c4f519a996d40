"""The towers with less work: rewrites of two parts of a Hugging Face CLIP that give the same features.

    QuickGELU   x sigmoid(1.702 x) = silu(1.702 x) / 1.702: two passes over memory forward and one backward, where the
                library's three operations take three and five, and keep one tensor instead of three.
    last layer  only the pooled token (class token, end of text) of the last layer is ever read, so that its queries,
                output projection and MLP are computed for that token alone. Keys and values need all tokens.

Parameters, module names and hooks stay as they are; features differ by rounding only.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

SLOPE = 1.702


class QuickGELUFunction(torch.autograd.Function):
    """x sigmoid(1.702 x), elementwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = x * SLOPE
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / SLOPE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return cast("Tensor", torch.ops.aten.silu_backward(gradients[0], scaled))


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = QuickGELUFunction.apply(x)  # type: ignore[no-untyped-call]
        return y


class PooledLayer:
    """The last layer of a tower, for one token of each sequence: the first, or the end of a text."""

    def __init__(self, layer: nn.Module, eos_token_id: int):
        self.layer, self.eos_token_id = layer, eos_token_id
        self.at: Tensor | None = None  # [n]; None: the first token

    def find_end(self, tower: nn.Module, _: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Called before the text tower."""
        self.at = end_of_text(inputs["input_ids"], self.eos_token_id)

    def __call__(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """[n, T, d] -> [n, T, d], where every token is the pooled one."""
        layer: Any = self.layer
        residual: Tensor = self.pick(hidden)  # (n, d)
        residual = residual + self.attention(layer.layer_norm1(hidden))
        residual = residual + layer.mlp(layer.layer_norm2(residual))
        return residual[:, None].expand_as(hidden)

    def attention(self, x: Tensor) -> Tensor:
        """One query, all keys. [n, T, d] -> [n, d]"""
        attention: Any = self.layer.self_attn
        q, k, v = attention.q_proj(self.pick(x)), attention.k_proj(x), attention.v_proj(x)
        q = q.unflatten(-1, (-1, 1, attention.head_dim))  # (n, heads, 1, d / heads)
        k, v = (each.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for each in (k, v))
        scores = (q @ k.mT * attention.scale).to(torch.promote_types(q.dtype, torch.float32))  # (n, heads, 1, T)
        if self.at is not None:
            later = torch.arange(x.shape[1], device=x.device) > self.at[:, None]
            scores = scores.masked_fill(later[:, None, None], float("-inf"))
        mixed = scores.softmax(-1).to(v.dtype) @ v  # (n, heads, 1, d / heads)
        return cast("Tensor", attention.out_proj(mixed.flatten(1)))

    def pick(self, x: Tensor) -> Tensor:
        """[n, T, d] -> [n, d]"""
        return x[:, 0].contiguous() if self.at is None else x[torch.arange(len(x), device=x.device), self.at]


def use_quick_gelu(model: nn.Module) -> None:
    """Put our QuickGELU in the place of the library's."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuickGELUActivation):
                setattr(module, name, QuickGELU())


def pool_in_last_layer(tower: Any, eos_token_id: int | None = None) -> None:
    """Let the last layer of a CLIP tower compute the pooled token alone; with an end token for a text tower."""
    layer = tower.encoder.layers[-1]
    layer.forward = PooledLayer(layer, eos_token_id or 0)
    if eos_token_id is not None:
        tower.register_forward_pre_hook(layer.forward.find_end, with_kwargs=True)


def end_of_text(tokens: Tensor, eos_token_id: int) -> Tensor:
    """Where a CLIP text tower pools: its end token, or the largest id where old configurations name a wrong one. [n]"""
    found = tokens if eos_token_id == 2 else (tokens == eos_token_id)
    return found.int().argmax(-1)
