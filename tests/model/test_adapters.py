"""Adapters of every kind: their mathematics, their starts, the sites they act at, and what pruning does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.model.adapters import (
    Dense,
    FeatureAttention,
    FeatureSite,
    LinearSite,
    LoRA,
    WeightSite,
    count_parameters,
    sites_of,
)
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


def product(adapter, theta, site="first"):
    """The change of a layer's weight. [K, d_out, d_in]"""
    down, up = adapter.factors(theta, site)
    return up @ down


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_the_change_is_each_clients_own_low_rank_matrix(adapter):
    theta = random_theta(adapter, 3)
    change = product(adapter, theta)
    for k in range(3):
        up, down = theta["first.B"][k], theta["first.A"][k]
        gate = theta["first.gate"][k] if "first.gate" in theta else torch.ones(adapter.rank)
        torch.testing.assert_close(change[k], adapter.scaling * up @ torch.diag(gate) @ down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_an_adapter_starts_as_nothing(adapter):
    theta = stack([adapter.init(SITES, draw)])
    assert not product(adapter, theta).any()


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


@settings(max_examples=50)
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
    adapter = GatedLoRA(4)
    theta = random_theta(adapter, 1)
    theta["first.gate"][0, 1] = 0
    keep = [0, 2, 3]
    cut = {
        "first.A": theta["first.A"][:, keep],
        "first.B": theta["first.B"][..., keep],
        "first.gate": theta["first.gate"][:, keep],
    }
    torch.testing.assert_close(product(adapter, cut), product(adapter, theta))


def test_active_ranks_count_gates_that_are_not_zero():
    theta = random_theta(GatedLoRA(4), 2)
    theta["first.gate"][0, :3] = 0
    assert sum(active_by_site(theta).values()).tolist() == [5, 8]
    assert active_by_site(random_theta(LoRA(4), 2)) == {}


# Scaling and layers


@pytest.mark.parametrize(("rank", "standard", "rslora"), [(1, 16, 16), (4, 4, 8), (16, 1, 4)])
@pytest.mark.parametrize("kind", [LoRA, GatedLoRA])
def test_rslora_divides_by_the_root_of_the_rank(kind, rank, standard, rslora):
    plain, stabilised = kind(rank), kind(rank, lora_scaling="rslora")
    assert (plain.scaling, stabilised.scaling) == (standard, rslora)
    theta = random_theta(plain, 2)
    torch.testing.assert_close(product(stabilised, theta), product(plain, theta) * rslora / standard)


ALL_KINDS = {
    "text_model.encoder.layers.0.self_attn.q_proj": LinearSite(6, 6),
    "text_model.encoder.layers.0.self_attn.out_proj": LinearSite(6, 6),
    "text_model.encoder.layers.0.mlp.fc1": LinearSite(6, 9),
    "text_projection": LinearSite(6, 5),
    "text.features": FeatureSite(5),
    "text_projection.weight": WeightSite((5, 6)),
    "text_model.final_layer_norm.bias": WeightSite((6,)),
}


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (LoRA(2), list(ALL_KINDS)[:4]),
        (GatedLoRA(2), list(ALL_KINDS)[:4]),
        (LoRA(2, layers="attention_out"), [list(ALL_KINDS)[1]]),
        (GatedLoRA(2, layers="attention_out"), [list(ALL_KINDS)[1]]),
        (FeatureAttention(), ["text.features"]),
        (Dense(), list(ALL_KINDS)[5:]),
    ],
    ids=str,
)
def test_an_adapter_acts_at_sites_of_its_kind_and_leaves_the_others_alone(adapter, expected):
    theta = adapter.init(ALL_KINDS, draw)
    assert list(sites_of(theta)) == expected
    assert [name for name, site in ALL_KINDS.items() if adapter.shapes(name, site)] == expected
    assert sum(leaf.numel() for leaf in theta.values()) == count_parameters(adapter, ALL_KINDS)
    for site, leaves in sites_of(theta).items():
        shapes = adapter.shapes(site, ALL_KINDS[site])
        assert {leaf: tuple(theta[f"{site}.{leaf}"].shape) for leaf in leaves} == shapes


# FedCLIP's attention over features

FEATURES = {"image.features": FeatureSite(8)}


def test_feature_attention_is_its_formula_for_each_client():
    adapter = FeatureAttention()
    theta = stack([adapter.init(FEATURES, lambda site, k=k: generator(k, site)) for k in range(3)])
    x = torch.randn(3, 5, 8)
    changed = adapter.transform(theta, "image.features", x)
    for k in range(3):
        w1, b1, w2, b2 = (theta[f"image.features.{leaf}"][k] for leaf in ("W1", "b1", "W2", "b2"))
        for sample in range(5):
            f = x[k, sample]
            expected = f * torch.softmax(w2 @ torch.tanh(w1 @ f + b1) + b2, dim=0)
            torch.testing.assert_close(changed[k, sample], expected)
    assert adapter.project(theta, 3.0) == {}


def test_feature_attention_starts_as_it_says():
    kinds = ("default", "identity", "neutral")
    default, identity, neutral = (FeatureAttention(kind).init(FEATURES, draw) for kind in kinds)
    bound = 8**-0.5
    for leaf in default.values():
        assert 0 < leaf.abs().max() <= bound
    assert torch.equal(identity["image.features.W1"], torch.eye(8))
    assert torch.equal(identity["image.features.W2"], torch.eye(8))
    assert not identity["image.features.b1"].any()
    assert not identity["image.features.b2"].any()
    pointers = [leaf.data_ptr() for leaf in identity.values()]
    assert len(set(pointers)) == 4  # biases that shared memory would learn together
    x = torch.randn(1, 5, 8)
    scaled = FeatureAttention("neutral").transform(stack([neutral]), "image.features", x)
    torch.testing.assert_close(scaled, x / 8)  # the same direction


def test_a_feature_start_is_linear_layers_own_in_spread():
    theta = FeatureAttention().init({"image.features": FeatureSite(128)}, draw)
    own = torch.nn.Linear(128, 128)
    assert theta["image.features.W1"].std().item() == pytest.approx(own.weight.std().item(), rel=0.05)
    assert not torch.equal(theta["image.features.W1"], theta["image.features.W2"])


# Full fine-tuning


def test_a_dense_adapter_starts_at_the_checkpoint():
    theta = Dense().init(ALL_KINDS, draw)
    assert not any(leaf.any() for leaf in theta.values())
