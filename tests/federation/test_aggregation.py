"""The server's mean."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from feddlp.federation.aggregation import weighted_mean

weights = st.lists(st.integers(1, 500), min_size=1, max_size=6)


def theta_of(clients):
    generator = torch.Generator().manual_seed(clients)
    return {
        "site.A": torch.randn(clients, 2, 3, generator=generator),
        "site.B": torch.randn(clients, 4, generator=generator),
    }


@given(weights)
def test_is_the_sum_of_shares(weights):
    theta = theta_of(len(weights))
    mean = weighted_mean(theta, torch.tensor(weights))
    for name, leaf in theta.items():
        expected = sum(weight / sum(weights) * leaf[k].double() for k, weight in enumerate(weights))
        torch.testing.assert_close(mean[name], expected.float())
        assert mean[name].dtype == leaf.dtype


@given(weights)
def test_clients_that_agree_are_left_as_they_are(weights):
    same = {"site.A": torch.linspace(-1, 1, 6).view(2, 3).expand(len(weights), 2, 3)}
    torch.testing.assert_close(weighted_mean(same, torch.tensor(weights))["site.A"], same["site.A"][0])


@given(weights, st.randoms())
def test_the_order_of_clients_does_not_matter(weights, random):
    order = list(range(len(weights)))
    random.shuffle(order)
    theta = theta_of(len(weights))
    shuffled = weighted_mean({name: leaf[order] for name, leaf in theta.items()}, torch.tensor(weights)[order])
    for name, leaf in weighted_mean(theta, torch.tensor(weights)).items():
        torch.testing.assert_close(shuffled[name], leaf)


def test_a_client_with_all_the_samples_is_the_mean():
    theta = theta_of(3)
    mean = weighted_mean(theta, torch.tensor([0, 7, 0]))
    assert all(torch.equal(mean[name], leaf[1]) for name, leaf in theta.items())
