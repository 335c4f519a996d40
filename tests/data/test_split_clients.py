"""Partition and cut together, with test sets of the clients' own and with a common one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import DataConfig
from feddlp.data.partition import Samples, partition
from feddlp.data.splits import ClientSplit, split, split_clients
from feddlp.errors import UserError

DTD = np.repeat(np.arange(47), 120)
SHARES = {"test_share": 0.25, "validation_share": 0.1}
OWN = {"test_set": "own", "stratified": False}
FEW_SHOT = ["few_shot_iid", "few_shot_pathological"]
ALL = ["dirichlet", "pathological", "iid", *FEW_SHOT]


def configured(name, clients, seed=1, **options):
    return DataConfig(partition=name, clients=clients, partition_seed=seed, **options)


def deal(labels, name, clients, *, owners=(), parts=(), **options):
    """Clients' samples under a configuration with these keys; official parts are kept where there are some."""
    options = {"splits": "official"} | options if len(parts) else options
    return split_clients(labels, configured(name, clients, **options), owners, parts)


def holdings(labels, name, clients, **options):
    return partition(Samples(labels, int(labels.max()) + 1), configured(name, clients, **options))


relaxed = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.05, 0.6)


@st.composite
def labelled(draw) -> np.ndarray:
    """Labels 0..C-1 in any order, every class with at least 20 samples."""
    sizes = draw(st.lists(st.integers(20, 50), min_size=2, max_size=6))
    return np.random.RandomState(draw(seeds)).permutation(np.repeat(np.arange(len(sizes)), sizes))


def parts_of(splits: list[ClientSplit]) -> list[torch.Tensor]:
    return [getattr(client, part) for client in splits for part in ("train", "validation", "test")]


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "iid"])
def test_dealing_is_partition_then_split(name):
    options = {"dirichlet_beta": 0.1, "classes_per_client": 5, "seed": 4}
    dealt = deal(DTD, name, 10, **SHARES, **OWN, **options)
    for client, held in enumerate(holdings(DTD, name, 10, **options)):
        expected = split(held, client, **SHARES, seed=4)
        assert all(map(torch.equal, parts_of([expected]), parts_of([dealt[client]])))


@relaxed
@given(st.sampled_from(ALL), labelled(), shares, st.floats(0, 0.9), st.booleans(), seeds)
def test_a_common_test_set_is_the_same_for_all_and_trained_on_by_none(name, labels, test, validation, stratified, seed):
    options = {"test_share": test, "stratified": stratified, "seed": seed, "shots": 2, "dirichlet_beta": 5.0}
    try:
        splits = deal(
            labels,
            name,
            2,
            test_set="common",
            validation_share=validation,
            classes_per_client=int(labels.max()) + 1,
            **options,
        )
    except UserError as error:
        assert "data.test_set=common" in str(error)  # noqa: PT017
        return
    tested = splits[0].test
    assert all(torch.equal(client.test, tested) for client in splits)
    assert len(tested) == len(labels) - min(len(labels) - 1, max(1, int((1 - test) * len(labels) + 1e-9)))
    trained = torch.cat([part for client in splits for part in (client.train, client.validation)]).tolist()
    assert len(set(trained)) == len(trained)
    assert not set(trained) & set(tested.tolist())
    assert len(set(tested.tolist())) == len(tested)
    if name not in FEW_SHOT:
        assert len(trained) + len(tested) == len(labels)
    for client in splits:
        held = len(client.train) + len(client.validation)
        assert len(client.validation) == min(held - 1, int(validation * held + 1e-9))


@pytest.mark.parametrize("stratified", [False, True])
def test_the_common_test_set_does_not_depend_on_how_the_rest_is_dealt(stratified):
    def tested(name="iid", clients=4, seed=1, **options):
        return deal(DTD, name, clients, test_set="common", stratified=stratified, seed=seed, **options)[0].test

    first = tested()
    for name in ("dirichlet", *FEW_SHOT):
        assert torch.equal(first, tested(name, shots=2))
    assert torch.equal(first, tested(clients=9, validation_share=0.5))
    assert not torch.equal(first.sort()[0], tested(seed=2).sort()[0])


def test_what_is_left_beside_the_common_test_set_is_dealt_as_a_data_set_of_its_own():
    splits = deal(DTD, "pathological", 10, test_set="common", classes_per_client=12, seed=3)
    rest = np.setdiff1d(np.arange(len(DTD)), splits[0].test.numpy())
    for client, held in zip(
        splits, holdings(DTD[rest], "pathological", 10, classes_per_client=12, seed=3), strict=True
    ):
        assert sorted(torch.cat([client.train, client.validation]).tolist()) == sorted(rest[held].tolist())


@pytest.mark.parametrize("name", ["pathological", *FEW_SHOT])
def test_a_last_class_that_the_common_test_set_took_whole_is_missed(name):
    labels = np.array([0] * 30 + [1] * 30 + [2])
    refusals = 0
    for seed in range(20):
        try:
            splits = deal(labels, name, 1, test_set="common", test_share=0.5, shots=1, classes_per_client=3, seed=seed)
        except UserError as error:
            assert "class 2" in str(error)  # noqa: PT017
            assert "the common test set took 31 of 61 samples" in str(error)  # noqa: PT017
            refusals += 1
        else:
            assert 60 not in splits[0].test
    assert 0 < refusals < 20


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("test_set", ["own", "common"])
@pytest.mark.parametrize("stratified", [False, True])
def test_dealing_twice_is_the_same_and_another_seed_is_not(name, test_set, stratified):
    def once(seed):
        torch.rand(1)
        np.random.rand()
        options = {"test_set": test_set, "stratified": stratified, "classes_per_client": 12, "seed": seed}
        return parts_of(deal(DTD.tolist(), name, 4, shots=8, **options))

    assert all(map(torch.equal, once(1), once(1)))
    assert not all(one.shape == two.shape and torch.equal(one, two) for one, two in zip(once(1), once(2), strict=True))


def test_a_stratified_deal_keeps_class_shares_in_both_kinds_of_test_set():
    """DTD has 120 samples of each class, so that a common quarter is 30 of each."""
    options = {"clients": 4, "stratified": True, "validation_share": 0.1}
    tested = deal(DTD, "iid", test_set="common", **options)[0].test
    assert np.bincount(DTD[tested.numpy()]).tolist() == [30] * 47
    for test_set in ("own", "common"):
        for client in deal(DTD, "iid", test_set=test_set, **options):
            validation, train = (
                np.bincount(DTD[part.numpy()], minlength=47) for part in (client.validation, client.train)
            )
            whole = validation + train
            assert (abs(validation * whole.sum() - whole * validation.sum()) < whole.sum()).all()
            if test_set == "own":
                test = np.bincount(DTD[client.test.numpy()], minlength=47)
                assert (abs(test * len(client) - (whole + test) * test.sum()) < len(client)).all()


# Natural clients and official splits

OWNERS = np.random.RandomState(3).choice(["ann", "bob", "cid", "eve"], 300, p=[0.4, 0.3, 0.2, 0.1])
OWNERS[:3] = "flo"
LABELS = np.random.RandomState(4).randint(0, 4, 300)
PARTS = np.random.RandomState(5).choice(["train", "validation", "test"], 300, p=[0.6, 0.1, 0.3])


def natural(clients=4, **options):
    return deal(LABELS, "natural", clients, owners=OWNERS.tolist(), min_samples=10, **options)


@pytest.mark.parametrize("test_set", ["own", "common"])
@pytest.mark.parametrize("official", [False, True])
def test_natural_clients_hold_their_own_samples_and_no_others(official, test_set):
    dealt = natural(parts=PARTS.tolist() if official else (), test_set=test_set)
    shared = dealt[0].test if test_set == "common" and not official else torch.tensor([], dtype=torch.int64)
    for name, client in zip(["ann", "bob", "cid", "eve"], dealt, strict=True):
        held = torch.cat([client.train, client.validation, client.test]).tolist()
        assert len(set(held)) == len(held)
        assert set(held) - set(shared.tolist()) == set(np.flatnonzero(name == OWNERS)) - set(shared.tolist())
        if official:
            assert client.test.tolist() == np.flatnonzero((name == OWNERS) & (PARTS == "test")).tolist()


def test_fewer_clients_than_there_are_are_drawn_by_the_seed():
    drawn = {tuple(OWNERS[int(client.train[0])] for client in natural(2, seed=seed)) for seed in range(9)}
    assert len(drawn) > 1
    assert all(list(names) == sorted(set(names)) for names in drawn)
    assert "flo" not in {name for names in drawn for name in names}  # too few samples


def test_more_natural_clients_than_there_are_cannot_be_had():
    with pytest.raises(UserError, match=r"more than the 4 natural clients .* \(5 in all\); set data.clients=4"):
        natural(5)
    with pytest.raises(UserError, match=r"data\.partition=natural needs data that say who owns each image"):
        deal(LABELS, "natural", 4)


def test_a_natural_client_without_official_test_samples_is_refused():
    with pytest.raises(UserError, match=r"natural client 0 \d+ samples to train on and 0 to test on"):
        natural(parts=np.where(OWNERS == "ann", "train", PARTS).tolist())


@pytest.mark.parametrize("test_set", ["own", "common"])
@pytest.mark.parametrize("name", ["dirichlet", "iid", "few_shot_iid"])
def test_the_official_test_part_is_every_clients_test_set(name, test_set):
    dealt = deal(LABELS, name, 3, parts=PARTS.tolist(), test_set=test_set, dirichlet_beta=5.0, shots=3)
    for client in dealt:
        assert client.test.tolist() == np.flatnonzero(PARTS == "test").tolist()
    others = torch.cat([index for client in dealt for index in (client.train, client.validation)]).tolist()
    assert len(set(others)) == len(others)
    assert set(PARTS[others]) == {"train", "validation"}
    if name != "few_shot_iid":
        assert len(others) == (PARTS != "test").sum()


@pytest.mark.parametrize("name", ["natural", "iid"])
@pytest.mark.parametrize(("only", "missing"), [("train", "test on"), ("validation", "test on"), ("test", "train on")])
def test_official_splits_need_something_to_train_and_something_to_test_on(name, only, missing):
    with pytest.raises(UserError, match=rf"splits=official: .* leaves none to {missing}; use data\.splits=merged"):
        deal(LABELS, name, 3, parts=[only] * 300, owners=OWNERS.tolist(), min_samples=10)


def test_official_splits_are_kept_only_where_that_is_asked_for():
    parts = PARTS.tolist()
    official, merged = (deal(LABELS, "iid", 10, parts=parts, splits=how) for how in ("official", "merged"))
    assert torch.equal(official[0].test, torch.from_numpy(np.flatnonzero(PARTS == "test")))
    assert all(map(torch.equal, parts_of(merged), parts_of(deal(LABELS, "iid", 10))))
    with pytest.raises(UserError, match=r"data\.splits=official: digits has no official splits"):
        deal(LABELS, "iid", 10, splits="official")
