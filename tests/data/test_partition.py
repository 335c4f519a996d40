"""Who holds what: the paper's partition to the sample, and what every partition must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import load_config
from feddlp.data import partition as module
from feddlp.data.partition import MAX_TRIES, partition, split
from feddlp.errors import UserError
from feddlp.experiment import deal

DTD = np.repeat(np.arange(47), 120)
SHARES = {"test_share": 0.25, "validation_share": 0.1}
PAPER = {
    0.1: (
        [518, 634, 365, 596, 589, 524, 582, 622, 610, 600],
        [130, 159, 92, 149, 148, 131, 146, 156, 153, 150],
        [18, 12, 15, 19, 14, 21, 16, 19, 19, 44],
    ),
    0.01: (
        [655, 594, 600, 595, 594, 338, 583, 576, 518, 587],
        [164, 149, 150, 149, 149, 85, 146, 144, 130, 147],
        [8, 7, 7, 5, 7, 7, 8, 14, 17, 16],
    ),
}

relaxed = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def labelled(draw, smallest: int = 1, classes: int = 6) -> np.ndarray:
    """Labels 0..C-1 in any order, every class with at least `smallest` samples."""
    sizes = draw(st.lists(st.integers(smallest, smallest + 30), min_size=2, max_size=classes))
    return np.random.RandomState(draw(seeds)).permutation(np.repeat(np.arange(len(sizes)), sizes))


def classes_of(labels: np.ndarray, holdings: list[np.ndarray]) -> list[set[int]]:
    return [set(labels[held].tolist()) for held in holdings]


def assert_deals_everything(labels: np.ndarray, holdings: list[np.ndarray]) -> None:
    assert sorted(np.concatenate(holdings).tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("beta", PAPER)
def test_the_papers_partition_is_reproduced(beta):
    sizes, test_sizes, classes = PAPER[beta]
    holdings = partition(DTD, "dirichlet", 10, dirichlet_beta=beta, seed=1)
    assert [len(held) for held in holdings] == sizes
    assert [len(held) for held in classes_of(DTD, holdings)] == classes
    splits = [split(held, client, **SHARES, seed=1) for client, held in enumerate(holdings)]
    assert [len(parts.test) for parts in splits] == test_sizes
    assert_deals_everything(DTD, holdings)


@relaxed
@given(labelled(), st.sampled_from(["dirichlet", "pathological", "iid"]), st.integers(1, 8), seeds)
def test_every_sample_goes_to_exactly_one_client_or_the_request_is_refused(labels, name, clients, seed):
    try:
        holdings = partition(labels, name, clients, dirichlet_beta=0.5, seed=seed)
    except UserError:
        return
    assert len(holdings) == clients
    assert min(map(len, holdings)) >= 2
    assert_deals_everything(labels, holdings)


@relaxed
@given(labelled(), st.sampled_from(["dirichlet", "iid"]), st.integers(1, 3), st.integers(0, 9), seeds)
def test_the_same_seed_gives_the_same_partition_whatever_was_drawn_before(labels, name, clients, drawn, seed):
    def once():
        np.random.seed(drawn)
        torch.manual_seed(drawn)
        return partition(labels, name, clients, dirichlet_beta=5.0, min_samples=2, seed=seed)

    try:
        first = once()
    except UserError:
        return
    drawn += 1
    for one, other in zip(first, once(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "iid"])
def test_another_partition_seed_gives_another_partition(name):
    first, second = (partition(DTD, name, 10, classes_per_client=5, seed=seed) for seed in (1, 2))
    assert any(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "iid"])
def test_the_run_seed_plays_no_role(name):
    options = [f"data.partition={name}", "data.classes_per_client=5"]
    first, second = (deal(load_config(None, [*options, f"seed={seed}"]), DTD) for seed in (0, 7))
    for one, other in zip(first, second, strict=True):
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(one, part), getattr(other, part))


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


@relaxed
@given(st.data(), labelled(smallest=12), st.integers(1, 6), seeds)
def test_pathological_clients_hold_exactly_their_number_of_classes(data, labels, clients, seed):
    classes = int(labels.max()) + 1
    per_client = data.draw(st.integers(-(-classes // clients), classes))
    holdings = partition(labels, "pathological", clients, classes_per_client=per_client, seed=seed)
    held = classes_of(labels, holdings)
    assert [len(classes) for classes in held] == [per_client] * clients
    assert set().union(*held) == set(range(classes))
    holders = [sum(label in own for own in held) for label in range(classes)]
    assert max(holders) - min(holders) <= 1
    assert_deals_everything(labels, holdings)


def test_holders_of_a_class_share_it_evenly():
    holdings = partition(DTD, "pathological", 10, classes_per_client=12, seed=3)
    for label in range(47):
        shares = [count for held in holdings if (count := int((DTD[held] == label).sum()))]
        assert max(shares) - min(shares) <= 1


@relaxed
@given(labelled(smallest=10), st.integers(1, 10), seeds)
def test_iid_sizes_differ_by_at_most_one(labels, clients, seed):
    sizes = [len(held) for held in partition(labels, "iid", clients, seed=seed)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_clients_see_every_class():
    held = classes_of(DTD, partition(DTD, "iid", 5, seed=1))
    assert all(len(classes) == 47 for classes in held)


def test_smaller_beta_is_more_skewed():
    held = [
        np.mean([len(own) for own in classes_of(DTD, partition(DTD, "dirichlet", 10, dirichlet_beta=beta))])
        for beta in (0.01, 0.1, 1.0, 100.0)
    ]
    assert held == sorted(held)


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "iid"])
def test_more_clients_than_the_samples_allow_are_refused_with_the_numbers(name):
    with pytest.raises(UserError, match=r"data\.clients=60 .*data\.min_samples=2 need 120 .*has 100; .*at most 50"):
        partition(np.arange(100) % 4, name, 60)


@pytest.mark.parametrize("beta", [1e-6, 1e-300, 5e-324, 1e308])
def test_a_beta_that_numbers_cannot_hold_is_refused(beta):
    with pytest.raises(UserError, match=r"data\.clients=10 with data\.dirichlet_beta=.* data\.min_samples=2 .*tries"):
        partition(DTD, "dirichlet", 10, dirichlet_beta=beta)


def test_an_unreachable_smallest_client_is_refused_and_says_how_near_it_came():
    with pytest.raises(UserError, match=r"data\.min_samples=60 .*600 samples .*best: [1-9]"):
        partition(np.arange(600) % 10, "dirichlet", 10, dirichlet_beta=0.1, min_samples=60)


def test_a_hopeless_dirichlet_stops_after_the_allowed_tries(monkeypatch):
    tries = []
    monkeypatch.setattr(module, "dirichlet_draw", lambda *_: tries.append(1))
    with pytest.raises(UserError, match="tries"):
        partition(DTD, "dirichlet", 10)
    assert len(tries) == MAX_TRIES <= 1000


def test_a_client_that_holds_its_even_share_gets_nothing_more():
    labels, full = np.repeat([0, 1], 10), 0
    for seed in range(40):
        first, _ = module.dirichlet_draw(labels, 2, 0.01, np.random.RandomState(seed))
        if np.count_nonzero(labels[first] == 0) == 10:
            full += 1
            assert len(first) == 10
    assert full > 5


def test_a_dirichlet_is_repeated_until_every_client_has_enough():
    once = partition(DTD, "dirichlet", 10, dirichlet_beta=0.01, min_samples=2)
    again = partition(DTD, "dirichlet", 10, dirichlet_beta=0.01, min_samples=400)
    assert min(map(len, once)) == 338
    assert min(map(len, again)) >= 400


def test_more_classes_per_client_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"data\.classes_per_client=48 .*47 classes .*at most 47"):
        partition(DTD, "pathological", 10, classes_per_client=48)


def test_classes_that_nobody_would_hold_are_refused():
    with pytest.raises(UserError, match=r"data\.clients=10 x data\.classes_per_client=4 cover 40 of 47 .*at least 5"):
        partition(DTD, "pathological", 10, classes_per_client=4)


def test_a_class_too_small_for_its_holders_is_refused():
    labels = np.array([0] + [1] * 100)
    with pytest.raises(UserError, match=r"data\.classes_per_client=2"):
        partition(labels, "pathological", 10, classes_per_client=2)


def test_a_pathological_client_with_too_few_samples_is_refused():
    labels = np.repeat(np.arange(4), [1, 1, 100, 100])
    with pytest.raises(UserError, match=r"data\.partition=pathological with data\.clients=4 .* data\.min_samples=2"):
        partition(labels, "pathological", 4, classes_per_client=1)


@given(st.integers(2, 40), st.integers(1, 20))
def test_iid_keeps_the_smallest_client_or_is_refused(min_samples, clients):
    try:
        holdings = partition(np.zeros(100, dtype=int), "iid", clients, min_samples=min_samples)
    except UserError:
        assert clients * min_samples > 100
    else:
        assert min(map(len, holdings)) >= min_samples
