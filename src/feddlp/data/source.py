"""What a data set is before its images are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

Block = Sequence[Image.Image] | Tensor
"""Some images: in RGB and of any size, or rendered in one size. [n, 3, h, w] uint8"""


@dataclass(frozen=True)
class Source:
    """A collection before its images are opened."""

    name: str
    blocks: Callable[[], Iterator[Block]]  # all images in the order of the labels, opened as they are asked for
    labels: Sequence[int]
    class_names: tuple[str, ...]
    template: str = "a photo of a {}."
