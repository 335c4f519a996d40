"""Logits of K clients: views, caches and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from feddlp.methods.feddlp import FedDLP
from feddlp.training.cohort import Cohort, Slot


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

        def delta(site, x, y, adapter=adapter, theta=theta):
            if f"{site}.A" not in theta:
                return None
            return adapter.delta(theta, site, x.flatten(0, -2)[None], y.flatten(0, -2)[None]).view_as(y)

        rows = indices[:4]
        with torch.no_grad(), backbone.adapted(delta):
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
