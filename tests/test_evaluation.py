"""Accuracy over clients, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddlp.evaluation import Accuracy, accuracy

client = st.integers(0, 500).flatmap(lambda samples: st.tuples(st.integers(0, samples), st.just(samples)))
federations = st.lists(client, min_size=1, max_size=12)


def summarise(clients: list[tuple[int, int]]) -> Accuracy | None:
    correct, samples = torch.tensor(clients).T
    return accuracy(correct, samples)


@given(federations)
def test_the_summary_is_that_of_numpy(clients):
    found = summarise(clients)
    shares = np.array([100 * correct / samples for correct, samples in clients if samples])
    if not len(shares):
        assert found is None
        return
    pooled = 100 * sum(correct for correct, _ in clients) / sum(samples for _, samples in clients)
    expected = [pooled, shares.mean(), shares.std(), shares.min(), np.quantile(shares, 0.1)]
    assert list(vars(found).values()) == pytest.approx(expected, abs=1e-9)


def test_pooled_weighs_samples_and_the_mean_weighs_clients():
    found = summarise([(90, 100), (0, 10)])
    assert found.pooled == pytest.approx(100 * 90 / 110)
    assert found.client_mean == pytest.approx(45)
    assert found.client_std == pytest.approx(45)  # over K, not over K - 1
    assert found.client_lowest == 0


@given(federations, st.integers(1, 4))
def test_clients_without_samples_change_nothing(clients, empty):
    assert summarise(clients) == summarise(clients + [(0, 0)] * empty)


@given(federations, st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(clients, random):
    shuffled = clients.copy()
    random.shuffle(shuffled)
    one, other = summarise(clients), summarise(shuffled)
    assert (one is None) == (other is None)
    if one:
        assert list(vars(one).values()) == pytest.approx(list(vars(other).values()), abs=1e-9)


def test_one_client_has_no_spread():
    assert summarise([(3, 4)]) == Accuracy(75.0, 75.0, 0.0, 75.0, 75.0)


def test_without_any_sample_there_is_no_accuracy():
    assert summarise([(0, 0), (0, 0)]) is None


def test_the_record_is_rounded_and_names_every_number():
    found = summarise([(1, 3), (2, 3)]).as_dict()
    assert found == {
        "pooled": 50.0,
        "client_mean": 50.0,
        "client_std": 16.666667,
        "client_lowest": 33.333333,
        "client_p10": 36.666667,
    }


def test_a_client_that_is_not_scored_yet_counts_nowhere():
    scored = accuracy(torch.tensor([9]), torch.tensor([10]))
    assert accuracy(torch.tensor([9, -1]), torch.tensor([10, 10])) == scored
    assert accuracy(torch.tensor([-1]), torch.tensor([10])) is None
