"""How many floating-point operations a piece of work takes: as executed, and nominally.

`counter` looks at the operations that really run (torch's FlopCounterMode, to which the processor's attention is
added): what a faster step leaves out is not counted. `nominal_flops` says what the algorithm asks for with full
passes over the frozen tower, whatever the engine does. docs/performance.md tells what is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from feddlp.data.batches import Batch
from feddlp.methods.base import Method
from feddlp.model import Adapt
from feddlp.model.adapters import View
from feddlp.model.backbone import towers
from feddlp.model.family import family_of, image_tokens

aten = torch.ops.aten
Shape = tuple[int, ...]


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """q k^T and p v, in full even where attention is causal. [n, heads, tokens, d] each"""
    return pairs(query, key) * 2 * (query[3] + value[3])


def attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """q k^T once more, and two products for each of the two of the forward pass."""
    return pairs(query, key) * 2 * (3 * query[3] + 2 * value[3])


def pairs(query: Shape, key: Shape) -> int:
    """Query and key tokens that meet, over all heads."""
    return query[0] * query[1] * query[2] * key[2]


ON_PROCESSORS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}
"""Attention as PyTorch runs it on a processor, which its counter does not know."""


def counter() -> FlopCounterMode:
    """A context that counts what runs inside; then `.get_total_flops()`."""
    return FlopCounterMode(display=False, custom_mapping=ON_PROCESSORS)


def block_flops(width: int, inner: int, tokens: int) -> int:
    """One transformer block, forward: four projections of attention, its two products, the two layers of the MLP."""
    return 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width


def tower_flops(config: PreTrainedConfig, tower: str, tokens: int) -> int:
    """One image or one prompt through a frozen tower, forward.

    Args:
        tokens: of a prompt; an image has its patches, and the class token if there is one.
    """
    part, family = config.text_config if tower == "text" else config.vision_config, family_of(config)
    embedding: int = 0
    if tower == "image":
        tokens = image_tokens(config)
        patches = tokens - family.image_tokens_beside_patches
        embedding = 2 * patches * part.num_channels * part.patch_size**2 * part.hidden_size
    blocks = part.num_hidden_layers * block_flops(part.hidden_size, part.intermediate_size, tokens)
    return int(embedding + blocks + head_flops(config, tower, tokens))


def head_flops(config: PreTrainedConfig, tower: str, tokens: int) -> int:
    """What follows the blocks: a projection of one token, or a head that attends to all of them with one query."""
    part, family = config.text_config if tower == "text" else config.vision_config, family_of(config)
    width: int = part.hidden_size
    if tower in family.pooled:
        return 2 * width * family.feature_width[tower](config)
    keys_and_values = 4 * tokens * width**2
    return int(keys_and_values + 4 * width**2 + 4 * tokens * width + 4 * width * part.intermediate_size)


class Passes:
    """Stands in for the forward pass, and counts how a method calls it."""

    def __init__(self, classes: int):
        self.classes, self.learning, self.teaching = classes, 0, 0

    def __call__(self, batch: Batch, view: View) -> Tensor:
        self.learning += 1
        return torch.zeros(*batch.labels.shape, self.classes, requires_grad=True)

    def frozen(self, batch: Batch, view: View) -> Tensor:
        self.teaching += 1
        return torch.zeros(*batch.labels.shape, self.classes)


def passes(method: Method) -> tuple[int, int]:
    """Forward passes of one training step that go backward too, and that do not (teachers)."""
    f = Passes(classes=2)
    labels = torch.zeros(1, 1, dtype=torch.int64)
    batch = Batch(labels, labels, torch.ones(1, 1, dtype=torch.bool))
    for _ in method.losses(f, batch):
        pass
    return f.learning, f.teaching


def nominal_flops(
    config: PreTrainedConfig, method: Method, adapt: Adapt, batch_size: int, classes: int, tokens: int
) -> int:
    """One client's training step with full passes over the adapted towers: "model FLOPs".

    A pass back with respect to the inputs of all layers counts as much as one forward; adapters, and the gradients of
    the first layer that nobody needs, are left out.
    """
    learning, teaching = passes(method)
    items = {"image": batch_size, "text": classes}
    once = sum(items[tower] * tower_flops(config, tower, tokens) for tower in towers(adapt))
    return (2 * learning + teaching) * once
