"""What a collection holds is found by opening it."""

from __future__ import annotations

import numpy as np
import pytest
from pictures_factory import KINDS, make_photos, noise, picture, save
from PIL import Image

from feddlp.data.check import describe, examine
from feddlp.data.datasets import find


@pytest.fixture
def photos(tmp_path):
    """Two times two images, alike in each class."""
    return make_photos(tmp_path / "photos")


def lines(source: str) -> list[str]:
    return list(describe(examine(find(source), lambda done, total: None)))


def test_counts_and_sizes_are_those_of_the_images(photos):
    save(photos / "cat" / "c.png", noise((100, 50)))
    found = lines(f"folder:{photos}")
    assert found[:3] == ["photos: 5 images, 2 classes", "images of a class: 2 to 3, median 2", "fewest: dog 2, cat 3"]
    assert found[3:5] == ["width: 24 to 100, median 24 pixels", "height: 16 to 50, median 16 pixels"]
    assert found[-1] == "unreadable: 0"


def test_the_same_pixels_are_found_under_any_name_and_format(photos):
    save(photos / "cat" / "c.png", noise())
    save(photos / "dog" / "d.tiff", noise())
    found = lines(f"folder:{photos}")
    assert "duplicates: 3 images, 1 across classes" in found
    assert f"  {photos}/cat/c.png = {photos}/dog/d.tiff" in found


def test_the_same_pixels_in_two_official_splits_are_said(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            save(tmp_path / part / name / "a.png", picture((number * 90, 0, 0)))
    save(tmp_path / "train" / "dog" / "b.png", picture((90, 0, 0)))
    assert "duplicates: 3 images, 0 across classes, 2 across official splits" in lines(f"folder:{tmp_path}")


def test_classes_that_differ_in_capitals_or_spaces_are_warned_of(photos):
    for name in ("ANT", "ant", "a  b", "a b"):
        save(photos / name / "a.png")
    warned = [line for line in lines(f"folder:{photos}") if line.startswith("warning: ")]
    assert [line.partition(" may be the same class to a tokenizer")[0] for line in warned] == [
        "warning: 'ANT' and 'ant'",
        "warning: 'a  b' and 'a b'",
    ]


@pytest.mark.parametrize(
    "kind", ["truncated jpeg", "bomb", "pipe", "link to itself", "phone heic", "name with a newline"]
)
def test_all_that_cannot_be_read_is_listed_with_its_reason(photos, kind):
    path = photos / "cat" / "more" / KINDS[kind].name
    path.parent.mkdir()
    KINDS[kind].make(path)
    findings = examine(find(f"folder:{photos}"), lambda done, total: None)
    assert [file.name for file in findings.unreadable] == ([str(path)] * bool(KINDS[kind].reason))


def test_a_closed_folder_counts_as_unreadable(nobody):
    make_photos(nobody)
    save(nobody / "cat" / "deep" / "closed" / "a.png")
    (nobody / "cat" / "deep" / "closed").chmod(0)
    (listed,) = examine(find(f"folder:{nobody}"), lambda done, total: None).unreadable
    assert listed == (f"{nobody}/cat/deep/closed", "a folder that cannot be read: Permission denied")


def test_ignored_files_clients_and_splits_are_said(photos, tmp_path):
    (photos / "cat" / "notes.txt").write_text("hello")
    assert "not images: 1 file ignored" in lines(f"folder:{photos}")
    rows = ["path,label,client,split", "cat/a.png,x,ann,train", "cat/b.png,y,ann,test", "dog/a.png,x,bob,train"]
    (photos / "table.csv").write_text("\n".join(rows))
    found = lines(f"csv:{photos / 'table.csv'}")
    assert "clients: 2, images of a client: 1 to 2, median 2" in found
    assert "official splits: train 2, test 1" in found


def test_images_that_are_made_on_the_spot_are_counted(photos):
    assert lines("digits")[0] == "digits: 1,797 images, 10 classes"


def test_deep_grey_is_said_with_its_brightest_value(photos):
    for value in (200, 3499):
        save(photos / "cat" / f"{value}.png", Image.fromarray(np.full((9, 9), value, np.uint16)))
    assert "grey images of more than 8 bits: 2, brightest value 3,499 (scaled by declared depth)" in lines(
        f"folder:{photos}"
    )
