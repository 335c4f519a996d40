"""Features of the frozen towers, computed once: of images for text adaptation, of prompts for image adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from feddlp.data.prompts import Prompts
from feddlp.errors import UserError
from feddlp.model.backbone import Backbone

CHUNK = 256


class AlikeError(UserError):
    """Class names that a checkpoint reads as one; it says nothing of images or places."""


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
    """Token ids and unit features of the class prompts.

    Raises:
        AlikeError: two of them are the same tokens.
    """
    tokens = backbone.tokenize(prompts)
    first: dict[tuple[int, ...], int] = {}
    for place, row in enumerate(tokens.tolist()):
        if (twin := first.setdefault(tuple(row), place)) != place:
            raise AlikeError(
                f"the prompts {prompts[twin]!r} and {prompts[place]!r} are the same tokens to this checkpoint, which "
                "cannot tell these classes apart; rename one of them"
            )
    return Prompts(tokens, backbone.encode_texts(tokens))
