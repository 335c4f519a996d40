"""Labelled images: the digits, and folders as people really have them."""

from __future__ import annotations

import io
import os
import random
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from feddlp.data import datasets
from feddlp.data.datasets import Dataset, descriptions, find, load, open_image
from feddlp.errors import UserError

COLOUR = (200, 40, 90)
FORMATS = ["png", "jpg", "jpeg", "gif", "bmp", "webp", "tiff", "tif", "ppm", "tga", "ico", "avif", "jp2"]


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


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes with two images each."""
    for number, name in enumerate(["cat", "dog"]):
        for file in ("a.png", "b.png"):
            save(tmp_path / "photos" / name / file, picture((number * 200, 0, 0)))
    return tmp_path / "photos"


def load_folder(path: Path) -> Dataset:
    return load(find(f"folder:{path}"), resize)


# Digits


def test_the_digits_are_what_they_are(digits):
    assert digits.images.shape == (1797, 3, *digits.images.shape[2:])
    assert digits.images.dtype == torch.uint8
    assert digits.labels.dtype == torch.int64
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.class_names[7] == "seven"
    assert digits.template.format(digits.class_names[0]) == "a photo of the digit zero."


def test_the_digits_are_grey_and_use_all_brightnesses():
    images = load(find("digits"), lambda pictures: resize([p.resize((4, 4), 0) for p in pictures])).images
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.min() == 0
    assert images.max() == 255


def test_the_digits_take_no_argument():
    with pytest.raises(UserError, match=r"data\.dataset=digits takes no argument, found 'x'"):
        find("digits:x")


# Folders


def test_sub_folders_are_classes_in_the_order_of_their_names(photos):
    save(photos / "ape" / "z.png", picture((0, 255, 0)))
    dataset = load_folder(photos)
    assert dataset.name == "photos"
    assert dataset.class_names == ("ape", "cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1, 2, 2]
    assert dataset.images.shape == (5, 3, 4, 4)
    assert dataset.images[:, :, 0, 0].tolist() == [[0, 255, 0], [0, 0, 0], [0, 0, 0], [200, 0, 0], [200, 0, 0]]


def test_the_checkpoint_resizes_a_folder(photos, backbones):
    save(photos / "cat" / "wide.png", picture(size=(200, 30)))
    dataset = load(find(f"folder:{photos}"), backbones["image"].resize)
    height, width = dataset.images.shape[2:]
    assert dataset.images.shape == (5, 3, height, width)
    assert dataset.images.dtype == torch.uint8
    assert dataset.images[2].float().mean((1, 2)).round().tolist() == list(COLOUR)


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_keeps_its_colours(tmp_path, extension):
    for name in (f"a.{extension}", f"A.{extension.upper()}"):
        image = open_image(save(tmp_path / name))
        assert image.mode == "RGB"
        assert np.asarray(image).mean((0, 1)) == pytest.approx(COLOUR, abs=6)


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_is_found_in_a_folder(photos, extension):
    save(photos / "cat" / f"c.{extension.upper()}")
    assert load_folder(photos).labels.tolist() == [0, 0, 0, 1, 1]


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


def test_nested_folders_belong_to_their_class(photos):
    save(photos / "cat" / "2023" / "june" / "c.png")
    save(photos / "cat" / "2024" / "d.jpg")
    assert load_folder(photos).labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_hidden_and_other_files_are_left_alone(photos):
    save(photos / ".git" / "a.png")
    save(photos / "cat" / ".thumbnails" / "a.png")
    save(photos / "cat" / ".hidden.png")
    save(photos / "lonely.png")
    for name in ("README.md", "Thumbs.db", "labels.csv", "cat/notes.txt", "cat/weights.pt", "cat/no_extension"):
        (photos / name).write_text("no image")
    dataset = load_folder(photos)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.labels) == 4


def test_names_in_any_script(photos):
    save(photos / "größe 猫" / "ein Bild – 🐈.png")
    assert load_folder(photos).class_names == ("cat", "dog", "größe 猫")


@pytest.mark.parametrize(
    ("folder", "name"), [("polka_dotted", "polka dotted"), ("maple-tree_leaf", "maple tree leaf"), ("7", "7")]
)
def test_class_names_are_made_readable(photos, folder, name):
    save(photos / folder / "a.png")
    assert name in load_folder(photos).class_names


def test_a_home_folder_may_be_written_short(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(load_folder(Path("~/photos")).labels) == 4


def test_linked_classes_are_followed(photos, tmp_path):
    save(tmp_path / "elsewhere" / "a.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    assert "linked" in load_folder(photos).class_names


def test_images_are_opened_in_chunks_with_their_progress(photos, monkeypatch):
    monkeypatch.setattr(datasets, "CHUNK", 3)
    seen = []
    load(find(f"folder:{photos}"), resize, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]


def test_no_image_is_held_twice(photos, monkeypatch):
    monkeypatch.setattr(datasets, "CHUNK", 1)
    resized = []

    def remembered(images: Sequence[Image.Image]) -> torch.Tensor:
        resized.append(weakref.ref(pixels := resize(images)))
        return pixels

    alive = []
    load(find(f"folder:{photos}"), remembered, lambda *_: alive.append(sum(chunk() is not None for chunk in resized)))
    assert alive == [1, 1, 1, 1]


def test_naming_a_folder_opens_no_image(photos):
    (photos / "cat" / "broken.png").write_bytes(b"nothing")
    assert find(f"folder:{photos}").labels == [0, 0, 0, 1, 1]


# Errors


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.dataset: cannot read the folder .*nowhere \(No such file"):
        find(f"folder:{tmp_path / 'nowhere'}")


def test_a_file_is_no_folder(photos):
    with pytest.raises(UserError, match=r"cannot read the folder .*a\.png \(Not a directory\)"):
        find(f"folder:{photos / 'cat' / 'a.png'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("part", ["", "cat"])
def test_an_unreadable_folder_is_named(photos, part):
    (photos / part).chmod(0)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            find(f"folder:{photos}")
    finally:
        (photos / part).chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_image_is_named(photos):
    (photos / "dog" / "b.png").chmod(0)
    with pytest.raises(UserError, match=r"dog/b\.png .*Permission denied"):
        load_folder(photos)


def test_a_folder_needs_a_path():
    for name in ("folder", "folder:"):
        with pytest.raises(UserError, match="folder:PATH"):
            find(name)


def test_one_class_is_not_enough(photos):
    with pytest.raises(UserError, match="0 class folder"):
        find(f"folder:{photos / 'cat'}")
    for file in (photos / "dog").iterdir():
        file.unlink()
    (photos / "dog").rmdir()
    with pytest.raises(UserError, match=r"1 class folder.* at least 2"):
        find(f"folder:{photos}")


def test_classes_without_images_are_named(photos):
    (photos / "empty").mkdir()
    (photos / "notes").mkdir()
    (photos / "notes" / "a.txt").write_text("no image")
    with pytest.raises(UserError, match=r"2 class\(es\) without an image: empty, notes"):
        find(f"folder:{photos}")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_image_is_named(photos, content):
    (photos / "dog" / "broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the image .*dog/broken\.png .*repair or remove"):
        load_folder(photos)


def test_an_image_bomb_is_refused(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"cannot read the image .*cat/a\.png"):
        load_folder(photos)


def encoded(extension: str) -> bytes:
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (13, 17, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    options = {"exif": exif} if extension in ("png", "jpg", "webp", "tif", "avif") else {}
    noise.save(buffer, Image.registered_extensions()[f".{extension}"], **options)
    return buffer.getvalue()


def outcome(path: Path) -> str:
    """The opened image's mode, or what the user is told."""
    try:
        return open_image(path).mode
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "webp", "tif", "ico", "avif", "jp2"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), cut=st.booleans())
def test_any_damage_gives_an_image_or_the_name_of_the_file(tmp_path, extension, seed, cut):
    content, chance = bytearray(encoded(extension)), random.Random(seed)
    if cut:
        del content[chance.randrange(len(content)) :]
    else:
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    path = tmp_path / f"damaged.{extension}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's notes on what it could still make of the file
        assert outcome(path) == "RGB" or str(path) in outcome(path)


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"data\.dataset=digit is not known; did you mean digits\?"):
        find("digit")
    with pytest.raises(UserError, match=r"valid: digits, folder"):
        find("xyzzy")


# Fingerprint


def test_the_fingerprint_knows_pixels_labels_and_names(photos):
    dataset = load_folder(photos)
    pixel, label = dataset.images.clone(), dataset.labels.clone()
    pixel[3, 2, 1, 0] ^= 1
    label[0] = 1
    variants = [
        dataset,
        replace(dataset, images=pixel),
        replace(dataset, labels=label),
        replace(dataset, class_names=("cat", "dogs")),
        replace(dataset, class_names=("dog", "cat")),
        replace(dataset, template="a sketch of a {}."),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)


def test_the_fingerprint_is_the_same_for_the_same_data_elsewhere(photos, tmp_path):
    first = load_folder(photos).fingerprint()
    photos.rename(tmp_path / "moved")
    assert load_folder(tmp_path / "moved").fingerprint() == first


def test_every_source_is_described_on_one_line():
    for name, text in descriptions().items():
        assert text, name
        assert "\n" not in text


def test_a_link_to_a_folder_is_not_followed(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "a.png")
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat")
    assert len(datasets.find(f"folder:{tmp_path}").labels) == 2


def test_class_folders_whose_prompts_would_be_alike_are_refused(tmp_path):
    for kind in ("a_b", "a-b"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "a.png")
    with pytest.raises(UserError, match="their prompts would be alike"):
        datasets.find(f"folder:{tmp_path}")


def test_a_bare_folder_is_told_how_to_be_written(tmp_path):
    with pytest.raises(UserError, match=f"write data.dataset=folder:{tmp_path}"):
        datasets.find(str(tmp_path))
