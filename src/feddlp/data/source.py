"""What a data set is before its images are opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

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
    blocks: Callable[[], Iterator[Tensor]] | None = None  # as asked for, in the order of labels [n, 3, h, w] uint8
    clients: Sequence[str] = ()  # who each image belongs to by nature; empty where nobody knows
    parts: Sequence[Part] = ()  # the official split of each image; empty where there is none
    ignored: Sequence[LeftOut] = ()  # files that were found and are not taken for images

    def without(self, indices: Collection[int]) -> Source:
        """The same collection less some of its pictures."""
        kept = [index for index in range(len(self.labels)) if index not in indices]
        columns: dict[str, Any] = {name: getattr(self, name) for name in ("labels", "pictures", "clients", "parts")}
        columns = {name: [values[index] for index in kept] if values else () for name, values in columns.items()}
        return replace(self, **columns)
