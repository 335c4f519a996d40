"""Labelled images, wherever they come from, as one uint8 tensor at the size that the checkpoint reads.

    source   names a collection: "digits", "folder:PATH", "csv:FILE", "pets:PATH", ...
    load     source + the checkpoint's own resizing  ->  Dataset with images [N, 3, H, W]

Adding a source is one function that returns a `Source`, entered in SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feddlp.data.csv_tables import table
from feddlp.data.folders import clients, folder, one_client
from feddlp.data.hub_images import hub
from feddlp.data.paper_sets import PAPER_SETS
from feddlp.data.pictures import PictureFile
from feddlp.data.preparation import CHUNK, Pixels, Prepare, Progress, Resize, in_memory, pixel_hash
from feddlp.data.source import LeftOut, OnBadImage, Part, Source
from feddlp.errors import UserError, counted, nearest
from feddlp.names import is_text

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images at model size with their classes."""

    name: str
    images: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N] int64
    class_names: tuple[str, ...]
    template: str
    clients: Sequence[str] = ()  # N, or none
    parts: Sequence[Part] = ()  # N, or none
    left_out: Sequence[LeftOut] = ()  # images that could not be read
    known_hash: Hash | None = None  # of the pixels, where somebody has computed it

    def fingerprint(self) -> str:
        """A digest of pixels, labels and names; a resumed run refuses data with another one."""
        digest = (self.known_hash or pixel_hash(self.images)).copy()
        digest.update(self.labels.numpy().data)
        digest.update("\n".join((*self.class_names, self.template)).encode(errors="surrogatepass"))
        return digest.hexdigest()


def digits(argument: str) -> Source:
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    if argument:
        raise UserError(f"data.dataset=digits takes no argument, found {argument!r}; write data.dataset=digits")
    bunch = load_digits()
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def blocks() -> Iterator[Tensor]:
        import torch

        grey = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))
        for start in range(0, len(grey), CHUNK):
            yield grey[start : start + CHUNK, None].expand(-1, 3, -1, -1)

    return Source("digits", bunch.target.tolist(), names, "a photo of the digit {}.", blocks=blocks)


def glyphs(argument: str) -> Source:
    """glyphs:COUNT, rendered digits, letters and signs for tests of speed and scale; tiny-clip has learnt from such."""
    from feddlp.data.glyphs import rendered

    return rendered(argument)


SEVERAL = {"folder": folder, "clients": clients, "csv": table}  # at least 2 classes, unless a site's own
SOURCES: dict[str, Callable[[str], Source]] = {
    "digits": digits,
    **SEVERAL,
    "hub": hub,
    **PAPER_SETS,
    "glyphs": glyphs,
}
FROM_DISK = (*SEVERAL, *PAPER_SETS)  # sources that are a path
CHECKED = SOURCES | {kind: partial(source, least=1) for kind, source in SEVERAL.items()}  # one class is enough
OWN = CHECKED | {"folder": one_client}


def find(dataset: str, sources: Mapping[str, Callable[[str], Source]] = SOURCES) -> Source:
    """The source that `data.dataset` names; of CHECKED or OWN instead of SOURCES where one class is enough.

    Raises:
        UserError: unknown name, or a collection that cannot be used.
    """
    kind, _, argument = dataset.partition(":")
    if kind not in SOURCES:
        fault = f"is not known, and there is no such folder or file; {nearest(kind, SOURCES)}"
        if Path(dataset).expanduser().exists():
            fault = "is a file; expected is a folder with one sub-folder per class, or a CSV file as csv:FILE"
        if Path(dataset).expanduser().is_dir():
            fault = f"is a folder; write data.dataset=folder:{dataset}"
        raise UserError(f"data.dataset={dataset} {fault}")
    return checked(sources[kind](argument))


find_own = partial(find, sources=OWN)  # what a site has, be it of one class only; a plain folder is one client's


def checked(source: Source) -> Source:
    """A source in which each file counts once, by whatever links and paths it is reached; the others are listed.

    Raises:
        UserError: a file that is of two classes, clients or splits, or a name that is no text.
    """
    if garbled := [name for name in (*source.class_names, *set(source.clients)) if not is_text(name)]:
        raise UserError(f"data.dataset has the client or class name {garbled[0]!r}, which is not UTF-8; rename it")
    first: dict[object, int] = {}
    again: dict[int, LeftOut] = {}
    about = [source.class_names[label] for label in source.labels], source.clients, source.parts
    for index, picture in enumerate(source.pictures):
        if not isinstance(picture, PictureFile) or (one := first.setdefault(picture.place(), index)) == index:
            continue
        other = source.pictures[one].name
        if differs := [(table[one], table[index]) for table in about if table and table[one] != table[index]]:
            raise UserError(
                f"data.dataset: {other} and {picture.name} are the same file, once under {differs[0][0]!r} and once "
                f"under {differs[0][1]!r}; keep one of them, or make a copy"
            )
        again[index] = LeftOut(picture.name, f"the same file as {other}")
    return replace(source.without(again), ignored=[*source.ignored, *again.values()]) if again else source


def load(
    source: Source,
    resize: Resize,
    progress: Progress = lambda done, total: None,
    *,
    prepare: Prepare = in_memory,
    on_bad_image: OnBadImage = "error",
) -> Dataset:
    """Every image at model size, reporting (done, total) as it goes.

    Args:
        prepare: where the pixels of pictures come from: opened now, or out of a cache.
        on_bad_image: whether pictures that cannot be read are an error or left out.

    Raises:
        UserError: pictures that cannot be read, or a class that has no others.
    """
    import torch

    pixels = render(source, resize, progress) if source.blocks else prepare(source.pictures, resize, progress)
    left_out = [LeftOut(source.pictures[index].name, reason) for index, reason in pixels.bad]
    if left_out and on_bad_image == "error":
        raise UserError(
            f"data.dataset: {len(left_out)} of {len(source.labels):,} images cannot be read, the first one is "
            f"{left_out[0].name} ({left_out[0].reason}); repair, remove or skip them (data.on_bad_image=skip; for "
            "feddlp evaluate --on-bad-image skip)"
        )
    kept = source.without({index for index, _ in pixels.bad}) if left_out else source
    if empty := [source.class_names[label] for label in sorted(set(source.labels) - set(kept.labels))]:
        raise UserError(
            f"data.on_bad_image=skip leaves {counted(len(empty), 'class')} without an image: {', '.join(empty[:5])}; "
            "add images that can be read or remove the class"
        )
    labels, about = torch.tensor(kept.labels, dtype=torch.int64), (source.class_names, source.template)
    return Dataset(source.name, pixels.images, labels, *about, kept.clients, kept.parts, left_out, pixels.hash)


def render(source: Source, resize: Resize, progress: Progress) -> Pixels:
    """The images of a source that makes them on the spot."""
    import torch

    total, done = len(source.labels), 0
    images = torch.empty(0, dtype=torch.uint8)
    for block in source.blocks() if source.blocks else ():
        # Images of one size are all treated alike: where the first is left as it is, the others need not be resized.
        unchanged = resize(to_pictures(block[:1])).equal(block[:1])
        pixels = block if unchanged else resize(to_pictures(block))
        if not done:
            images = torch.empty(total, *pixels.shape[1:], dtype=torch.uint8)
        images[done : done + len(pixels)] = pixels
        done += len(pixels)
        progress(done, total)
    return Pixels(images, (), pixel_hash(images))


def to_pictures(block: Tensor) -> list[Image.Image]:
    """Rendered pixels [n, 3, h, w] uint8 as RGB images."""
    return [Image.fromarray(pixels) for pixels in block.permute(0, 2, 3, 1).contiguous().numpy()]


def descriptions() -> dict[str, str]:
    """One line for each source, from its docstring."""
    return {name: (function.__doc__ or "").splitlines()[0] for name, function in SOURCES.items()}
