"""Image files as people have them: read properly, or refused with a reason.

The content decides, not the name: a PNG called photo.jpg is read, a web page called photo.jpg is refused. Alpha is
dropped, as CLIP's own preprocessing does; of several frames the first counts. Deep grey is scaled to 8 bits by the
depth that the file declares, never by what one image happens to hold, and refused where that depth says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from feddlp.files import open_regular

Image.init()
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}  # Pillow knows their names but has no decoder
PROGRAMS = {"EPS"}  # opened by running another program
FORMATS = tuple(sorted(Image.OPEN.keys() - STUBS - PROGRAMS))
READABLE = frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
FOREIGN = frozenset(
    (".heic", ".heif", ".jxl", ".svg", ".eps", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
)
"""Pictures all the same, so that they are not passed over in silence."""
RECOGNISED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")  # by their first bytes alone

BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the image; fetch it with: git lfs pull",
    b"<!doctype html": "a web page, not an image",
    b"<html": "a web page, not an image",
    b"<svg": "a drawing (SVG), not pixels; convert it to PNG",
    b"%!ps": "PostScript, not pixels; convert it to PNG",
}
IN_16_BITS = ("PNG", "PPM")  # their grey is of 16 bits at most where Pillow hands out 32
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
LONGEST_RATIO = 200  # the checkpoint scales the shorter side up to its size, and the longer one with it


class BadImage(Exception):  # noqa: N818 - it is a finding about a file
    """An image that cannot be read; the text is the reason."""


@dataclass(frozen=True)
class PictureFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def place(self) -> object:
        """Equal for all links and paths that lead to one file."""
        with suppress(OSError, ValueError):  # no file has a NUL in its name
            status = self.path.stat()
            if status.st_ino:  # some file systems have no such number
                return status.st_dev, status.st_ino
        return str(self.path.absolute())

    def identity(self) -> str:
        """Place, which file lies there, size, times of change, and whether it may be read.

        Copying and unpacking set the time of the last change to that of the original; nobody sets the status change's.
        """
        place = self.path.absolute()
        try:
            status = place.stat()
        except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
            return f"{place} {error}"
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        return f"{place} {status.st_ino} {status.st_size} {times} {os.access(self.path, os.R_OK)}"

    def open(self) -> Image.Image:
        try:
            with open_regular(self.path) as file:
                return read_rgb(file)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error
        except ValueError as error:
            raise BadImage(f"not a path: {error}") from error


@dataclass(frozen=True)
class PictureBytes:
    """An image that lies in memory."""

    name: str
    content: bytes

    def identity(self) -> str:
        return self.name

    def open(self) -> Image.Image:
        return read_rgb(BytesIO(self.content))


def read_rgb(file: BinaryIO) -> Image.Image:
    """The image in an open file, upright and in 8-bit RGB.

    Raises:
        BadImage: with the reason.
    """
    beginning = file.read(64)
    file.seek(0)
    try:
        with decoding(), Image.open(file, formats=FORMATS) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise BadImage(not_an_image(beginning)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has recognised, upright and in 8-bit RGB.

    Raises:
        BadImage: with the reason.
    """
    with decoding():
        check_size(*image.size)
        grey = declared(image)  # a copy no longer knows its file
        image.load()
        return eight_bit(upright(image), *grey).convert("RGB")


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever Pillow's decoders raise for a damaged file, a dozen kinds, becomes a BadImage."""
    try:
        yield
    except (BadImage, UnidentifiedImageError):
        raise
    except Exception as error:
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def not_an_image(beginning: bytes) -> str:
    """What a file is that no decoder knows, from its first bytes."""
    if not beginning:
        return "the file is empty"
    if not any(beginning):
        return "it begins with zeros, as files do whose copy broke off"
    if beginning[4:8] == b"ftyp":
        return "HEIC or a film; convert it to JPEG"
    start = beginning.lstrip().lower()
    return next((text for bytes_, text in BEGINNINGS.items() if start.startswith(bytes_)), "no image format fits it")


def check_size(width: int, height: int) -> None:
    """Refuse a strip; Pillow itself refuses what is huge (decompression bombs)."""
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise BadImage(f"{width} x {height} pixels; one side is more than {LONGEST_RATIO} times the other")


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; where these are damaged, as it lies."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are already read, and well
        return image


def declared(image: Image.Image) -> tuple[int, bool]:
    """Bits of deep grey, and whether 0 is white; what else TIFF says of values (MaxSampleValue, ...) is statistics.

    Raises:
        BadImage: pixels whose format does not say which value is black and which one white.
    """
    if image.mode == "F":
        raise BadImage("floating-point pixels have no fixed range; convert them to 16 bits")
    tags = getattr(image, "tag_v2", {})
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2 or (image.format == "FITS" and image.mode != "L")
    if signed or (image.mode == "I" and image.format not in IN_16_BITS):
        raise BadImage("32-bit or signed pixels have no fixed range; convert them to unsigned 16 bits")
    return tags.get(BITS_PER_SAMPLE, (16,))[0], tags.get(PHOTOMETRIC) == 0


def eight_bit(image: Image.Image, bits: int, white_is_zero: bool) -> Image.Image:
    """The same picture in a mode that converts to RGB without loss; Pillow would clip deep grey."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        scaled = Image.fromarray((pixels >> (bits - 8)).clip(0, 255).astype(np.uint8))
        scaled.info["brightest"] = int(pixels.max())  # for `data check`
        return ImageOps.invert(scaled) if white_is_zero else scaled
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def is_picture(path: Path) -> bool:
    """By its name, or else by its first bytes; one by its name may still turn out to be unreadable."""
    if path.suffix.lower() in READABLE | FOREIGN:
        return True
    with suppress(Exception), open_regular(path) as file:
        Image.open(file, formats=RECOGNISED).close()
        return True
    return False
