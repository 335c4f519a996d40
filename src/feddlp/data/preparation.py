"""Pictures to pixels at the size that the checkpoint reads, on all cores.

Threads do: Pillow lets go of the interpreter while it decodes and resizes. Rows stand in the order of the pictures,
without gaps where pictures could not be read; what is done so far is known after every chunk, so that it can be kept.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar

from PIL import Image
from pydantic import model_validator

from feddlp.data.pictures import BadImage
from feddlp.data.source import Picture
from feddlp.states import Sealed

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from torch import Tensor

Resize: TypeAlias = "Callable[[Sequence[Image.Image]], Tensor]"
"""RGB images of any size -> [n, 3, H, W] uint8; `Backbone.resize` is one."""

T = TypeVar("T")
Progress = Callable[[int, int], None]
CHUNK = 256
MOST_THREADS = 16


class Filled(Sealed):
    """How far a preparation has come; state.json of the cache."""

    done: int = 0  # pictures looked at
    bad: tuple[tuple[int, str], ...] = ()  # which of them could not be read, in order, and why
    sha256: str = ""  # of the rows so far, where they are kept

    @model_validator(mode="after")
    def bad_are_among_the_done(self) -> Self:
        places = [-1, *(index for index, _ in self.bad), self.done]
        if any(later <= earlier for earlier, later in pairwise(places)):
            raise ValueError("pictures that could not be read are not among those looked at")
        return self

    @property
    def rows(self) -> int:
        """Pictures that were read."""
        return self.done - len(self.bad)


@dataclass(frozen=True)
class Pixels:
    """All pictures that could be read."""

    images: Tensor  # [N', 3, H, W] uint8
    bad: tuple[tuple[int, str], ...]
    hash: Hash  # of the images


Prepare = Callable[[Sequence[Picture], Resize, Progress], Pixels]


def in_memory(pictures: Sequence[Picture], resize: Resize, progress: Progress) -> Pixels:
    """Everything anew, kept nowhere."""
    import torch

    images = torch.empty(len(pictures), *row_shape(resize), dtype=torch.uint8)
    filled = Filled()
    for filled in fill(images, pictures, resize, Filled()):
        progress(filled.done, len(pictures))
    return Pixels(images[: filled.rows], filled.bad, pixel_hash(images[: filled.rows]))


def row_shape(resize: Resize) -> tuple[int, ...]:
    """The size that the checkpoint reads, as (3, H, W)."""
    return tuple(resize([Image.new("RGB", (64, 64))]).shape[1:])


def pixel_hash(images: Tensor) -> Hash:
    return hashlib.sha256(images.flatten().numpy().data)


def fill(images: Tensor, pictures: Sequence[Picture], resize: Resize, filled: Filled) -> Iterator[Filled]:
    """Write the rows of the pictures that are still to be done, and tell after each chunk. images [N, 3, H, W]"""
    import torch

    pool = thread_pool()
    try:
        while filled.done < len(pictures):
            chunk = pictures[filled.done : filled.done + CHUNK]
            outcomes = open_all(pool, chunk, lambda image: resize([image])[0])
            if good := [outcome for outcome in outcomes if not isinstance(outcome, str)]:
                images[filled.rows : filled.rows + len(good)] = torch.stack(good)
            bad = [(filled.done + i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, str)]
            filled = Filled(done=filled.done + len(outcomes), bad=(*filled.bad, *bad))
            yield filled
    finally:
        pool.shutdown(cancel_futures=True)


def thread_pool() -> ThreadPoolExecutor:
    """As many threads as there are cores, within reason."""
    return ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))


def open_all(pool: ThreadPoolExecutor, pictures: Sequence[Picture], use: Callable[[Image.Image], T]) -> list[T | str]:
    """Open pictures side by side: what is made of each, or the reason why it cannot be read."""

    def outcome(picture: Picture) -> T | str:
        try:
            return use(picture.open())
        except BadImage as error:
            return str(error)

    with warnings.catch_warnings():  # here and not in the threads, for the filters belong to all of them
        warnings.simplefilter("ignore")  # Pillow's notes on what it could still make of a file
        return list(pool.map(outcome, pictures))
