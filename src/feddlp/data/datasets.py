"""Labelled images, wherever they come from, as one uint8 tensor at the size that the checkpoint reads.

    source   names a collection: "digits", "folder:PATH" (one sub-folder per class) or "glyphs:COUNT" (rendered)
    load     source + the checkpoint's own resizing  ->  Dataset with images [N, 3, H, W]

Adding a source is one function that returns a `Source`, entered in SOURCES.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from feddlp.data.glyphs import glyphs
from feddlp.data.source import Block, Source
from feddlp.errors import UserError, nearest

Resize = Callable[[Sequence[Image.Image]], Tensor]
"""RGB images of any size -> [n, 3, H, W] uint8; `Backbone.resize` is one."""

CHUNK = 256
PAPER_TEMPLATES = {
    "pets": "a photo of a {}, a type of pet.",
    "flowers": "a photo of a {}, a type of flower.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "a photo of a {} texture.",
}
"""The prompts of the paper's data sets (public code)."""
NOT_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}  # Pillow knows their names but has no decoder


@dataclass(frozen=True)
class Dataset:
    """Images at model size with their classes."""

    name: str
    images: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N] int64
    class_names: tuple[str, ...]
    template: str

    def fingerprint(self) -> str:
        """A digest of pixels, labels and names; a resumed run refuses data with another one."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.flatten().numpy().data)
        digest.update("\n".join((*self.class_names, self.template)).encode())
        return digest.hexdigest()


def digits(argument: str) -> Source:
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    if argument:
        raise UserError(f"data.dataset=digits takes no argument, found {argument!r}; write data.dataset=digits")
    bunch = load_digits()
    pictures = (bunch.images * (255 / 16)).round().astype(np.uint8)
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    openers = [partial(to_rgb, picture) for picture in pictures]
    return Source("digits", partial(in_chunks, openers), bunch.target.tolist(), names, "a photo of the digit {}.")


def folder(argument: str) -> Source:
    """folder:PATH, one sub-folder per class, images in any format that Pillow reads, nested folders included."""
    if not argument:
        raise UserError("data.dataset=folder needs a path; write data.dataset=folder:PATH")
    root = Path(argument).expanduser()
    classes = {path.name: list(image_files(path)) for path in list_folder(root) if path.is_dir()}
    if len(classes) < 2:
        raise UserError(
            f"data.dataset=folder:{argument} has {len(classes)} class folder(s), at least 2 are needed; "
            "put the images of each class in a sub-folder of its own"
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(
            f"data.dataset=folder:{argument} has {len(empty)} class(es) without an image: {', '.join(empty[:5])}; "
            "add images or remove the folder"
        )
    files = [file for files in classes.values() for file in files]
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    names = tuple(name.replace("_", " ").replace("-", " ") for name in classes)
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"data.dataset=folder:{argument} has class folders that differ only in '_' and '-' ({', '.join(twins)}), "
            "so their prompts would be alike; rename one of them"
        )
    openers = [partial(open_image, file) for file in files]
    return Source(root.resolve().name, partial(in_chunks, openers), labels, names)


SOURCES: dict[str, Callable[[str], Source]] = {"digits": digits, "folder": folder, "glyphs": glyphs}


def in_chunks(openers: Sequence[Callable[[], Image.Image]]) -> Iterator[list[Image.Image]]:
    """The images one after the other, a chunk in memory at a time."""
    for start in range(0, len(openers), CHUNK):
        yield [opened() for opened in openers[start : start + CHUNK]]


def to_rgb(pixels: np.ndarray) -> Image.Image:
    """A grey uint8 picture (H, W) in RGB."""
    return Image.fromarray(pixels).convert("RGB")


def list_folder(path: Path) -> list[Path]:
    """The visible entries, sorted by name; an unreadable folder is the user's error."""
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"data.dataset: cannot read the folder {path} ({error.strerror}); check the path and its permissions"
        ) from error


def image_files(path: Path) -> Iterator[Path]:
    """The files below a class folder whose extension belongs to a format that Pillow can open."""
    readable = {ext for ext, name in Image.registered_extensions().items() if name in Image.OPEN.keys() - NOT_PICTURES}
    for entry in list_folder(path):
        if entry.is_dir():
            if not entry.is_symlink():  # a link to a folder above would never end
                yield from image_files(entry)
        elif entry.suffix.lower() in readable:
            yield entry


def open_image(path: Path) -> Image.Image:
    """One image file, upright and in 8-bit RGB."""
    try:
        with Image.open(path) as image:
            return eight_bit(ImageOps.exif_transpose(image)).convert("RGB")
    except Exception as error:  # Pillow's decoders raise a dozen kinds for a damaged file
        raise UserError(f"data.dataset: cannot read the image {path} ({error}); repair or remove the file") from error


def eight_bit(image: Image.Image) -> Image.Image:
    """The same picture in a mode that converts to RGB without loss: 16 bits are scaled, where Pillow would clip."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        return Image.fromarray((pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def find(dataset: str) -> Source:
    """The source that `data.dataset` names.

    Raises:
        UserError: unknown name, or a collection that cannot be used.
    """
    kind, _, argument = dataset.partition(":")
    if kind not in SOURCES and Path(dataset).expanduser().is_dir():
        raise UserError(f"data.dataset={dataset} is a folder; write data.dataset=folder:{dataset}")
    if kind not in SOURCES:
        raise UserError(f"data.dataset={dataset} is not known; {nearest(kind, SOURCES)}")
    return SOURCES[kind](argument)


def load(source: Source, resize: Resize, progress: Callable[[int, int], None] = lambda done, total: None) -> Dataset:
    """Open and resize every image once, block by block, reporting (done, total) as it goes."""
    total, done = len(source.labels), 0
    images = torch.empty(0, dtype=torch.uint8)
    for block in source.blocks():
        pixels = at_model_size(block, resize)
        if not done:
            images = torch.empty(total, *pixels.shape[1:], dtype=torch.uint8)
        images[done : done + len(pixels)] = pixels
        done += len(pixels)
        progress(done, total)
    labels = torch.tensor(source.labels, dtype=torch.int64)
    return Dataset(source.name, images, labels, source.class_names, source.template)


def at_model_size(block: Block, resize: Resize) -> Tensor:
    """A block as the checkpoint resizes it. [n, 3, H, W] uint8

    Images of one size are all treated alike, so where the first is left as it is the others need not be asked for.
    """
    if not isinstance(block, Tensor):
        return resize(block)
    if torch.equal(resize(to_pictures(block[:1])), block[:1]):
        return block
    return resize(to_pictures(block))


def to_pictures(block: Tensor) -> list[Image.Image]:
    """Rendered pixels [n, 3, h, w] uint8 as RGB images."""
    return [Image.fromarray(pixels) for pixels in block.permute(0, 2, 3, 1).contiguous().numpy()]


def descriptions() -> dict[str, str]:
    """One line for each source, from its docstring."""
    return {name: (function.__doc__ or "").splitlines()[0] for name, function in SOURCES.items()}
