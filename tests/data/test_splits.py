"""How samples are cut: sizes, disjoint parts, and class shares where a cut is stratified."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.data.splits import ClientSplit, class_counts, hold_out, split
from feddlp.randomness import generator

SHARES = {"test_share": 0.25, "validation_share": 0.1}
PARTS = ("train", "validation", "test")

relaxed = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)
class_ids = st.lists(st.integers(0, 7), min_size=2, max_size=200).map(np.array)
test_shares, validation_shares = st.floats(0.01, 0.99), st.floats(0, 0.99)


@relaxed
@given(st.integers(2, 400), st.floats(0.01, 0.99), st.floats(0, 0.99), st.integers(0, 50), seeds)
def test_the_parts_of_a_client_are_disjoint_and_complete(n, test_share, validation_share, client, seed):
    held = np.arange(n) * 3 + 1
    parts = split(held, client, test_share=test_share, validation_share=validation_share, seed=seed)
    together = torch.cat([parts.train, parts.validation, parts.test])
    assert sorted(together.tolist()) == held.tolist()
    assert len(parts) == n
    assert len(parts.train) >= 1
    assert len(parts.test) >= 1


@given(st.integers(2, 5000))
def test_three_quarters_rounded_down_are_for_training_before_validation_is_carved_out(n):
    parts = split(np.arange(n), 0, **SHARES, seed=1)
    kept = 3 * n // 4
    assert len(parts.test) == n - kept
    assert len(parts.validation) == min(kept - 1, kept // 10)


def test_shares_are_not_lost_to_binary_fractions():
    parts = split(np.arange(10), 0, test_share=0.8, validation_share=0.0, seed=1)  # 1 - 0.8 is just below 0.2
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (2, 0, 8)


def test_validation_comes_out_of_training_and_leaves_the_test_samples_alone():
    without, with_it = (
        split(np.arange(100), 3, test_share=0.25, validation_share=share, seed=1) for share in (0.0, 0.2)
    )
    assert torch.equal(without.test, with_it.test)
    assert torch.equal(without.train, torch.cat([with_it.validation, with_it.train]))


def test_a_split_is_shuffled_and_depends_on_client_and_seed():
    orders = {
        tuple(split(np.arange(50), client, **SHARES, seed=seed).test.tolist()) for client in (0, 1) for seed in (1, 2)
    }
    assert len(orders) == 4
    assert tuple(range(38, 50)) not in orders


def counts(labels: np.ndarray, indices: torch.Tensor) -> np.ndarray:
    return np.bincount(labels[indices.numpy()], minlength=8)


def assert_kept(part: np.ndarray, whole: np.ndarray) -> None:
    """Every class has its share of the part, to less than one sample."""
    assert (part <= whole).all()
    assert (abs(part * whole.sum() - whole * part.sum()) < whole.sum()).all()


def as_it_was(held: np.ndarray, client: int, test_share: float, validation_share: float, seed: int) -> ClientSplit:
    """The plain cut, written out."""
    order = torch.from_numpy(held)[torch.randperm(len(held), generator=generator(seed, "split", client))]
    kept = min(len(order) - 1, max(1, int((1 - test_share) * len(order) + 1e-9)))
    validation = min(kept - 1, int(validation_share * kept + 1e-9))
    return ClientSplit(order[validation:kept], order[:validation], order[kept:])


def same(one: ClientSplit, other: ClientSplit) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


@relaxed
@given(st.integers(2, 400), test_shares, validation_shares, st.integers(0, 50), seeds)
def test_the_plain_cut_stays_what_it_was(n, test_share, validation_share, client, seed):
    held = np.arange(n) * 3 + 1
    parts = split(held, client, test_share=test_share, validation_share=validation_share, seed=seed)
    assert same(parts, as_it_was(held, client, test_share, validation_share, seed))


@relaxed
@given(class_ids, test_shares, validation_shares, seeds)
def test_a_stratified_cut_has_the_plain_sizes_and_keeps_the_class_shares(labels, test_share, validation_share, seed):
    held = np.arange(len(labels))
    options = {"test_share": test_share, "validation_share": validation_share, "seed": seed}
    plain, parts = split(held, 3, **options), split(held, 3, **options, strata=labels)
    assert [len(getattr(parts, part)) for part in PARTS] == [len(getattr(plain, part)) for part in PARTS]
    assert sorted(torch.cat([parts.train, parts.validation, parts.test]).tolist()) == held.tolist()
    train, validation, test = (counts(labels, getattr(parts, part)) for part in PARTS)
    assert_kept(test, train + validation + test)
    assert_kept(validation, train + validation)
    assert_kept(train, train + validation)


@relaxed
@given(class_ids, seeds)
def test_whole_shares_are_kept_exactly(labels, seed):
    labels = np.repeat(labels, 20)
    parts = split(np.arange(len(labels)), 0, test_share=0.25, validation_share=0.2, seed=seed, strata=labels)
    whole = np.bincount(labels, minlength=8)
    for part, share in zip(PARTS, (12, 3, 5), strict=True):
        assert (counts(labels, getattr(parts, part)) * 20 == whole * share).all()


@relaxed
@given(st.integers(2, 300), test_shares, validation_shares, st.integers(0, 9), seeds)
def test_where_there_is_one_class_a_stratified_cut_is_the_plain_one(n, test_share, validation_share, label, seed):
    options = {"test_share": test_share, "validation_share": validation_share, "seed": seed}
    strata = np.full(n, label)
    assert same(split(np.arange(n), 2, **options), split(np.arange(n), 2, **options, strata=strata))


@relaxed
@given(class_ids, st.permutations(range(8)), seeds)
def test_names_of_classes_play_no_role(labels, names, seed):
    held = np.arange(len(labels))
    one, other = (split(held, 0, **SHARES, seed=seed, strata=ids) for ids in (labels, np.array(names)[labels]))
    assert same(one, other)


@relaxed
@given(st.integers(2, 200), seeds)
def test_where_every_sample_is_a_class_of_its_own_a_stratified_cut_is_the_plain_one(n, seed):
    held = np.arange(n)
    assert same(split(held, 0, **SHARES, seed=seed), split(held, 0, **SHARES, seed=seed, strata=held[::-1]))


@pytest.mark.parametrize("strata", [None, np.arange(20) % 3])
def test_training_keeps_a_sample_however_large_the_validation_share(strata):
    parts = split(np.arange(20), 0, test_share=0.5, validation_share=1 - 1e-12, seed=1, strata=strata)
    assert [len(getattr(parts, part)) for part in PARTS] == [1, 9, 10]


def test_strata_are_looked_up_by_index():
    labels, held = np.repeat([0, 1, 0], 100), np.arange(80, 160)  # 20 of class 0, 60 of class 1
    parts = split(held, 0, test_share=0.25, validation_share=0.2, seed=1, strata=labels)
    assert [counts(labels, getattr(parts, part))[:2].tolist() for part in PARTS] == [[12, 36], [3, 9], [5, 15]]


@pytest.mark.parametrize("strata", [None, np.arange(60) % 3])
def test_a_client_without_a_test_share_trains_and_validates_on_everything(strata):
    held = np.arange(10, 50)
    parts = split(held, 0, test_share=0.0, validation_share=0.1, seed=1, strata=strata)
    assert [len(getattr(parts, part)) for part in PARTS] == [36, 4, 0]
    assert sorted(torch.cat([parts.train, parts.validation]).tolist()) == held.tolist()


@relaxed
@given(class_ids, test_shares, seeds, st.booleans())
def test_what_is_held_out_and_what_is_left_are_everything(labels, share, seed, stratified):
    n, strata = len(labels), labels if stratified else None
    remaining, tested = hold_out(n, test_share=share, seed=seed, strata=strata)
    assert remaining.tolist() == sorted(set(range(n)) - set(tested.tolist()))
    assert len(remaining) == min(n - 1, max(1, int((1 - share) * n + 1e-9)))
    assert len(tested) == n - len(remaining)
    if stratified:
        assert_kept(counts(labels, tested), np.bincount(labels, minlength=8))


def test_what_is_held_out_is_shuffled_and_has_an_address_of_its_own():
    order = torch.randperm(100, generator=generator(5, "common_test"))
    assert torch.equal(hold_out(100, test_share=0.25, seed=5)[1], order[75:])
    assert not torch.equal(hold_out(100, test_share=0.25, seed=6)[1], order[75:])


@relaxed
@given(class_ids, st.integers(0, 3), seeds)
def test_class_counts_are_those_of_the_parts(labels, empty, seed):
    held = [np.random.RandomState(seed).permutation(len(labels))]
    splits = [split(own, client, **SHARES, seed=seed) for client, own in enumerate(held)]
    listed = class_counts(splits, labels.tolist(), 8 + empty)
    for client, found in zip(splits, listed, strict=True):
        assert list(found) == list(PARTS)
        for part in PARTS:
            own = labels[getattr(client, part).numpy()].tolist()
            assert found[part] == [own.count(label) for label in range(8 + empty)]


def test_class_counts_are_plain_numbers_client_by_client():
    clients = [
        ClientSplit(torch.tensor([0, 4]), torch.tensor([1]), torch.tensor([2])),
        ClientSplit(torch.tensor([3]), torch.tensor([], dtype=torch.int64), torch.tensor([2])),
    ]
    listed = class_counts(clients, [0, 1, 1, 0, 2], 4)
    assert listed == [
        {"train": [1, 0, 1, 0], "validation": [0, 1, 0, 0], "test": [0, 1, 0, 0]},
        {"train": [1, 0, 0, 0], "validation": [0, 0, 0, 0], "test": [0, 1, 0, 0]},
    ]
    assert all(type(count) is int for client in listed for part in client.values() for count in part)
