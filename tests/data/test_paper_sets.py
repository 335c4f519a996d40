"""The paper's data sets in the layout of their authors' archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures_factory import resize, save
from scipy.io import savemat

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
    with pytest.raises(UserError, match=rf"data\.dataset={name}:.* has no .*; give the folder that its archives"):
        find(f"{name}:{tmp_path}")
    (tmp_path / "images.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=rf"unpack its archives first: tar -xf {tmp_path}/images.tar.gz -C {tmp_path}"):
        find(f"{name}:{tmp_path}")
    with pytest.raises(UserError, match=rf"tar -xf {tmp_path}/images.tar.gz"):
        find(f"{name}:{tmp_path}/images.tar.gz")
    with pytest.raises(UserError, match=f"write data.dataset={name}:PATH"):
        find(name)


def test_a_damaged_list_is_named(tmp_path):
    make_flowers(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read trnid from .*setid\.mat"):
        find(f"flowers:{tmp_path}")


@pytest.mark.parametrize("name", PAPER_SETS)
def test_presets_know_a_paper_set_by_its_source(name):
    assert validate({"data": {"dataset": f"{name}:x"}}).data.known_as == name
    assert validate({"data": {"dataset": f"{name}:x", "known_as": ""}}).data.known_as == ""
    assert validate({"data": {"dataset": "folder:x"}}).data.known_as == ""
    assert split_data(f"{name}:x") == (name, f"{name}:x")
