"""LoRA and gated LoRA: their mathematics, their starts, and what pruning does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.model.adapters import LinearSite, LoRA, count_parameters
from feddlp.model.gates import GatedLoRA, active_by_site, soft_threshold
from feddlp.randomness import generator
from feddlp.training.cohort import stack

SITES = {"first": LinearSite(6, 4), "second": LinearSite(5, 8)}
ADAPTERS = [LoRA(3), LoRA(2, lora_init="authors"), GatedLoRA(4), GatedLoRA(2, gate_init="ones")]


def draw(site):
    return generator(0, site)


def random_theta(adapter, clients):
    theta = stack([adapter.init(SITES, lambda site, k=k: generator(k, site)) for k in range(clients)])
    g = torch.Generator().manual_seed(1)
    return {name: leaf + torch.randn(leaf.shape, generator=g) for name, leaf in theta.items()}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_delta_is_each_clients_own_low_rank_matrix(adapter):
    theta, x = random_theta(adapter, 3), torch.randn(3, 7, 6)
    delta = adapter.delta(theta, "first", x, torch.empty(3, 7, 4))
    for k in range(3):
        up, down = theta["first.B"][k], theta["first.A"][k]
        gate = theta["first.gate"][k] if "first.gate" in theta else torch.ones(adapter.rank)
        torch.testing.assert_close(delta[k], x[k] @ (adapter.scaling * up @ torch.diag(gate) @ down).T)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_an_adapter_starts_as_nothing(adapter):
    theta = stack([adapter.init(SITES, draw)])
    assert not adapter.delta(theta, "first", torch.randn(1, 5, 6), torch.empty(1, 5, 4)).any()


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_leaves_have_the_shapes_that_are_counted(adapter):
    theta = adapter.init(SITES, draw)
    shapes = {
        f"{site}.{leaf}": shape for site, size in SITES.items() for leaf, shape in adapter.shapes(site, size).items()
    }
    assert {name: tuple(leaf.shape) for name, leaf in theta.items()} == shapes
    assert sum(leaf.numel() for leaf in theta.values()) == count_parameters(adapter, SITES)


def test_a_sites_start_does_not_depend_on_the_other_sites():
    adapter = GatedLoRA(4)
    alone = adapter.init({"second": SITES["second"]}, draw)
    among = adapter.init(SITES, draw)
    assert all(torch.equal(among[name], leaf) for name, leaf in alone.items())


def test_starts_have_the_published_spread():
    site = {"wide": LinearSite(4000, 4)}
    kaiming, authors = LoRA(4).init(site, draw)["wide.A"], LoRA(4, lora_init="authors").init(site, draw)["wide.A"]
    assert kaiming.abs().max() <= 4000**-0.5
    assert kaiming.std().item() == pytest.approx((3 * 4000) ** -0.5, rel=0.05)
    assert authors.std().item() == pytest.approx(0.5, rel=0.05)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(0, 1))
def test_soft_threshold_shrinks_towards_zero_and_never_across(values, threshold):
    gates = torch.tensor(values)
    shrunk = soft_threshold(gates, threshold)
    assert (shrunk * gates >= 0).all()
    torch.testing.assert_close(shrunk.abs(), (gates.abs() - threshold).clamp(min=0))
    assert not shrunk[gates.abs() <= threshold].any()


def test_projection_touches_gates_only():
    adapter = GatedLoRA(4, gate_threshold=0.3)
    theta = random_theta(adapter, 2)
    projected = adapter.project(theta, 0.0)
    assert projected.keys() == {"first.gate", "second.gate"}
    torch.testing.assert_close(projected["first.gate"], soft_threshold(theta["first.gate"], 0.3))
    assert LoRA(4).project(random_theta(LoRA(4), 2), 0.0) == {}


def test_a_pruned_rank_can_be_cut_out_without_a_trace():
    adapter, x = GatedLoRA(4), torch.randn(1, 5, 6)
    theta = random_theta(adapter, 1)
    theta["first.gate"][0, 1] = 0
    keep = [0, 2, 3]
    cut = {
        "first.A": theta["first.A"][:, keep],
        "first.B": theta["first.B"][..., keep],
        "first.gate": theta["first.gate"][:, keep],
    }
    y = torch.empty(1, 5, 4)
    torch.testing.assert_close(adapter.delta(cut, "first", x, y), adapter.delta(theta, "first", x, y))


def test_active_ranks_count_gates_that_are_not_zero():
    theta = random_theta(GatedLoRA(4), 2)
    theta["first.gate"][0, :3] = 0
    assert sum(active_by_site(theta).values()).tolist() == [5, 8]
    assert active_by_site(random_theta(LoRA(4), 2)) == {}


def test_bfloat16_rows_get_a_bfloat16_delta_while_leaves_stay_float32():
    theta = random_theta(LoRA(3), 2)
    x = torch.randn(2, 5, 6)
    delta = LoRA(3).delta(theta, "first", x.bfloat16(), torch.empty(2, 5, 4, dtype=torch.bfloat16))
    assert delta.dtype == torch.bfloat16
    torch.testing.assert_close(
        delta.float(), LoRA(3).delta(theta, "first", x, torch.empty(2, 5, 4)), rtol=0.1, atol=0.5
    )
