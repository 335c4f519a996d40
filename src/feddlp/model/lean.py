"""The towers with less work: rewrites of two parts of a Hugging Face CLIP or SigLIP that give the same features.

    QuickGELU   x sigmoid(1.702 x) = silu(1.702 x) / 1.702: two passes over memory forward and one backward, where the
                library's three operations take three and five, and keep one tensor instead of three.
    last layer  where only the pooled token (class token, end of text, last position) of the last layer is ever read,
                its queries, output projection and MLP are computed for that token alone. Keys and values need all.

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
    """The last layer of a tower, for one token of each sequence.

    Args:
        at: its place in every sequence, -1 being the last, in a tower that looks both ways; or one for each sequence,
            [n], in a causal one.
    """

    def __init__(self, layer: nn.Module, at: int | Tensor):
        self.layer, self.at = layer, at

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
        if isinstance(self.at, Tensor):
            later = torch.arange(x.shape[1], device=x.device) > self.at[:, None]
            scores = scores.masked_fill(later[:, None, None], float("-inf"))
        mixed = scores.softmax(-1).to(v.dtype) @ v  # (n, heads, 1, d / heads)
        return cast("Tensor", attention.out_proj(mixed.flatten(1)))

    def pick(self, x: Tensor) -> Tensor:
        """[n, T, d] -> [n, d]"""
        if isinstance(self.at, Tensor):
            return x[torch.arange(len(x), device=x.device), self.at]
        return x[:, self.at].contiguous()


class EndOfTextLayer(PooledLayer):
    """The last layer of a causal text tower, for the end token of each text."""

    def __init__(self, layer: nn.Module, eos_token_id: int):
        super().__init__(layer, 0)
        self.eos_token_id = eos_token_id

    def find_end(self, tower: nn.Module, _: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Called before the tower."""
        self.at = end_of_text(inputs["input_ids"], self.eos_token_id)


def use_quick_gelu(model: nn.Module) -> None:
    """Put our QuickGELU in the place of the library's."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuickGELUActivation):
                setattr(module, name, QuickGELU())


def pool_in_last_layer(tower: Any, at: int = 0) -> None:
    """Let the last layer of a tower compute the pooled token alone, which has the same place in every sequence."""
    layer = tower.encoder.layers[-1]
    layer.forward = PooledLayer(layer, at)


def pool_at_end_of_text(tower: Any, eos_token_id: int) -> None:
    """The same for a causal text tower, which is read at the end token of each text."""
    layer = tower.encoder.layers[-1]
    layer.forward = EndOfTextLayer(layer, eos_token_id)
    tower.register_forward_pre_hook(layer.forward.find_end, with_kwargs=True)


def end_of_text(tokens: Tensor, eos_token_id: int) -> Tensor:
    """Where a CLIP text tower pools: its end token, or the largest id where old configurations name a wrong one. [n]"""
    found = tokens if eos_token_id == 2 else (tokens == eos_token_id)
    return found.int().argmax(-1)
