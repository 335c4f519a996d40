"""Who holds what: newcomers are drawn and never in the federation, and every number's basis is said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from feddlp import materials as module
from feddlp.config import validate
from feddlp.data import datasets
from feddlp.data.splits import ClientSplit, split_clients
from feddlp.errors import UserError
from feddlp.federation.host import Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.materials import describe_data, pick_device, prepare

SMALL = {"partition": "few_shot_iid", "shots": 3, "clients": 4, "validation_share": 0.3}


class Listener:
    def __init__(self):
        self.notes, self.warnings, self.steps = [], [], []

    def preparing(self, what, done, total):
        self.steps.append((what, done, total))

    def note(self, message):
        self.notes.append(message)

    def warn(self, message):
        self.warnings.append(message)


@pytest.fixture(autouse=True, scope="module")
def model_loaded_once(backbones, digits):
    """The embedded model, the digits and their features are the same for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_backbone", lambda checkpoint, adapt, *rest: backbones[adapt])
        patch.setattr(datasets, "load", lambda source, resize, report, **options: digits)
        features = torch.zeros(len(digits.labels), 96)
        patch.setattr(module, "image_features", lambda backbone, images, report: features)
        yield


def prepared(adapt="image", listener=None, **data):
    config = validate({"data": {**SMALL, **data}, "model": {"adapt": adapt}})
    return prepare(config, listener or Listener())


def indices(data, part):
    return [set(rows.tolist()) for rows in getattr(data, part).indices]


def everything(data):
    return set().union(*(rows for part in ("train", "validation", "test") for rows in indices(data, part)))


# Newcomers


@pytest.mark.parametrize("newcomers", [1, 3])
@pytest.mark.parametrize("partition", ["few_shot_iid", "iid", "dirichlet"])
def test_newcomers_are_some_of_the_clients_and_nobody_else_has_their_samples(newcomers, partition):
    found = prepared(newcomers=newcomers, partition=partition, dirichlet_beta=1.0)
    assert len(found.newcomers.ids) == newcomers
    assert sorted((*found.data.ids, *found.newcomers.ids)) == [0, 1, 2, 3]
    assert list(found.data.ids) == sorted(found.data.ids)
    assert found.partition["newcomers"] == list(found.newcomers.ids)
    assert not everything(found.data) & everything(found.newcomers)
    for data in (found.data, found.newcomers):
        for part in ("train", "validation", "test"):
            assert len(getattr(data, part).indices) == len(data.ids)


def test_who_is_a_newcomer_changes_nobodys_samples():
    whole, some = prepared(), prepared(newcomers=2)
    assert whole.newcomers is None
    assert whole.partition["newcomers"] == []
    for part in ("train", "validation", "test"):
        expected = getattr(whole.data, part).indices
        for data in (some.data, some.newcomers):
            for client, found in zip(data.ids, getattr(data, part).indices, strict=True):
                assert torch.equal(found, expected[client])
    assert whole.partition["clients"] == some.partition["clients"]


def test_newcomers_are_drawn_by_the_partition_seed_not_simply_the_last_clients():
    drawn = {prepared(newcomers=1, partition="iid", partition_seed=seed).newcomers.ids for seed in range(6)}
    assert len(drawn) > 1
    assert prepared(newcomers=2, partition="iid").newcomers.ids == prepared(newcomers=2, partition="iid").newcomers.ids


def test_newcomers_never_take_part(backbones):
    found = prepared(newcomers=2)
    config = validate({"methods": ["flora"]})
    lanes = [Lane(0, config.build_methods()["flora"])]
    host = Host(lanes, found.backbone, found.prompts, found.data, config.training)
    federation = Federation(lanes, host, config.training)
    assert not set(federation.roster.ids) & set(found.newcomers.ids)
    assert not everything(host.data) & everything(found.newcomers)


@pytest.mark.parametrize("newcomers", [4, 5])
def test_somebody_must_be_left_for_the_federation(newcomers):
    with pytest.raises(UserError, match=rf"data.newcomers={newcomers} leaves none of data.clients=4 .* at most 3"):
        prepared(newcomers=newcomers)


# A common test set


@pytest.mark.parametrize("newcomers", [0, 1])
def test_a_common_test_set_is_the_same_for_all_and_nobody_trains_on_it(newcomers):
    found = prepared(partition="iid", test_set="common", test_share=0.2, newcomers=newcomers)
    groups = [found.data, *([found.newcomers] if newcomers else [])]
    tests = [rows for data in groups for rows in indices(data, "test")]
    assert len(tests) == 4
    assert all(rows == tests[0] for rows in tests)
    assert len(tests[0]) == 1797 - int(0.8 * 1797)
    for data in groups:
        for part in ("train", "validation"):
            assert not any(rows & tests[0] for rows in indices(data, part))


# What the record says


def test_class_counts_are_those_of_the_samples(digits):
    found = prepared(newcomers=1, partition="dirichlet", dirichlet_beta=0.5)
    assert found.partition["class_names"] == list(digits.class_names)
    assert len(found.partition["clients"]) == 4
    for data in (found.data, found.newcomers):
        for place, client in enumerate(data.ids):
            for part in ("train", "validation", "test"):
                labels = digits.labels[getattr(data, part).indices[place]]
                assert found.partition["clients"][client][part] == torch.bincount(labels, minlength=10).tolist()


def test_fingerprints_tell_data_and_model_apart():
    image, text, other = prepared(), prepared("text"), prepared(partition_seed=2)
    assert image.fingerprints.keys() == {"data", "backbone"}
    assert image.fingerprints == other.fingerprints
    assert image.fingerprints["data"] == text.fingerprints["data"]
    assert image.fingerprints["backbone"] != text.fingerprints["backbone"]


def test_text_adaptation_gets_features_and_the_other_towers_images():
    assert prepared("text").data.train.inputs.shape == (1797, 96)
    for adapt in ("image", "both"):
        assert prepared(adapt).data.train.inputs.dtype == torch.uint8


# What is said


def said(listener=None, **data):
    listener = listener or Listener()
    prepared(listener=listener, **data)
    return listener


def test_the_basis_of_every_number_is_said():
    (note,) = said(partition="iid").notes
    assert note.startswith("digits: 1,797 images, 10 classes, 4 clients; train ")
    assert "smallest client: 11" in note
    (note,) = said(partition="iid", test_set="common", test_share=0.2).notes
    assert note.endswith("test 360 (the same for all)")
    assert "1,797 images" in note


def test_few_validation_samples_are_warned_of_and_enough_are_not():
    (warning,) = said(validation_share=0.1).warnings
    assert "only 8 validation samples, so" in warning
    assert said(partition="iid").warnings == []


def test_one_of_a_kind_is_said_in_the_singular():
    config, listener = validate({"data": {"dataset": "digits", "clients": 1}}), Listener()
    describe_data(config, 1, [ClientSplit(*torch.arange(3).split(1))], listener)
    assert "3 images, 1 class, 1 client; train 1" in listener.notes[0]
    assert "only 1 validation sample, so" in listener.warnings[0]


@pytest.mark.parametrize(
    ("dataset", "checkpoint", "warned"),
    [
        ("digits", "tiny-clip", False),
        ("glyphs", "tiny-clip", False),
        ("glyphs:99", "tiny-clip", False),
        ("folder:x", "tiny-clip", True),
        ("folder:x", "a/clip", False),
    ],
)
def test_photographs_for_a_model_that_knows_characters_only_are_warned_of(dataset, checkpoint, warned):
    config = validate({"data": {"dataset": dataset}, "model": {"checkpoint": checkpoint}})
    listener = Listener()
    describe_data(config, 10, split_clients(datasets.find("digits").labels, config.data), listener)
    assert any("knows rendered characters only" in warning for warning in listener.warnings) == warned


@pytest.mark.parametrize("partition", ["iid", "natural"])
@pytest.mark.parametrize("splits", ["merged", "official"])
@pytest.mark.parametrize("test_set", ["own", "common"])
def test_a_test_set_is_called_the_same_for_all_where_it_is(partition, splits, test_set):
    chosen = {"dataset": "digits", "clients": 2, "partition": partition, "splits": splits, "test_set": test_set}
    config, listener = validate({"data": chosen}), Listener()
    owners, parts = ["ann", "bob", "bob"] * 40, ["train", "test", "train", "train"] * 30
    dealt = split_clients([0, 1, 2, 3] * 30, config.data, owners, parts)
    describe_data(config, 4, dealt, listener)
    same = dealt[0].test.tolist() == dealt[1].test.tolist()
    assert ("the same for all" in listener.notes[0]) == same
    images = int(listener.notes[0].split()[1])
    assert images == 120


def test_a_device_that_is_not_there_is_refused_by_name():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(UserError, match=f"model.device={name} is not available here; use auto or cpu"):
            pick_device(name)


# Features of the frozen tower


def test_kept_features_belong_to_their_images_and_their_model(backbones, digits, monkeypatch):
    calls = []

    def brightness(backbone, images, report):
        calls.append(backbone)
        return images.float().mean((1, 2, 3))[:, None]

    monkeypatch.setattr(module, "image_features", brightness)
    files = SimpleNamespace(pictures=[None])
    negative = replace(digits, images=255 - digits.images, known_hash=None)
    for backbone in (backbones["text"], backbones["image"]):
        for dataset in (digits, negative, digits, negative):
            found = module.frozen_features(backbone, files, dataset, dataset.images, Listener())
            torch.testing.assert_close(found, dataset.images.float().mean((1, 2, 3))[:, None])
    assert calls == [backbones["text"]] * 2 + [backbones["image"]] * 2
