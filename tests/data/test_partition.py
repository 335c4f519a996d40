"""Who holds what: the paper's partition to the sample, and what every partition must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import DataConfig, load_config
from feddlp.data import partition as module
from feddlp.data.partition import MAX_TRIES, Samples
from feddlp.data.splits import split, split_clients
from feddlp.errors import UserError

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


def partition(labels, name, clients, *, seed=1, classes=None, **options):
    """The holdings under a configuration with these keys."""
    data = DataConfig(partition=name, clients=clients, partition_seed=seed, **options)
    return module.partition(Samples(labels, classes or int(labels.max()) + 1), data)


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
    first, second = (split_clients(DTD, load_config(None, [*options, f"seed={seed}"]).data) for seed in (0, 7))
    for one, other in zip(first, second, strict=True):
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(one, part), getattr(other, part))


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
    with pytest.raises(UserError, match=r"data\.classes_per_client=48 .*47 classes of .* at most 47"):
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


FEW_SHOT = ["few_shot_iid", "few_shot_pathological"]


def all_equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@st.composite
def few_shot(draw, name: str):
    """Labels, clients and shots that the few-shot partition can serve."""
    labels = draw(labelled(smallest=12))
    most = 4 if name == "few_shot_iid" else int(labels.max()) + 1
    return labels, draw(st.integers(1, most)), draw(st.integers(1, 3))


def assert_disjoint(holdings: list[np.ndarray]) -> None:
    held = np.concatenate(holdings).tolist()
    assert len(set(held)) == len(held)


@relaxed
@given(few_shot("few_shot_iid"), seeds)
def test_few_shot_iid_gives_everyone_exactly_its_shots_of_every_class(case, seed):
    labels, clients, shots = case
    holdings = partition(labels, "few_shot_iid", clients, shots=shots, seed=seed)
    assert len(holdings) == clients
    for held in holdings:
        assert np.bincount(labels[held]).tolist() == [shots] * (int(labels.max()) + 1)
    assert_disjoint(holdings)


@relaxed
@given(few_shot("few_shot_pathological"), st.integers(2, 12), seeds)
def test_few_shot_pathological_gives_every_class_to_one_client(case, shots, seed):
    labels, clients, _ = case
    classes = int(labels.max()) + 1
    holdings = partition(labels, "few_shot_pathological", clients, shots=shots, seed=seed)
    own = classes_of(labels, holdings)
    assert sorted(label for held in own for label in held) == list(range(classes))
    assert len(own) == clients
    assert max(map(len, own)) - min(map(len, own)) <= 1
    assert min(map(len, own)) >= 1
    assert np.bincount(np.concatenate([labels[held] for held in holdings])).tolist() == [shots] * classes
    assert_disjoint(holdings)


@relaxed
@given(st.sampled_from(FEW_SHOT), st.integers(2, 12), st.integers(0, 60), seeds)
def test_more_shots_keep_the_samples_of_fewer(name, shots, more, seed):
    fewer, others = (partition(DTD, name, 2, shots=count, seed=seed) for count in (shots, min(60, shots + more)))
    for held, larger in zip(fewer, others, strict=True):
        assert set(held) <= set(larger)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_few_shot_depends_on_the_partition_seed_and_on_nothing_that_is_not_asked_for(name):
    first = partition(DTD, name, 5, shots=4, seed=1)
    torch.manual_seed(5)
    np.random.seed(5)
    unrelated = {"dirichlet_beta": 9.0, "classes_per_client": 7, "min_samples": 3}
    assert all_equal(first, partition(DTD, name, 5, shots=4, seed=1, **unrelated))
    assert not all_equal(first, partition(DTD, name, 5, shots=4, seed=2))


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "iid"])
def test_shots_concern_the_few_shot_partitions_alone(name):
    options = {"classes_per_client": 5, "seed": 3}
    assert all_equal(partition(DTD, name, 10, shots=1, **options), partition(DTD, name, 10, shots=999, **options))


def test_few_shot_pathological_deals_classes_at_random():
    dealt = [classes_of(DTD, partition(DTD, "few_shot_pathological", 10, seed=seed))[0] for seed in range(5)]
    assert len({frozenset(own) for own in dealt}) == 5


@relaxed
@given(labelled(), st.integers(1, 20), st.integers(1, 40), seeds)
def test_a_few_shot_iid_that_cannot_be_served_says_what_can(labels, clients, shots, seed):
    sizes = np.bincount(labels)
    try:
        partition(labels, "few_shot_iid", clients, shots=shots, seed=seed)
    except UserError as error:
        refusal = str(error)
    else:
        assert sizes.min() >= clients * shots
        return
    assert sizes.min() < clients * shots
    assert f"data.shots={shots} with data.clients={clients} takes {clients * shots} samples" in refusal
    assert f"class {sizes.argmin()} has {sizes.min()};" in refusal
    served = refusal.partition("at most ")[2]
    if " with " in served:
        advice = [dict(pair.split("=") for pair in served.split(" with "))]
    else:
        advice = [dict([way.split("=")]) for way in served.split(" or ")]
    assert advice
    for way in advice:
        many, each = int(way.get("data.clients", clients)), int(way.get("data.shots", shots))
        partition(labels, "few_shot_iid", many, shots=each, seed=seed)
        for key in way:  # and one more of it is too many
            grown = {"clients": many + (key == "data.clients"), "shots": each + (key == "data.shots")}
            with pytest.raises(UserError, match=r"data\.shots"):
                partition(labels, "few_shot_iid", **grown, seed=seed)


def test_a_class_too_small_for_its_owner_is_refused_with_the_shots_that_would_do():
    labels = np.repeat([0, 1, 2], [50, 7, 50])
    message = r"data\.shots=8 with data\.clients=2 takes 8 samples of every class, class 1 has 7; .*data\.shots=7$"
    with pytest.raises(UserError, match=message):
        partition(labels, "few_shot_pathological", 2, shots=8)
    partition(labels, "few_shot_pathological", 2, shots=7)


def test_more_clients_than_classes_to_own_are_refused():
    with pytest.raises(UserError, match=r"data\.clients=48 .*47 classes .*few_shot_pathological .*at most 47"):
        partition(DTD, "few_shot_pathological", 48)
    partition(DTD, "few_shot_pathological", 47)


def test_a_class_with_no_sample_at_all_is_refused():
    for name in FEW_SHOT:
        with pytest.raises(UserError, match=r"data\.shots=2 .*class 3 has 0; use more samples"):
            partition(np.repeat([0, 1, 2], 10), name, 2, shots=2, classes=4)


@pytest.mark.parametrize(("name", "clients"), [("few_shot_iid", 1), ("few_shot_pathological", 3)])
def test_too_few_shots_for_a_client_to_train_and_test_are_refused(name, clients):
    with pytest.raises(UserError, match=rf"data\.partition={name} .* data\.min_samples=4; use more data\.shots"):
        partition(np.repeat([0, 1, 2], 10), name, clients, shots=1, min_samples=4)
