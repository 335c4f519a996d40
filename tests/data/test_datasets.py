"""Labelled images: the digits, and folders as people really have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures_factory import make_photos, picture, resize, save

from feddlp.data import datasets
from feddlp.data.datasets import Dataset, descriptions, find, load
from feddlp.errors import UserError


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_photos(tmp_path / "photos")


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


# Pictures that cannot be read


def spoil(photos: Path, *names: str) -> None:
    for name in names:
        (photos / name).write_bytes(b"nothing")


def test_a_picture_that_cannot_be_read_is_an_error_on_one_line(photos):
    spoil(photos, "dog/a.png", "cat/b.png")
    with pytest.raises(UserError) as found:
        load_folder(photos)
    assert str(found.value) == (
        f"data.dataset: 2 of 4 images cannot be read, the first one is {photos}/cat/b.png (no image format fits it); "
        "repair, remove or skip them (data.on_bad_image=skip; for feddlp evaluate --on-bad-image skip)"
    )


def test_skipped_pictures_are_listed_and_nothing_shifts(photos):
    for number in range(3):
        save(photos / "cat" / f"{number}.png", picture((10 * number, 0, 0)))
    whole = load_folder(photos)
    spoil(photos, "cat/1.png", "dog/a.png")
    some = load(find(f"folder:{photos}"), resize, on_bad_image="skip")
    assert [file.name for file in some.left_out] == [f"{photos}/cat/1.png", f"{photos}/dog/a.png"]
    kept = [0, 2, 3, 4, 6]
    assert torch.equal(some.images, whole.images[kept])
    assert torch.equal(some.labels, whole.labels[kept])
    assert some.fingerprint() != whole.fingerprint()


def test_what_is_known_of_every_picture_is_skipped_with_it(photos):
    source = replace(find(f"folder:{photos}"), clients=["ann", "bob", "cid", "dan"], parts=["train"] * 3 + ["test"])
    spoil(photos, "cat/b.png")
    dataset = load(source, resize, on_bad_image="skip")
    assert dataset.clients == ["ann", "cid", "dan"]
    assert dataset.parts == ["train", "train", "test"]


def test_a_class_of_which_nothing_is_left_is_named(photos):
    spoil(photos, "dog/a.png", "dog/b.png")
    with pytest.raises(UserError, match=r"on_bad_image=skip leaves 1 class without an image: dog"):
        load(find(f"folder:{photos}"), resize, on_bad_image="skip")


def test_a_class_that_was_empty_before_is_not_put_down_to_skipping(photos):
    source = find(f"folder:{photos}")
    source = replace(source, class_names=(*source.class_names, "eel"))
    spoil(photos, "dog/a.png")
    assert len(load(source, resize, on_bad_image="skip").labels) == 3


# Names


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"data\.dataset=digit is not known, .*; did you mean digits"):
        find("digit")
    with pytest.raises(UserError, match=r"valid: .*digits, dtd"):
        find("xyzzy")


# Fingerprint


def test_the_fingerprint_knows_pixels_labels_and_names(photos):
    known = load_folder(photos)
    dataset = replace(known, known_hash=None)
    assert known.fingerprint() == dataset.fingerprint()
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
        replace(dataset, template="a sketch of a {} \udce9."),
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


def test_a_bare_folder_is_told_how_to_be_written(tmp_path):
    with pytest.raises(UserError, match=f"write data.dataset=folder:{tmp_path}"):
        datasets.find(str(tmp_path))


def test_a_path_to_nothing_or_to_one_image_is_told_what_is_expected(photos):
    for name in (f"{photos}/nowhere", "photos.csv", "nosuch"):
        with pytest.raises(UserError, match="there is no such folder or file"):
            find(name)
    with pytest.raises(UserError, match=r"a\.png is a file; expected is a folder with one sub-folder per class, or"):
        find(f"{photos}/cat/a.png")
