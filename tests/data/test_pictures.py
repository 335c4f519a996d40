"""Image files as people have them: each kind is read properly, or refused with its reason."""

from __future__ import annotations

import os
import random
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures_factory import COLOUR, KINDS, encoded, noise, picture, png_header, rotated, save
from PIL import Image

from feddlp.data import pictures
from feddlp.data.pictures import BadImage, PictureBytes, PictureFile, is_picture

FORMATS = ["png", "jpg", "jpeg", "gif", "bmp", "webp", "tiff", "tif", "ppm", "tga", "ico", "avif", "jp2"]


def open_image(path: Path) -> Image.Image:
    return PictureFile(path).open()


@pytest.fixture(autouse=True)
def permissions_count(monkeypatch) -> None:
    """Root may read everything; here nobody may read what nobody may read."""
    opened = os.open

    def refusing(path, *arguments, **options):
        if Path(path).exists() and not Path(path).stat().st_mode & 0o777:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)


# The corpus


@pytest.mark.filterwarnings("ignore")  # what Pillow remarks is kept quiet by `preparation`
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_or_refused_with_its_reason(kind, tmp_path, backbones):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    assert is_picture(path)
    if KINDS[kind].reason:
        with pytest.raises(BadImage, match=KINDS[kind].reason) as found:
            open_image(path)
        assert "\n" not in str(found.value)
    else:
        image = open_image(path)
        assert image.mode == "RGB"
        assert backbones["image"].resize([image]).shape == (1, 3, 32, 32)


def test_the_corpus_is_large_enough():
    assert len(KINDS) >= 25
    assert sum(bool(kind.reason) for kind in KINDS.values()) >= 20


def test_damaged_exif_data_do_not_cost_the_picture(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg")
    monkeypatch.setattr(pictures.ImageOps, "exif_transpose", lambda image: 1 / 0)
    assert np.asarray(open_image(path)).mean((0, 1)) == pytest.approx(COLOUR, abs=6)


def test_a_bomb_is_refused_before_its_pixels_are_asked_for(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("loaded"))
    for width, height in ((60_000, 60_000), (300, 1)):
        with pytest.raises(BadImage):
            PictureBytes("bomb", png_header(width, height)).open()


def test_the_identity_changes_with_content_place_and_permission(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    seen = {PictureFile(path).identity()}
    assert seen == {PictureFile(path).identity()}
    save(path, noise())
    seen.add(PictureFile(path).identity())
    path.rename(tmp_path / "b.png")
    seen |= {PictureFile(path).identity(), PictureFile(tmp_path / "b.png").identity()}
    monkeypatch.setattr(pictures.os, "access", lambda *_: False)
    seen.add(PictureFile(tmp_path / "b.png").identity())
    assert len(seen) == 5


def test_two_files_of_equal_size_and_time_that_change_places_are_noticed(tmp_path):
    paths = [save(tmp_path / f"{name}.bmp", picture((0, 0, shade))) for name, shade in (("a", 1), ("b", 2))]
    for path in paths:
        pictures.os.utime(path, (0, 0))
    before = [PictureFile(path).identity() for path in paths]
    paths[0].rename(tmp_path / "c.bmp")
    paths[1].rename(paths[0])
    (tmp_path / "c.bmp").rename(paths[1])
    assert paths[0].stat().st_size == paths[1].stat().st_size
    assert not {PictureFile(path).identity() for path in paths} & set(before)


def test_a_file_that_is_written_over_with_its_old_size_and_time_is_noticed(tmp_path):
    path = save(tmp_path / "a.bmp", picture((0, 0, 1)))
    pictures.os.utime(path, (0, 0))
    before = PictureFile(path).identity()
    time.sleep(0.02)  # file systems keep time in ticks
    path.write_bytes(encoded("BMP", picture((0, 0, 2))))
    pictures.os.utime(path, (0, 0))
    assert PictureFile(path).identity() != before


def test_what_is_no_path_at_all_is_a_picture_that_cannot_be_read():
    picture = PictureFile(Path("a\0b.png"))
    assert picture.identity() == picture.identity()
    with pytest.raises(BadImage, match="null"):
        picture.open()


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", b"BM is a bookmark"), ("weights.pt", b"PK\3\4" + bytes(99)), ("Makefile", b"")]
)
def test_other_files_are_no_pictures(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert not is_picture(tmp_path / name)


def test_a_pipe_without_an_extension_is_not_waited_for(tmp_path):
    pictures.os.mkfifo(tmp_path / "pipe")
    assert not is_picture(tmp_path / "pipe")


# Formats and modes


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_keeps_its_colours(tmp_path, extension):
    for name in (f"a.{extension}", f"A.{extension.upper()}"):
        image = open_image(save(tmp_path / name))
        assert image.mode == "RGB"
        assert np.asarray(image).mean((0, 1)) == pytest.approx(COLOUR, abs=6)


@pytest.mark.parametrize(
    ("extension", "modes"),
    [
        ("png", ["1", "L", "LA", "P", "RGBA", "I;16"]),
        ("jpg", ["1", "L", "RGBX", "CMYK", "YCbCr"]),
        ("tiff", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16"]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, extension, modes):
    for mode in modes:
        image = picture((255, 255, 255))
        image = Image.fromarray(np.full((16, 24), 65535, np.uint16)) if mode == "I;16" else image.convert(mode)
        opened = open_image(save(tmp_path / f"a.{extension}", image))
        assert opened.mode == "RGB"
        assert opened.size == (24, 16)
        assert np.asarray(opened).min() >= 254, mode


def test_a_sixteen_bit_grey_image_keeps_its_shades(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    opened = open_image(save(tmp_path / "a.png", Image.fromarray(ramp)))
    assert np.asarray(opened)[0, :, 0].tolist() == pytest.approx(range(256), abs=1)


def tiff(order: str, bits: int, pixels: np.ndarray, photometric: int = 1, **tags: int) -> bytes:
    """A grey TIFF, uncompressed."""
    end = "<" if order == "II" else ">"
    if bits in (16, 32):
        data = pixels.astype(f"{end}u{bits // 8}").tobytes()
    else:
        rows = ["".join(format(value, f"0{bits}b") for value in row) for row in pixels]
        data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    height, width = pixels.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    fields |= {int(tag[1:]): value for tag, value in tags.items()}
    entries = [struct.pack(f"{end}HHI", tag, 4, 1) + struct.pack(f"{end}I", fields[tag]) for tag in sorted(fields)]
    directory = struct.pack(f"{end}H", len(entries)) + b"".join(entries) + bytes(4)
    return order.encode() + struct.pack(f"{end}HI", 42, 8 + len(data)) + data + directory


def grey(content: bytes) -> list[int]:
    """The first row of an image as it is read."""
    return np.asarray(PictureBytes("a", content).open())[0, :, 0].tolist()


@pytest.mark.parametrize(("order", "bits"), [("II", 1), ("MM", 4), ("II", 8), ("II", 12), ("II", 16), ("MM", 16)])
def test_grey_is_scaled_by_the_depth_that_the_file_declares(order, bits):
    top = 2**bits - 1
    for brightest in (top, top // 2):  # whatever the image itself holds
        pixels = np.array([[0, brightest // 2, brightest, 0] * 4])
        assert grey(tiff(order, bits, pixels))[:3] == pytest.approx(pixels[0, :3] * 255 / top, abs=1)


@pytest.mark.parametrize(("order", "bits"), [("II", 1), ("MM", 4), ("II", 4), ("II", 8), ("MM", 8), ("II", 16)])
def test_white_is_zero_is_inverted_at_every_depth(order, bits):
    pixels = np.array([[0, 2**bits - 1] * 8])
    assert grey(tiff(order, bits, pixels, photometric=0))[:2] == [255, 0]


@pytest.mark.parametrize("statistics", [{"t281": 2000}, {"t341": 2000}, {"t280": 500, "t281": 2000}])
def test_statistics_of_one_image_change_nothing(statistics):
    pixels = np.array([[0, 500, 1000, 2000] * 4])
    assert grey(tiff("II", 16, pixels, **statistics)) == grey(tiff("II", 16, pixels))


@pytest.mark.parametrize(
    ("bits", "tags"), [(32, {}), (16, {"t339": 2}), (8, {"t339": 2}), (32, {"t339": 3}), (32, {"t339": 2})]
)
def test_grey_of_no_fixed_range_is_refused(bits, tags):
    with pytest.raises(BadImage, match="no fixed range; convert"):
        grey(tiff("II", bits, np.full((4, 16), 100), **tags))


@pytest.mark.parametrize("values", [(199, 899, 3499), (3499, 199, 65535), (100, 200, 255)])
def test_the_brightest_of_several_images_comes_out_brightest(values):
    shades = {}
    for value in values:
        ramp = np.linspace(0, value, 256).astype(np.uint16)[None].repeat(8, 0)
        for kind in ("PNG", "TIFF", "JPEG2000"):
            image = PictureBytes("a", encoded(kind, Image.fromarray(ramp))).open()
            shades.setdefault(kind, []).append(int(np.asarray(image).max()))
    for found in shades.values():
        assert sorted(zip(values, found, strict=True)) == sorted(zip(sorted(values), sorted(found), strict=True))
        assert found == pytest.approx([value / 257 for value in values], abs=1)


def test_a_pgm_is_scaled_by_its_own_largest_value():
    for top in (1023, 4095, 65535):
        assert grey(b"P5 3 1 %d\n" % top + struct.pack(">HHH", 0, top // 2, top)) == pytest.approx([0, 127, 255], abs=1)


def test_an_open_image_of_16_bits_is_scaled_as_its_file_is():
    image = Image.fromarray(np.full((4, 4), 255, np.uint16))
    assert np.asarray(pictures.to_rgb(image)).max() == 0
    with pytest.raises(BadImage, match="no fixed range"):
        pictures.to_rgb(Image.fromarray(np.full((4, 4), 255, np.int32)))


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_a_palette_with_transparent_colours_is_read_without_a_warning(tmp_path, extension):
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    path = save(tmp_path / f"a.{extension}", image, transparency=bytes([255, 128, 0]) if extension == "png" else 1)
    assert np.asarray(open_image(path)).mean((0, 1)) == pytest.approx(COLOUR, abs=1)


def test_a_moving_picture_gives_its_first_frame(tmp_path):
    frames = [picture(), picture((0, 0, 0))]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(path)).mean((0, 1)) == pytest.approx(COLOUR, abs=6)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
def test_a_rotated_photo_is_turned_upright(tmp_path, extension):
    image = picture((250, 0, 0), (32, 16))
    image.paste((0, 0, 250), (16, 0, 32, 16))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing
    opened = open_image(save(tmp_path / f"a.{extension}", image, exif=exif))
    assert opened.size == (16, 32)
    pixels = np.asarray(opened).astype(int)
    assert pixels[4, 8, 0] > pixels[4, 8, 2]  # red is on top
    assert pixels[28, 8, 0] < pixels[28, 8, 2]


def small(extension: str) -> bytes:
    options = {"exif": rotated()} if extension in ("png", "jpg", "webp", "tif", "avif") else {}
    return encoded(Image.registered_extensions()[f".{extension}"], noise((17, 13)), **options)


def outcome(path: Path) -> str:
    """The opened image's mode, or why there is none."""
    try:
        return open_image(path).mode
    except BadImage as error:
        return f"refused: {error}"


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "webp", "tif", "ico", "avif", "jp2"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), cut=st.booleans())
def test_any_damage_gives_an_image_or_a_reason(tmp_path, extension, seed, cut):
    content, chance = bytearray(small(extension)), random.Random(seed)
    if cut:
        del content[chance.randrange(len(content)) :]
    else:
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    path = tmp_path / f"damaged.{extension}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's notes on what it could still make of the file
        assert outcome(path) == "RGB" or len(outcome(path)) > len("refused: ")
