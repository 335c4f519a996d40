"""What a data set is before its images are opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_args

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Block: TypeAlias = "Sequence[Image.Image] | Tensor"
"""Some images: in RGB and of any size, or rendered in one size. [n, 3, h, w] uint8"""

T = TypeVar("T")
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
OnBadImage = Literal["error", "skip"]
Resizing = Literal["crop", "squash"]


class Picture(Protocol):
    """One image that lies somewhere, to be opened once."""

    @property
    def name(self) -> str:
        """What the user knows it by."""
        ...

    def identity(self) -> str:
        """Changes whenever the content may have changed; known without reading the content."""
        ...

    def open(self) -> Image.Image:
        """In RGB and upright.

        Raises:
            BadImage: with the reason.
        """
        ...


class LeftOut(NamedTuple):
    """A file that is not among the images, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A collection before its images are opened: pictures that lie somewhere, or blocks that are made on the spot."""

    name: str
    labels: Sequence[int]
    class_names: tuple[str, ...]
    template: str = "a photo of a {}."
    pictures: Sequence[Picture] = ()
    blocks: Callable[[], Iterator[Block]] | None = None  # in the order of the labels, made as they are asked for
    clients: Sequence[str] = ()  # who each image belongs to by nature; empty where nobody knows
    parts: Sequence[Part] = ()  # the official split of each image; empty where there is none
    ignored: Sequence[LeftOut] = ()  # files that were found and are not taken for images

    def without(self, indices: Collection[int]) -> Source:
        """The same collection less some of its pictures."""
        kept = [index for index in range(len(self.labels)) if index not in indices]
        return replace(
            self,
            labels=pick(self.labels, kept),
            pictures=pick(self.pictures, kept),
            clients=pick(self.clients, kept),
            parts=pick(self.parts, kept),
        )


def pick(values: Sequence[T], indices: Sequence[int]) -> list[T]:
    """The values at some places, or none where there are none."""
    return [values[index] for index in indices] if values else []
