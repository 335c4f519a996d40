"""Folders of images, one sub-folder per class, or per client and class."""

from __future__ import annotations

import os
import subprocess
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
    with pytest.raises(UserError, match=r"clients:.* has 1 class folder and needs at least 2"):
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
    with pytest.raises(UserError, match=r"2 classes without an image: empty, notes"):
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


# Official splits


@pytest.fixture
def split(tmp_path) -> Path:
    for part in ("train", "val", "test"):
        make_photos(tmp_path / "split" / part)
    return tmp_path / "split"


def test_a_tree_of_splits_has_the_classes_below_and_official_splits(split):
    save(split / "lonely.png")
    (split / "test" / "notes.txt").touch()
    source = find(f"folder:{split}")
    assert source.class_names == ("cat", "dog")
    assert source.parts == ["test"] * 4 + ["train"] * 4 + ["validation"] * 4
    assert source.labels == [0, 0, 1, 1] * 3
    assert source.clients == ()
    assert [file.reason for file in source.ignored] == ["lies in no class folder"] * 2


@pytest.mark.parametrize(
    "names", [("TRAIN", "Valid", "Testing"), ("training_set", "test_set"), ("train2017", "val2017"), ("Train",)]
)
def test_splits_have_many_names(tmp_path, names):
    for name in names:
        make_photos(tmp_path / name)
    source = find(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert len(source.parts) == 4 * len(names)


def test_a_class_of_the_training_split_alone_is_a_class(split):
    save(split / "train" / "ape" / "a.png")
    (split / "val" / "ape").mkdir()
    assert find(f"folder:{split}").class_names == ("ape", "cat", "dog")


@pytest.mark.parametrize("part", ["test", "val"])
def test_classes_without_training_images_are_refused(split, part):
    for name in ("Dog", "ape"):
        save(split / part / name / "a.png")
    (split / "train" / "ape").mkdir()
    with pytest.raises(UserError, match=r"has 2 classes with images for .* none for training: Dog, ape; rename or"):
        find(f"folder:{split}")


def test_the_training_images_of_a_class_may_be_another_clients(tmp_path):
    for place in ("ann/train/cat", "ann/train/dog", "ann/test/cat", "bob/train/cat", "bob/test/cat", "bob/test/dog"):
        save(tmp_path / place / "a.png")
    assert find(f"clients:{tmp_path}").class_names == ("cat", "dog")


def test_classes_that_are_called_as_splits_are_classes_by_what_lies_in_them(tmp_path):
    for name in ("train", "test"):
        save(tmp_path / name / "a.png")
        save(tmp_path / name / f"of-{name}" / "a.png")
    source = find(f"folder:{tmp_path}")
    assert (source.class_names, source.parts) == (("test", "train"), [])
    save(tmp_path / "car" / "a.png")
    assert find(f"folder:{tmp_path}").class_names == ("car", "test", "train")


def test_a_train_among_vehicles_is_a_class(tmp_path):
    for name in ("train/2020", "car/2020", "bus"):
        save(tmp_path / name / "a.png")
    assert find(f"folder:{tmp_path}").class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    "places",
    [
        ("train/cat", "train/dog", "test"),
        ("train/cat", "train/dog", "test", "others"),
        ("train/cat", "train/dog", "test/cat", "test/dog", "unlabelled"),
        ("train/cat", "test/dog"),
        ("train/cat", "test/cat", "test"),
    ],
)
def test_what_could_be_splits_or_classes_is_refused_with_the_way_out(tmp_path, places):
    for place in places:
        save(tmp_path / place / "a.png")
    with pytest.raises(UserError, match=r"has test, train as if they were official splits, .* use csv: with a column"):
        find(f"folder:{tmp_path}")


@pytest.mark.parametrize("names", [("train", "eval"), ("train", "holdout"), ("my_train", "my-test")])
def test_splits_by_names_of_ones_own_are_no_classes(tmp_path, names):
    for name in names:
        for kind in ("cat", "dog"):
            save(tmp_path / name / kind / "a.png")
    with pytest.raises(UserError, match="as if they were official splits"):
        find(f"folder:{tmp_path}")


def test_each_client_may_have_splits(tmp_path):
    for client in ("ann", "bob"):
        for part in ("train", "test"):
            make_photos(tmp_path / client / part)
    source = find(f"clients:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert source.parts == (["test"] * 4 + ["train"] * 4) * 2
    assert source.clients == ["ann"] * 8 + ["bob"] * 8
    make_photos(tmp_path / "cid")
    with pytest.raises(UserError, match="official splits for some clients only"):
        find(f"clients:{tmp_path}")


# Files that are nobody's

SYSTEM = ["@eaDir", "@EADIR", "#recycle", "#snapshot", "@Recycle", "@tmp", "$RECYCLE.BIN", "__MACOSX", "lost+found"]
SYSTEM += [
    "System Volume Information",
    ".thumbnails",
    ".Trash-1000",
    ".git",
    "@__thumb",
    "found.000",
    "RECYCLER",
    "Network Trash Folder",
]
SYSTEM += ["Temporary Items", "Recycle Bin", "_MACOSX", "@eaDir "]


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_systems_are_ignored_and_listed_at_any_depth(photos, name):
    places = (photos / name, photos / "cat" / name, photos / "cat" / "deep" / name)
    for place in places:
        save(place / "cat" / "a.png")
        save(place / "a.png")
    save(photos / "cat" / "deep" / "a.png")
    source = find(f"folder:{photos}")
    assert source.class_names == ("cat", "dog")
    assert len(source.labels) == 5
    assert {file.name for file in source.ignored} == set(map(str, places))
    assert {file.reason for file in source.ignored} == {"hidden" if name.startswith(".") else "made by a system"}


@pytest.mark.parametrize("name", ["._a.png", "Thumbs.db", ".DS_Store", "desktop.ini", ".a.jpg"])
def test_files_of_systems_are_ignored_and_listed(photos, name):
    save(photos / "cat" / "x.png").rename(photos / "cat" / name)
    source = find(f"folder:{photos}")
    assert len(source.labels) == 4
    assert [file.name for file in source.ignored] == [str(photos / "cat" / name)]


@pytest.mark.parametrize("name", ["$5", "#1", "@home", "thumbs", "recycling", "~x"])
def test_classes_may_begin_with_signs(photos, name):
    save(photos / name / "a.png")
    assert name in find(f"folder:{photos}").class_names


# Links


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_two_links_to_one_file_count_once(photos, link):
    link(photos / "cat" / "c.png", photos / "cat" / "a.png")
    source = find(f"folder:{photos}")
    assert source.labels == [0, 0, 1, 1]
    assert source.ignored == [(f"{photos}/cat/c.png", f"the same file as {photos}/cat/a.png")]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_one_file_of_two_classes_or_clients_is_refused(tmp_path, link):
    for client in ("ann", "bob"):
        make_photos(tmp_path / client)
    link(tmp_path / "ann" / "dog" / "c.png", tmp_path / "ann" / "cat" / "a.png")
    for source, names in ((f"folder:{tmp_path}/ann", "'cat' and once under 'dog'"), (f"clients:{tmp_path}", "'cat'")):
        with pytest.raises(UserError, match=f"are the same file, once under {names}"):
            find(source)
    (tmp_path / "ann" / "dog" / "c.png").unlink()
    link(tmp_path / "bob" / "cat" / "c.png", tmp_path / "ann" / "cat" / "a.png")
    with pytest.raises(UserError, match="once under 'ann' and once under 'bob'; keep one"):
        find(f"clients:{tmp_path}")


# Names and depths


def test_numbers_are_in_their_order_in_every_source(tmp_path):
    for client in ("ann", "bob"):
        for name in ("10", "2", "1"):
            save(tmp_path / client / name / "a.png")
    assert find(f"folder:{tmp_path}/ann").class_names == ("1", "2", "10")
    source = find(f"clients:{tmp_path}")
    assert source.class_names == ("1", "2", "10")
    assert [(Path(one.name).parent.name, label) for one, label in zip(source.pictures, source.labels, strict=True)] == [
        ("1", 0), ("10", 2), ("2", 1)
    ] * 2  # fmt: skip


def test_names_are_read_in_nfc_and_two_clients_may_write_one_class_differently(tmp_path):
    for client, name in (("ann", "cafe\u0301"), ("bob", "caf\u00e9"), ("bob", "tea_pot"), ("ann", "tea-pot")):
        save(tmp_path / client / name / "a.png")
    source = find(f"clients:{tmp_path}")
    assert source.class_names == ("caf\u00e9", "tea pot")
    assert source.labels == [0, 1, 0, 1]


def test_two_folders_whose_names_differ_in_how_accents_are_written_are_refused(photos):
    for name in ("cafe\u0301", "caf\u00e9"):
        save(photos / name / "a.png")
    with pytest.raises(UserError, match=r"alike \('cafe\u0301' \('cafe\\u0301'\) and 'caf\u00e9' \('caf\\xe9'\)\)"):
        find(f"folder:{photos}")


def test_a_client_whose_name_is_no_text_is_refused(tmp_path):
    make_photos(tmp_path / os.fsdecode(b"h\xf4pital"))
    make_photos(tmp_path / "clinic")
    with pytest.raises(UserError, match=r"client or class name 'h\\udcf4pital', which is not UTF-8; rename it"):
        find(f"clients:{tmp_path}")


def test_folders_may_be_nested_deeper_than_python_calls(photos):
    depth = 1050
    here = os.open(photos / "cat", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    save(photos / "cat" / "/".join(["d"] * (depth - 1)) / "a.png")
    source = find(f"folder:{photos}")
    assert len(source.labels) == 5
    subprocess.run(["rm", "-r", photos], check=True)  # what pytest removes with is not as patient
