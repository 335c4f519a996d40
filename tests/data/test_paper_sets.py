"""The paper's data sets in the layout of their authors' archives."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures_factory import resize, save
from scipy.io import loadmat, savemat

from feddlp.config import validate
from feddlp.data.datasets import find, load
from feddlp.data.paper_sets import FLOWERS, PAPER_SETS, TEMPLATES
from feddlp.errors import UserError
from feddlp.reproduce import split_data


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def make_pets(root: Path) -> None:
    for image in ("Abyssinian_1", "Abyssinian_2", "american_bulldog_10", "Bengal_3"):
        save(root / "images" / f"{image}.jpg")
    save(root / "images" / "Abyssinian_5.mat.png")
    write(root / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID", "Abyssinian_1 1 1 1")
    write(root / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1", "american_bulldog_10 2 2 1")
    write(root / "annotations" / "test.txt", "Abyssinian_2 1 1 1", "Bengal_3 6 1 2")


def make_flowers(root: Path) -> None:
    for number in range(1, 7):
        save(root / "jpg" / f"image_{number:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 102, 1, 12]], dtype=np.uint8)})
    sets = {"trnid": [[5, 1]], "valid": [[2]], "tstid": [[3, 4, 6]]}
    savemat(root / "setid.mat", {name: np.array(ids, dtype=np.uint16) for name, ids in sets.items()})


def make_aircraft(root: Path) -> None:
    for image in ("0034309", "0034958", "1025794"):
        save(root / "data" / "images" / f"{image}.jpg")
    write(root / "data" / "variants.txt", "707-320", "Cessna 172", "F/A-18")
    write(root / "data" / "images_variant_train.txt", "1025794 707-320")
    write(root / "data" / "images_variant_val.txt", "0034309 F/A-18")
    write(root / "data" / "images_variant_test.txt", "0034958 Cessna 172")


def make_dtd(root: Path) -> None:
    for image in ("banded/banded_0002", "polka-dotted/polka-dotted_0001", "zigzagged/zigzagged_0003"):
        save(root / "images" / f"{image}.jpg")
    write(root / "labels" / "labels_joint_anno.txt", "banded/banded_0002.jpg banded lined")
    write(root / "labels" / "train1.txt", "banded/banded_0002.jpg")
    write(root / "labels" / "val1.txt", "polka-dotted/polka-dotted_0001.jpg")
    write(root / "labels" / "test1.txt", "zigzagged/zigzagged_0003.jpg")


MAKERS = {"pets": make_pets, "flowers": make_flowers, "aircraft": make_aircraft, "dtd": make_dtd}
EXPECTED = {
    "pets": [
        ("Abyssinian", "train", "Abyssinian_1.jpg"),
        ("american bulldog", "train", "american_bulldog_10.jpg"),
        ("Abyssinian", "test", "Abyssinian_2.jpg"),
        ("Bengal", "test", "Bengal_3.jpg"),
    ],
    "flowers": [
        ("pink primrose", "train", "image_00005.jpg"),
        ("passion flower", "train", "image_00001.jpg"),
        ("passion flower", "validation", "image_00002.jpg"),
        ("pink primrose", "test", "image_00003.jpg"),
        ("blackberry lily", "test", "image_00004.jpg"),
        ("colt's foot", "test", "image_00006.jpg"),
    ],
    "aircraft": [
        ("707-320", "train", "1025794.jpg"),
        ("F/A-18", "validation", "0034309.jpg"),
        ("Cessna 172", "test", "0034958.jpg"),
    ],
    "dtd": [
        ("banded", "train", "banded_0002.jpg"),
        ("polka-dotted", "validation", "polka-dotted_0001.jpg"),
        ("zigzagged", "test", "zigzagged_0003.jpg"),
    ],
}


@pytest.mark.parametrize("place", ["", "unpacked"])
@pytest.mark.parametrize("name", PAPER_SETS)
def test_every_image_has_its_class_and_official_part(name, place, tmp_path):
    MAKERS[name](tmp_path / place)
    source = find(f"{name}:{tmp_path}")
    found = zip(source.labels, source.parts, source.pictures, strict=True)
    assert [(source.class_names[label], part, Path(file.name).name) for label, part, file in found] == EXPECTED[name]
    assert source.template == TEMPLATES[name]
    assert load(source, resize).images.shape == (len(EXPECTED[name]), 3, 4, 4)


PUBLISHED = {
    "pets": {"images.tar.gz": "images", "annotations.tar.gz": "annotations"},
    "flowers": {"102flowers.tgz": "jpg"},
    "aircraft": {"fgvc-aircraft-2013b.tar.gz": "fgvc-aircraft-2013b"},
    "dtd": {"dtd-r1.0.1.tar.gz": "dtd"},
}


def publish(name: str, folder: Path) -> Path:
    """The archives as their authors offer them; returns one of them."""
    packed = folder / ("dtd" if name == "dtd" else "fgvc-aircraft-2013b" if name == "aircraft" else "")
    MAKERS[name](packed)
    for archive, content in PUBLISHED[name].items():
        with tarfile.open(folder / archive, "w:gz") as opened:
            opened.add(folder / content, content)
        shutil.rmtree(folder / content)
    return folder / archive


@pytest.mark.parametrize("name", PAPER_SETS)
def test_archives_are_unpacked_once(name, tmp_path, caplog):
    archive = publish(name, tmp_path)
    before = sorted(tmp_path.iterdir())
    for given in (tmp_path, archive):
        source = find(f"{name}:{given}")
        found = zip(source.labels, source.parts, source.pictures, strict=True)
        assert [(source.class_names[label], part, Path(file.name).name) for label, part, file in found] == EXPECTED[
            name
        ]
        assert load(source, resize).images.shape == (len(EXPECTED[name]), 3, 4, 4)
    assert [record.args[0].name for record in caplog.records] == list(PUBLISHED[name])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", PAPER_SETS)
def test_a_damaged_archive_is_named_and_tried_again_when_it_is_whole(name, tmp_path):
    archive = publish(name, tmp_path)
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-8] + bytes(8), b"", b"<html>not found</html>"):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{archive.name} is damaged \(.*\); download it again"):
            find(f"{name}:{tmp_path}")
    archive.write_bytes(whole)
    assert find(f"{name}:{tmp_path}").labels


@pytest.mark.parametrize("other", ["images.tar", "images.tar.bz2", "images.tar.gz.part"])
def test_the_archive_as_published_is_preferred(tmp_path, other):
    publish("pets", tmp_path)
    (tmp_path / other).write_bytes(b"half of it")
    assert find(f"pets:{tmp_path}").labels


def test_classes_are_in_the_official_order(tmp_path):
    for name in PAPER_SETS:
        MAKERS[name](tmp_path / name)
    assert find(f"pets:{tmp_path}/pets").class_names == ("Abyssinian", "american bulldog", "Bengal")
    assert find(f"aircraft:{tmp_path}/aircraft").class_names == ("707-320", "Cessna 172", "F/A-18")
    assert find(f"flowers:{tmp_path}/flowers").class_names == FLOWERS


def test_there_are_102_flowers():
    assert len(set(FLOWERS)) == 102


@pytest.mark.parametrize("name", PAPER_SETS)
def test_what_is_missing_is_said(name, tmp_path):
    with pytest.raises(UserError, match=rf"data\.dataset={name}:.* has no .*; give the folder with the archives"):
        find(f"{name}:{tmp_path}")
    with pytest.raises(UserError, match=f"write data.dataset={name}:PATH"):
        find(name)


def test_a_damaged_list_is_named(tmp_path):
    make_flowers(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read trnid from .*setid\.mat"):
        find(f"flowers:{tmp_path}")


@pytest.mark.parametrize(
    ("file", "key", "number"), [("setid", "trnid", 0), ("setid", "tstid", 7), ("imagelabels", "labels", 103)]
)
def test_numbers_beyond_the_images_or_the_classes_are_refused(tmp_path, file, key, number):
    make_flowers(tmp_path)
    content = {name: rows for name, rows in loadmat(tmp_path / f"{file}.mat").items() if not name.startswith("__")}
    savemat(tmp_path / f"{file}.mat", {**content, key: np.array([[number]])})
    with pytest.raises(UserError, match=rf"{key} in .*{file}\.mat has the number {number}, which is not in 1 to"):
        find(f"flowers:{tmp_path}")


@pytest.mark.parametrize("mode", [0, 0o444])
def test_an_unreadable_folder_is_named(nobody, mode):
    make_dtd(nobody / "dtd")
    (nobody / "dtd").chmod(mode)
    with pytest.raises(UserError, match=r"cannot read the folder .*dtd \(Permission denied\)"):
        find(f"dtd:{nobody / 'dtd'}")
    make_dtd(nobody / "other")  # beside one that is closed
    assert find(f"dtd:{nobody}").labels


@pytest.mark.parametrize("name", PAPER_SETS)
def test_presets_know_a_paper_set_by_its_source(name):
    assert validate({"data": {"dataset": f"{name}:x"}}).data.known_as == name
    assert validate({"data": {"dataset": f"{name}:x", "known_as": ""}}).data.known_as == ""
    assert validate({"data": {"dataset": "folder:x"}}).data.known_as == ""
    assert split_data(f"{name}:x") == (name, f"{name}:x")
