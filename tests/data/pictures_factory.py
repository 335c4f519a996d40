"""Pictures for the tests: plain ones, and a corpus of files as people have them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

COLOUR = (200, 40, 90)


def resize(images: Sequence[Image.Image]) -> torch.Tensor:
    """A stand-in for the checkpoint's own: 4 x 4 pixels."""
    arrays = [np.asarray(image.resize((4, 4), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def picture(colour: tuple[int, int, int] = COLOUR, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def make_photos(root: Path) -> Path:
    """Two classes with two images each."""
    for number, name in enumerate(["cat", "dog"]):
        for file in ("a.png", "b.png"):
            save(root / name / file, picture((number * 200, 0, 0)))
    return root


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and brings none."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")


def with_broken_checksum() -> bytes:
    content = bytearray(encoded("PNG", noise()))
    content[content.index(b"IDAT") + 20] ^= 0xFF
    return bytes(content)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def content(value: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(value) and None


def image(pixels: Image.Image | Callable[[], Image.Image], **options: object) -> Callable[[Path], None]:
    return lambda path: (pixels() if callable(pixels) else pixels).save(path, **options)


def locked(path: Path) -> None:
    save(path).chmod(0)


class Kind(NamedTuple):
    """A file as people have it."""

    name: str
    make: Callable[[Path], object]
    reason: str = ""  # part of why it cannot be read; empty where it must be read


def grey16() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0))


def moving() -> dict[str, object]:
    return {"save_all": True, "append_images": [picture((0, 0, 0)), picture((9, 9, 9))]}


KINDS = {
    "empty": Kind("a.jpg", content(b""), "the file is empty"),
    "zeros": Kind("a.jpg", content(bytes(5000)), "begins with zeros"),
    "one byte": Kind("a.jpg", content(b"\xff"), "no image format fits"),
    "random bytes": Kind("a.png", content(np.random.RandomState(1).bytes(3000)), "no image format fits"),
    "text": Kind("a.jpg", content(b"this is not an image"), "no image format fits"),
    "web page": Kind("a.jpg", content(b"\n<!DOCTYPE html><html>404</html>"), "a web page"),
    "git lfs pointer": Kind("a.png", content(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "drawing": Kind("a.svg", content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "a drawing"),
    "postscript": Kind("a.eps", content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "PostScript"),
    "phone heic": Kind("a.heic", content(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90)), "HEIC"),
    "film": Kind("a.jpg", content(b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(90)), "a film"),
    "truncated jpeg": Kind("a.jpg", content(encoded("JPEG", noise())[:-300]), "truncated"),
    "truncated png": Kind("a.png", content(encoded("PNG", noise())[:-900]), "truncated|broken"),
    "truncated webp": Kind("a.webp", content(encoded("WEBP", noise())[:-200]), "WEBP|webp|decode|no image"),
    "truncated gif": Kind("a.gif", content(encoded("GIF", noise())[:-900]), "truncated"),
    "header only": Kind("a.png", content(encoded("PNG")[:8]), "."),
    "broken checksum": Kind("a.png", content(with_broken_checksum()), "."),
    "bomb": Kind("a.png", content(png_header(60_000, 60_000)), "exceeds limit"),
    "no width": Kind("a.png", content(png_header(0, 5)), "."),
    "strip": Kind("a.png", image(lambda: picture(size=(3000, 2))), "more than 200 times"),
    "float pixels": Kind("a.tiff", image(lambda: Image.new("F", (9, 9), 0.5)), "floating-point"),
    "32-bit pixels": Kind("a.tiff", image(lambda: Image.new("I", (9, 9), 1 << 20)), "32-bit"),
    "no permission": Kind("a.png", locked, "Permission denied"),
    "link to nothing": Kind("a.png", lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "link to itself": Kind("a.png", lambda path: path.symlink_to(path.name), "symbolic links"),
    "pipe": Kind("a.png", os.mkfifo, "not a regular file"),
    "jpeg called png": Kind("a.png", content(encoded("JPEG"))),
    "png called jpg": Kind("a.JPG", content(encoded("PNG"))),
    "webp called jpeg": Kind("a.jpeg", content(encoded("WEBP"))),
    "no extension": Kind("photograph", content(encoded("JPEG"))),
    "odd extension": Kind("a.jpg_large", content(encoded("JPEG"))),
    "bytes after the end": Kind("a.jpg", content(encoded("JPEG") + b"extra" * 99)),
    "cmyk": Kind("a.jpg", image(lambda: picture().convert("CMYK"))),
    "palette": Kind("a.png", image(lambda: picture().convert("P"))),
    "transparent palette": Kind("a.gif", image(lambda: picture().convert("P"), transparency=1)),
    "alpha": Kind("a.png", image(lambda: Image.new("RGBA", (9, 9), (*COLOUR, 30)))),
    "grey and alpha": Kind("a.png", image(lambda: Image.new("LA", (9, 9), (90, 30)))),
    "bilevel": Kind("a.png", image(lambda: Image.new("1", (9, 9), 1))),
    "16 bits": Kind("a.png", image(grey16)),
    "lab": Kind("a.tiff", image(lambda: Image.new("LAB", (9, 9), (90, 30, 20)))),
    "rotated": Kind("a.jpg", image(picture, exif=rotated())),
    "damaged exif": Kind("a.jpg", image(picture, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff")),
    "moving gif": Kind("a.gif", image(picture, **moving())),
    "moving png": Kind("a.png", image(picture, **moving())),
    "moving webp": Kind("a.webp", image(picture, **moving())),
    "multi-page tiff": Kind("a.tiff", image(picture, **moving())),
    "one pixel": Kind("a.png", image(lambda: picture(size=(1, 1)))),
    "progressive": Kind("a.jpg", image(noise, progressive=True)),
    "large": Kind("a.png", image(lambda: Image.new("1", (10_000, 9_500)))),
    "unicode name": Kind("größe 猫 🐈\u202e.png", image(picture)),
    "name with a newline": Kind("a\nb.png", image(picture)),
    "name that is no text": Kind(os.fsdecode(b"caf\xe9.png"), image(picture)),
    "long name": Kind("a" * 250 + ".png", image(picture)),
}
