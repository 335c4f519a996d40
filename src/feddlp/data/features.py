"""Features of the frozen tower, computed once for the whole data set.

Text adaptation never runs the image tower again: its batches gather these. (The class-prompt features for image
adaptation are few and are kept by `model.forward.Forward` itself.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
