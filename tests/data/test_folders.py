"""Folders of images, one sub-folder per class, or per client and class."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pictures_factory import COLOUR, make_photos, picture, resize, save
from PIL import Image

from feddlp.data import datasets
from feddlp.data.datasets import Dataset, find, load
from feddlp.errors import UserError

FORMATS = ["png", "jpg", "jpeg", "gif", "bmp", "webp", "tiff", "tif", "ppm", "tga", "ico", "avif", "jp2"]


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_photos(tmp_path / "photos")


def load_folder(path: Path) -> Dataset:
    return load(find(f"folder:{path}"), resize)


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
def test_every_format_is_found_in_a_folder(photos, extension):
    save(photos / "cat" / f"c.{extension.upper()}")
    assert load_folder(photos).labels.tolist() == [0, 0, 0, 1, 1]


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


def test_files_that_are_passed_over_are_listed_with_the_reason(photos, tmp_path):
    save(photos / "lonely.png")
    (photos / "cat" / "notes.txt").write_text("no image")
    (photos / "cat" / "again").symlink_to(photos)
    listed = {Path(file.name).name: file.reason for file in find(f"folder:{photos}").ignored}
    assert listed.keys() == {"lonely.png", "notes.txt", "again"}
    assert "no class folder" in listed["lonely.png"]
    assert "not followed" in listed["again"]


def test_a_folder_named_like_an_image_is_a_folder(photos):
    save(photos / "cat" / "more.png" / "c.png")
    assert load_folder(photos).labels.tolist() == [0, 0, 0, 1, 1]


def test_a_picture_is_known_by_its_content(photos):
    save(photos / "cat" / "c.png").rename(photos / "cat" / "photograph")
    assert load_folder(photos).labels.tolist() == [0, 0, 0, 1, 1]


# Clients


def test_folders_of_clients_hold_folders_of_classes(tmp_path):
    for place in ("bob/dog/a.png", "ann/cat/a.png", "ann/dog/a.png", "ann/dog/deep/b.png", "ann/lonely.png"):
        save(tmp_path / place)
    (tmp_path / "README").write_text("hello")
    source = find(f"clients:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert list(zip(source.clients, source.labels, strict=True)) == [("ann", 0), ("ann", 1), ("ann", 1), ("bob", 1)]
    assert sorted(Path(file.name).name for file in source.ignored) == ["README", "lonely.png"]


def test_clients_need_two_classes_too(tmp_path):
    save(tmp_path / "ann" / "cat" / "a.png")
    with pytest.raises(UserError, match=r"clients:.* has 1 class folder\(s\), at least 2"):
        find(f"clients:{tmp_path}")


# Names


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


@pytest.mark.parametrize("mode", [0, 0o444])
@pytest.mark.parametrize("part", ["", "cat"])
def test_an_unreadable_folder_is_named(nobody, part, mode):
    root = make_photos(nobody / "photos")
    (root / part).chmod(mode)
    with pytest.raises(UserError, match=r"cannot read the folder .* \(Permission denied\)"):
        find(f"folder:{root}")


@pytest.mark.parametrize("mode", [0, 0o444])
def test_an_unreadable_folder_below_a_class_counts_as_a_picture_that_cannot_be_read(nobody, mode):
    save(make_photos(nobody) / "cat" / "deep" / "a.png")
    save(nobody / "cat" / "deep" / "deeper" / "a.png")
    (nobody / "cat" / "deep").chmod(mode)
    source = find(f"folder:{nobody}")
    with pytest.raises(UserError, match=r"1 of 5 images cannot be read, .*cat/deep \(.*Permission denied\)"):
        load(source, resize)
    assert load(source, resize, on_bad_image="skip").labels.tolist() == [0, 0, 1, 1]
    assert source.ignored == []


def test_links_into_a_closed_folder_are_files_that_cannot_be_read(nobody):
    root = make_photos(nobody / "photos")
    save(nobody / "closed" / "a.png")
    (root / "cat" / "c.png").symlink_to(nobody / "closed" / "a.png")
    (root / "elsewhere").symlink_to(nobody / "closed" / "deep")
    (nobody / "closed").chmod(0)
    source = find(f"folder:{root}")
    assert [file.name for file in source.ignored] == [str(root / "elsewhere")]
    assert [file.reason for file in load(source, resize, on_bad_image="skip").left_out] == ["Permission denied"]


def test_a_folder_needs_a_path():
    for kind in ("folder", "clients"):
        for name in (kind, f"{kind}:"):
            with pytest.raises(UserError, match=f"{kind}:PATH"):
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


def test_a_link_to_a_folder_is_not_followed(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "a.png")
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat")
    assert len(datasets.find(f"folder:{tmp_path}").labels) == 2


@pytest.mark.parametrize("twin", ["a-b", "a b"])
def test_class_folders_whose_prompts_would_be_alike_are_refused(photos, twin):
    for kind in ("a_b", twin):
        save(photos / kind / "a.png")
    with pytest.raises(UserError, match=r"prompts would be alike .*'a_b'.*; rename"):
        datasets.find(f"folder:{photos}")


def test_a_class_name_that_is_no_text_is_refused_on_one_line(photos):
    save(photos / os.fsdecode(b"caf\xe9") / "a.png")
    with pytest.raises(UserError, match=r"class name 'caf\\udce9', which is not UTF-8; rename it"):
        datasets.find(f"folder:{photos}")


def test_a_class_folder_that_leads_up_is_ignored_with_the_reason(photos):
    for name, above in (("all", photos), ("up", photos.parent)):
        (photos / name).symlink_to(above)
    source = find(f"folder:{photos}")
    assert source.class_names == ("cat", "dog")
    assert [(Path(file.name).name, file.reason) for file in source.ignored] == [
        ("all", "a link to a folder above"),
        ("up", "a link to a folder above"),
    ]
