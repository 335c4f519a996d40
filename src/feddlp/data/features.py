"""Features of the frozen towers, computed once: of images for text adaptation, of prompts for image adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from feddlp.data.prompts import Prompts
from feddlp.model.backbone import Backbone

CHUNK = 256


@torch.no_grad()
def image_features(backbone: Backbone, images: Tensor, progress: Callable[[int, int], None]) -> Tensor:
    """Unit features of all images. [N, 3, H, W] uint8 -> [N, D]"""
    chunks = []
    for start in range(0, len(images), CHUNK):
        chunks.append(backbone.encode_images(images[start : start + CHUNK]))
        progress(min(start + CHUNK, len(images)), len(images))
    return torch.cat(chunks)


@torch.no_grad()
def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Prompts:
    """Token ids and unit features of the class prompts."""
    tokens = backbone.tokenize(prompts)
    return Prompts(tokens, backbone.encode_texts(tokens))
