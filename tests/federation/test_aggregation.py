"""The server's mean, of factors and of products, and its momentum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.federation.aggregation import ProductMean, Server, WeightedMean


def weighted_mean(theta, weights):
    return fed(WeightedMean(), theta, weights, [len(weights)])


def average_products(theta, weights):
    return fed(ProductMean(), theta, weights, [len(weights)])


def fed(average, theta, weights, sizes):
    """What an average finds that gets its clients in parts of these sizes."""
    start = 0
    for size in sizes:
        part = slice(start, start := start + size)
        average.add({name: leaf[part] for name, leaf in theta.items()}, weights[part])
    return average.result()


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


# FlexLoRA averages products


def lora_of(clients, rank, width_in, width_out, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "site.A": torch.randn(clients, rank, width_in, generator=g).double(),
        "site.B": torch.randn(clients, width_out, rank, generator=g).double(),
    }


def mean_product(theta, weights):
    shares = torch.tensor(weights).double() / sum(weights)
    return torch.einsum("k,kor,kri->oi", shares, theta["site.B"], theta["site.A"])


@settings(max_examples=40, deadline=None)
@given(weights, st.integers(1, 4), st.integers(4, 12), st.integers(4, 12), st.integers(0, 99))
def test_products_are_cut_back_to_the_best_approximation_of_their_rank(weights, rank, width_in, width_out, seed):
    """Eckart and Young: the truncated SVD of the dense mean, whether K r is more or less than the widths."""
    theta = lora_of(len(weights), rank, width_in, width_out, seed)
    found = average_products(theta, torch.tensor(weights))
    assert {name: leaf.shape for name, leaf in found.items()} == {name: leaf.shape[1:] for name, leaf in theta.items()}
    u, s, v = torch.linalg.svd(mean_product(theta, weights), full_matrices=False)
    best = u[:, :rank] * s[:rank] @ v[:rank]
    torch.testing.assert_close(found["site.B"] @ found["site.A"], best, rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(weights, st.integers(1, 4))
def test_clients_with_the_same_product_are_averaged_exactly(weights, rank):
    """Also where their factors differ by a change of basis, which would spoil an average of factors."""
    clients = len(weights)
    theta = {name: leaf.expand(clients, *leaf.shape[1:]).clone() for name, leaf in lora_of(1, rank, 7, 5).items()}
    expected = theta["site.B"][0] @ theta["site.A"][0]
    for k in range(clients):
        basis = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(k)).double())[0]
        theta["site.B"][k], theta["site.A"][k] = theta["site.B"][k] @ basis, basis.mT @ theta["site.A"][k]
    found = average_products(theta, torch.tensor(weights))
    torch.testing.assert_close(found["site.B"] @ found["site.A"], expected, rtol=0, atol=1e-9)


def test_both_factors_carry_the_root_of_the_singular_values():
    found = average_products(lora_of(3, 2, 6, 5), torch.tensor([1, 2, 3]))
    gram_down, gram_up = found["site.A"] @ found["site.A"].mT, found["site.B"].mT @ found["site.B"]
    torch.testing.assert_close(gram_down, gram_up)
    torch.testing.assert_close(gram_down, gram_down.diagonal().diag(), rtol=0, atol=1e-9)


def test_clients_without_weight_do_not_count_and_sites_stay_apart():
    first, second = lora_of(3, 2, 6, 5), lora_of(3, 2, 4, 9, seed=1)
    theta = first | {name.replace("site", "other"): leaf for name, leaf in second.items()}
    found = average_products(theta, torch.tensor([0, 4, 0]))
    torch.testing.assert_close(found["site.B"] @ found["site.A"], first["site.B"][1] @ first["site.A"][1])
    torch.testing.assert_close(found["other.B"] @ found["other.A"], second["site.B"][1] @ second["site.A"][1])


@pytest.mark.parametrize(("width_in", "width_out"), [(3, 9), (9, 3), (3, 3)])
def test_a_rank_above_the_layers_width_keeps_its_shape_and_its_product(width_in, width_out):
    theta = lora_of(2, 5, width_in, width_out)
    found = average_products(theta, torch.tensor([1, 3]))
    assert found["site.A"].shape == (5, width_in)
    assert found["site.B"].shape == (width_out, 5)
    torch.testing.assert_close(found["site.B"] @ found["site.A"], mean_product(theta, [1, 3]))


def test_products_in_float32_come_back_in_float32():
    theta = {name: leaf.float() for name, leaf in lora_of(3, 2, 6, 5).items()}
    assert {leaf.dtype for leaf in average_products(theta, torch.tensor([1, 1, 1])).values()} == {torch.float32}


# In waves

parts = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(parts, st.integers(1, 4), st.integers(2, 6), st.integers(2, 6))
def test_clients_in_parts_give_the_mean_of_all(sizes, rank, width_in, width_out):
    theta = lora_of(sum(sizes), rank, width_in, width_out)
    counts = torch.arange(1, sum(sizes) + 1)
    whole, part = weighted_mean(theta, counts), fed(WeightedMean(), theta, counts, sizes)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    whole, part = (
        product(average) for average in (average_products(theta, counts), fed(ProductMean(), theta, counts, sizes))
    )
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-9)


def product(theta):
    return theta["site.B"] @ theta["site.A"]


@pytest.mark.parametrize(("width_in", "width_out"), [(4, 7), (7, 4)])
def test_what_a_mean_of_products_keeps_does_not_grow_with_the_clients(width_in, width_out):
    average, kept = ProductMean(), []
    for part in range(6):
        average.add(lora_of(3, 2, width_in, width_out, seed=part), torch.tensor([1, 2, 3]))
        kept.append(sum(factor.numel() for factor in average.factors["site"]))
    assert kept[1:] == [4 * (4 + 7)] * 5


# The server and its momentum


def shared_of(seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "global": {"site.A": torch.randn(2, 3, generator=g).double()},
        "local": {"site.B": torch.randn(4, generator=g).double()},
    }


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 5))
def test_momentum_follows_the_recursion(beta, steps):
    """v <- beta v + (theta - average), theta <- theta - v, number by number."""
    server = Server(shared_of(0), beta)
    theta = {(name, leaf): value.clone() for name, leaves in shared_of(0).items() for leaf, value in leaves.items()}
    velocity = {key: torch.zeros_like(value) for key, value in theta.items()}
    for step in range(steps):
        average = shared_of(step + 1)
        server.step(average)
        for name, leaf in theta:
            velocity[name, leaf] = beta * velocity[name, leaf] + (theta[name, leaf] - average[name][leaf])
            theta[name, leaf] = theta[name, leaf] - velocity[name, leaf]
            torch.testing.assert_close(server.shared[name][leaf], theta[name, leaf])


def test_without_momentum_the_server_holds_the_averages_to_the_bit():
    server = Server(shared_of(0))
    server.step(shared_of(1))
    assert all(torch.equal(server.shared[n][leaf], v) for n, t in shared_of(1).items() for leaf, v in t.items())
    assert not any(name.startswith("velocity") for name in server.state_dict())


def test_a_server_that_is_told_nothing_new_goes_on_by_its_momentum_alone():
    server, standing = Server(shared_of(0), 0.5), Server(shared_of(0), 0.5)
    server.step(shared_of(1))
    before = {leaf: value.clone() for leaf, value in server.shared["global"].items()}
    server.step(server.shared)
    velocity = shared_of(0)["global"]["site.A"] - shared_of(1)["global"]["site.A"]
    torch.testing.assert_close(server.shared["global"]["site.A"], before["site.A"] - 0.5 * velocity)
    standing.step(shared_of(0))
    assert torch.equal(standing.shared["global"]["site.A"], shared_of(0)["global"]["site.A"])


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_a_server_goes_on_from_its_state_to_the_bit(beta):
    server = Server(shared_of(0), beta)
    server.step(shared_of(1))
    state = {name: value.clone() for name, value in server.state_dict().items()}
    resumed = Server(shared_of(9), beta)
    resumed.load_state_dict(state)
    for one in (server, resumed):
        one.step(shared_of(2))
    assert server.state_dict().keys() == resumed.state_dict().keys() == state.keys()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in server.state_dict().items())


def test_a_loaded_server_shares_no_memory_with_where_it_came_from():
    """Else two servers that start from one state would push each other."""
    first = Server(shared_of(0), 0.7)
    first.step(shared_of(1))
    second = Server(shared_of(0), 0.7)
    second.load_state_dict(first.state_dict())
    before = {name: value.clone() for name, value in first.state_dict().items()}
    second.step(shared_of(2))
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_a_loaded_server_keeps_its_own_kind_of_numbers():
    """A checkpoint comes back on the CPU and as it was written; the server stays where its cohort computes."""
    server = Server(shared_of(0), 0.7)
    server.load_state_dict({name: value.float() for name, value in server.state_dict().items()})
    assert {value.dtype for value in server.state_dict().values()} == {torch.float64}
