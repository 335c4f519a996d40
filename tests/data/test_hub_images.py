"""Data sets of the hub, through a stand-in for the `datasets` library, and once through itself."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from pictures_factory import encoded, resize, save

from feddlp.data.datasets import find, load
from feddlp.errors import UserError


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    names = ("cat", "big_dog")


class Value:
    pass


class Split:
    """What is used of `datasets.Dataset`."""

    def __init__(self, rows, features):
        self.rows, self.features, self._fingerprint = rows, features, "f00"

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        assert not self.features["image"].decode, "decoded by the library"
        return self.rows[key]

    def select_columns(self, columns):
        return Split([{name: row[name] for name in columns} for row in self.rows], self.features)

    def cast_column(self, column, feature):
        return Split(self.rows, self.features | {column: feature})


FEATURES = {"image": Image(), "label": ClassLabel(), "note": Value()}


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Puts data sets on the hub."""
    shelf = {}

    def load_dataset(name):
        if name not in shelf:
            raise ConnectionError("Couldn't reach the Hub\nlong story")
        return shelf[name]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, Image=Image))
    file = str(save(tmp_path / "a.png"))
    stored = [
        {"bytes": encoded("PNG"), "path": None},
        {"bytes": None, "path": file},
        {"bytes": b"x", "path": None},
        None,
    ]
    rows = [{"image": image, "label": number % 2, "note": ""} for number, image in enumerate(stored)]
    shelf["owner/pets"] = {"train": Split(rows, FEATURES), "test": Split(rows[:2], FEATURES)}
    shelf["owner/odd"] = {"extra": Split(rows[:2], FEATURES)}
    shelf["owner/text"] = {"train": Split(rows, {"note": Value(), "label": ClassLabel()})}
    return shelf


def test_every_split_is_read_with_its_part(library):
    source = find("hub:owner/pets")
    assert source.class_names == ("cat", "big dog")
    assert source.parts == ["train"] * 4 + ["test"] * 2
    dataset = load(source, resize, on_bad_image="skip")
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    assert [file.name for file in dataset.left_out] == ["owner/pets:train[2]", "owner/pets:train[3]"]
    assert [file.reason for file in dataset.left_out] == ["no image format fits it", "the row has no image"]
    assert len({image.identity() for image in source.pictures}) == 6


def test_rows_without_a_label_are_ignored_and_listed(library):
    library["owner/odd"]["extra"].rows[1]["label"] = -1
    source = find("hub:owner/odd")
    assert source.labels == [0]
    assert list(source.ignored) == [("owner/odd:extra[1]", "no label")]


def test_splits_of_other_names_are_no_official_ones(library):
    assert find("hub:owner/odd").parts == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/text", r"has 0 columns of type Image, one is needed; its columns are: note \(Value\), label"),
        ("owner/nowhere", r"cannot be loaded \(Couldn't reach the Hub\); check the name and the network"),
        ("", "write data.dataset=hub:owner/name"),
    ],
)
def test_what_cannot_be_had_is_said_on_one_line(library, name, message):
    with pytest.raises(UserError, match=message) as found:
        find(f"hub:{name}")
    assert "\n" not in str(found.value)


def test_without_the_library_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'feddlp\[datasets\]'"):
        find("hub:owner/pets")


def test_the_library_itself_reads_such_a_data_set_from_a_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "big_dog"])})
    contents = {"train": [encoded("PNG"), b"damaged", encoded("JPEG")], "test": [encoded("GIF")]}
    for split, images in contents.items():
        rows = {"image": [{"bytes": image, "path": None} for image in images], "label": [1, 0, 0, 1][: len(images)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "pets" / f"{split}.parquet")
    source = find(f"hub:{tmp_path}/pets")
    assert (source.name, source.class_names, source.labels) == ("pets", ("cat", "big dog"), [1, 0, 0, 1])
    dataset = load(source, resize, on_bad_image="skip")
    assert (dataset.labels.tolist(), dataset.parts) == ([1, 0, 1], ["train", "train", "test"])
    assert [file.reason for file in dataset.left_out] == ["no image format fits it"]
