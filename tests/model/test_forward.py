"""Logits of K clients: views, caches and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from feddlp.methods.fedavg import FedAvg
from feddlp.methods.fedclip import FedCLIP
from feddlp.methods.feddlp import FedDLP
from feddlp.model.adapters import FeatureAttention, LoRA
from feddlp.model.backbone import Encoder
from feddlp.model.forward import Forward
from feddlp.model.gates import GatedLoRA
from feddlp.training.cohort import Cohort, Slot, initial, stack


@pytest.fixture(params=["image", "text"])
def cohort(request, backbones, prompts):
    """Three clients whose adapters have left their start."""
    cohort = Cohort([Slot(client, 0, FedDLP()) for client in range(3)], backbones[request.param], prompts)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for theta in cohort.theta.values():
            for leaf in theta.values():
                leaf.add_(torch.randn(leaf.shape, generator=generator) * 0.02)
    return cohort


@pytest.fixture
def batch(cohort, client_data):
    return next(client_data(cohort.forward.backbone.adapt).in_order(4))


def test_logits_equal_both_towers_run_for_every_client_without_any_cache(cohort, batch, digits, client_data):
    f, backbone = cohort.forward, cohort.forward.backbone
    logits = f.frozen(batch, "local")
    assert logits.shape == (3, 4, 10)
    for k, indices in enumerate(client_data().indices):
        adapter, theta = (
            cohort.adapters["local"],
            {leaf: v[k : k + 1].detach() for leaf, v in cohort.theta["local"].items()},
        )

        class Plain:
            def linear(self, site, layer, x, adapter=adapter, theta=theta):
                y = F.linear(x, layer.weight, layer.bias)
                if f"{site}.A" not in theta:
                    return y
                down, up = adapter.factors(theta, site)
                return y + x @ (up[0] @ down[0]).T

            def features(self, site, features):
                return features

        rows = indices[:4]
        with torch.no_grad(), backbone.adapted(Plain()):
            images, texts = backbone.encode_images(digits.images[rows]), backbone.encode_texts(f.prompts.tokens)
        expected = backbone.logit_scale * images @ texts.T
        torch.testing.assert_close(logits[k, : len(rows)], expected, rtol=1e-4, atol=1e-4)


def test_the_empty_view_is_the_frozen_model(cohort, batch):
    f, backbone = cohort.forward, cohort.forward.backbone
    with torch.no_grad():
        images = backbone.encode_images(batch.inputs.flatten(0, 1)) if backbone.adapt == "image" else batch.inputs
        expected = (
            backbone.logit_scale
            * images.view(3, 4, -1)
            @ F.normalize(backbone.encode_texts(f.prompts.tokens), dim=-1).T
        )
    torch.testing.assert_close(f.frozen(batch, {}), expected, rtol=1e-4, atol=1e-4)


def test_a_name_is_the_view_of_weight_one_and_weights_add_up(cohort, batch):
    f = cohort.forward
    assert torch.equal(f.frozen(batch, "local"), f.frozen(batch, {"local": 1.0}))
    torch.testing.assert_close(f.frozen(batch, {"local": 0.0}), f.frozen(batch, {}), rtol=1e-4, atol=1e-4)
    halves = f.frozen(batch, {"local": 0.5, "global": 0.5})
    assert not torch.allclose(halves, f.frozen(batch, "local"))
    torch.testing.assert_close(halves, f.frozen(batch, {"global": 0.5, "local": 0.5}), rtol=1e-4, atol=1e-4)


def test_gradient_reaches_the_viewed_adapter_only_and_never_through_frozen(cohort, batch):
    cohort.forward(batch, "local").sum().backward()
    assert all(leaf.grad is not None for leaf in cohort.theta["local"].values())
    assert all(leaf.grad is None for leaf in cohort.theta["global"].values())
    assert not cohort.forward.frozen(batch, "local").requires_grad


def test_one_clients_logits_send_no_gradient_to_another(cohort, batch):
    leaves = list(cohort.theta["local"].values())
    gradients = torch.autograd.grad(cohort.forward(batch, "local")[1].sum(), leaves)
    assert any(gradient[1].any() for gradient in gradients)
    assert not any(gradient[0].any() or gradient[2].any() for gradient in gradients)


# Both towers, full fine-tuning, attention over features: in float64


def scatter(theta, scale, seed=5):
    """Move every leaf away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for leaf in theta.values():
            leaf.add_(torch.randn(leaf.shape, generator=generator).to(leaf) * scale)


@pytest.fixture
def exact_cohort(exact_backbones, exact_prompts):
    def make(method, tower, scale=0.02):
        cohort = Cohort([Slot(client, 0, method) for client in range(3)], exact_backbones[tower], exact_prompts)
        for name, theta in cohort.theta.items():
            scatter(theta, scale, seed=len(name))
        return cohort

    return make


@pytest.fixture
def exact_batch(client_data):
    return lambda tower: next(client_data(tower, exact=True).in_order(4))


def one(theta, k):
    return {leaf: value[k].detach() for leaf, value in theta.items()}


def dense_weights(backbone, theta, scaling):
    """A copy of the model whose layers hold W0 + scaling B diag(g) A: no hook, no client axis."""
    model = copy.deepcopy(backbone.model)
    for module in model.modules():
        module._forward_hooks.clear()
    for name in [leaf.removesuffix(".A") for leaf in theta if leaf.endswith(".A")]:
        up, down = theta[f"{name}.B"], theta[f"{name}.A"]
        gate = theta.get(f"{name}.gate", torch.ones(len(down), dtype=down.dtype))
        with torch.no_grad():
            model.get_submodule(name).weight += scaling * up @ torch.diag(gate) @ down
    return model


def logits_of(model, backbone, images, tokens):
    pixels = ((images - backbone.pixel_mean) / backbone.pixel_std).to(model.dtype)
    with torch.no_grad():
        both = Encoder(model, "image")(pixels), Encoder(model, "text")(tokens)
    image, text = (F.normalize(features, dim=-1) for features in both)
    return backbone.logit_scale * image @ text.T


@pytest.mark.parametrize("view", ["local", "global"])
def test_both_towers_equal_a_copy_of_the_model_with_merged_weights(view, exact_cohort, exact_batch):
    cohort, batch = exact_cohort(FedDLP(), "both"), exact_batch("both")
    f = cohort.forward
    found = f.frozen(batch, view)
    for k in range(3):
        model = dense_weights(f.backbone, one(cohort.theta[view], k), cohort.adapters[view].scaling)
        expected = logits_of(model, f.backbone, batch.inputs[k], f.prompts.tokens)
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-8)


def test_both_towers_are_the_two_towers_run_apart(exact_cohort, exact_batch, exact_backbones, exact_prompts):
    """Image features of an image-adapted model, text features of a text-adapted one, joined by hand."""
    cohort, batch = exact_cohort(FedDLP(), "both"), exact_batch("both")
    logits, scale = {}, exact_backbones["both"].logit_scale
    for tower, prefixes in (("image", ("vision_model", "visual")), ("text", ("text",))):
        backbone = exact_backbones[tower]
        theta = {leaf: v for leaf, v in cohort.theta["local"].items() if leaf.startswith(prefixes)}
        f = Forward(backbone, {"local": cohort.adapters["local"]}, {"local": theta}, exact_prompts)
        with torch.no_grad():
            images, tokens = batch.inputs, exact_prompts.tokens.expand(3, -1, -1)
            encode, inputs = (backbone.encode_images, images) if tower == "image" else (backbone.encode_texts, tokens)
            logits[tower] = f._encode(encode, inputs, {"local": 1.0})
    expected = scale * logits["image"] @ logits["text"].mT
    torch.testing.assert_close(cohort.forward.frozen(batch, "local"), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tower", ["image", "text", "both"])
def test_dense_equals_a_copy_of_the_model_with_other_weights(tower, exact_cohort, exact_batch, digits, client_data):
    cohort, batch = exact_cohort(FedAvg(), tower, 0.01), exact_batch(tower)
    f = cohort.forward
    found = f.frozen(batch, "weights")
    pictures = next(client_data("image", exact=True).in_order(4)).inputs
    for k in range(3):
        model = dense_weights(f.backbone, {}, 1.0)
        with torch.no_grad():
            for leaf, value in one(cohort.theta["weights"], k).items():
                model.get_parameter(leaf.removesuffix(".difference")).add_(value)
        expected = logits_of(model, f.backbone, pictures[k], f.prompts.tokens)
        torch.testing.assert_close(found[k][batch.mask[k]], expected[batch.mask[k]], rtol=0, atol=1e-8)
    assert torch.equal(f.frozen(batch, {"weights": 1.0}), found)


@pytest.mark.parametrize("tower", ["image", "text", "both"])
def test_every_weight_of_a_tower_learns_and_each_clients_own_only(tower, exact_cohort, exact_batch):
    cohort, batch = exact_cohort(FedAvg(), tower, 0.01), exact_batch(tower)
    theta = cohort.theta["weights"]
    assert {leaf.removesuffix(".difference").partition(".")[0] for leaf in theta} == {
        module
        for name in (("image", "text") if tower == "both" else (tower,))
        for module in {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}[name]
    }
    gradients = torch.autograd.grad(cohort.forward(batch, "weights")[1].square().sum(), list(theta.values()))
    for leaf, gradient in zip(theta, gradients, strict=True):
        assert not gradient[[0, 2]].any()
        if not leaf.endswith("k_proj.bias.difference"):  # it shifts all scores of a query alike: softmax is blind to it
            assert gradient[1].abs().max() > 1e-9, leaf


def test_a_share_of_a_dense_adapter_is_that_share_of_the_differences(exact_cohort, exact_batch):
    cohort, batch = exact_cohort(FedAvg(), "text", 0.01), exact_batch("text")
    half = cohort.forward.frozen(batch, {"weights": 0.5})
    with torch.no_grad():
        for leaf in cohort.theta["weights"].values():
            leaf.mul_(0.5)
    torch.testing.assert_close(half, cohort.forward.frozen(batch, "weights"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tower", ["image", "text", "both"])
def test_feature_attention_acts_on_features_before_they_are_normalised(tower, exact_cohort, exact_batch, client_data):
    cohort, batch = exact_cohort(FedCLIP(), tower, 0.3), exact_batch(tower)
    f, backbone = cohort.forward, cohort.forward.backbone
    found = f.frozen(batch, "attention")
    pictures = next(client_data("image", exact=True).in_order(4)).inputs
    for k in range(3):
        pixels = ((pictures[k] - backbone.pixel_mean) / backbone.pixel_std).double()
        with torch.no_grad():
            raw = {"image": Encoder(backbone.model, "image")(pixels)}
            raw["text"] = Encoder(backbone.model, "text")(f.prompts.tokens)
        for name in backbone.adapted_towers:
            w1, b1, w2, b2 = (
                cohort.theta["attention"][f"{name}.features.{leaf}"][k].detach() for leaf in ("W1", "b1", "W2", "b2")
            )
            raw[name] = raw[name] * torch.softmax(torch.tanh(raw[name] @ w1.T + b1) @ w2.T + b2, dim=-1)
        image, text = (F.normalize(raw[name], dim=-1) for name in ("image", "text"))
        expected = backbone.logit_scale * image @ text.T
        torch.testing.assert_close(found[k][batch.mask[k]], expected[batch.mask[k]], rtol=0, atol=1e-8)


def test_a_neutral_attention_is_the_frozen_model(exact_cohort, exact_batch):
    cohort, batch = exact_cohort(FedCLIP(attention_init="neutral"), "image", 0.0), exact_batch("image")
    f = cohort.forward
    torch.testing.assert_close(f.frozen(batch, "attention"), f.frozen(batch, {}), rtol=0, atol=1e-8)


def test_adapters_of_a_view_add_up_and_none_disturbs_another(exact_backbones, exact_prompts, exact_batch):
    """Three kinds, each at its own sites: at a layer the deltas are summed, and what is not in a view stays out."""
    backbone, batch = exact_backbones["image"], exact_batch("image")
    kinds = {"a": LoRA(2), "b": GatedLoRA(3, layers="attention_out"), "c": FeatureAttention("neutral")}
    theta = {}
    for seed, (name, adapter) in enumerate(kinds.items()):
        starts = [initial(adapter, backbone.sites, k, name, k) for k in range(3)]
        theta[name] = {leaf: value.double() for leaf, value in stack(starts).items()}
        scatter(theta[name], 0.02, seed)
    f = Forward(backbone, kinds, theta, exact_prompts)
    alone = {name: Forward(backbone, {name: kinds[name]}, {name: theta[name]}, exact_prompts) for name in kinds}
    for name in kinds:
        assert torch.equal(f.frozen(batch, name), alone[name].frozen(batch, name))
    both = f.frozen(batch, {"a": 1.0, "b": 0.5})
    for k in range(3):
        model = dense_weights(backbone, one(theta["a"], k), kinds["a"].scaling)
        half = {leaf: value * (0.5 if leaf.endswith(".B") else 1) for leaf, value in one(theta["b"], k).items()}
        for name in [leaf.removesuffix(".A") for leaf in half if leaf.endswith(".A")]:
            product = half[f"{name}.B"] @ torch.diag(half[f"{name}.gate"]) @ half[f"{name}.A"]
            model.get_submodule(name).weight.data += kinds["b"].scaling * product
        expected = logits_of(model, backbone, batch.inputs[k], exact_prompts.tokens)
        torch.testing.assert_close(both[k], expected, rtol=0, atol=1e-8)
    assert not torch.allclose(f.frozen(batch, {"a": 1.0, "c": 1.0}), f.frozen(batch, "a"))


def test_whole_weights_do_not_mix_with_other_adapters(exact_cohort, exact_batch):
    cohort, batch = exact_cohort(FedAvg(), "text", 0.01), exact_batch("text")
    f = cohort.forward
    before = f.frozen(batch, {})
    f.frozen(batch, "weights")
    assert torch.equal(f.frozen(batch, {}), before)
    with pytest.raises(ValueError, match="too many values"):
        f.frozen(batch, {"weights": 1.0, "other": 1.0})
