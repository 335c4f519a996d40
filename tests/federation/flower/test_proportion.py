"""Honest clients are never refused, whatever their images; what is out of all proportion always is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import TrainingConfig
from feddlp.federation.aggregation import ProductMean, Server, WeightedMean
from feddlp.federation.flower.envelopes import RefusedError
from feddlp.federation.flower.proportion import Proportion
from feddlp.methods.flora import FLoRA
from feddlp.training.optim import AdamW

TRAINING = TrainingConfig(batch_size=4, local_epochs=2)
SAMPLES = torch.tensor([1, 9, 30])
FIRST = {"adapter": {"x.A": torch.linspace(-1, 1, 12).view(2, 6), "x.B": torch.zeros(5, 2)}}


def proportion(**changes):
    return Proportion(replace(FLoRA(lr=0.01), **changes), TRAINING, FIRST)


def steps(samples):
    return TRAINING.local_epochs * -(-samples // TRAINING.batch_size)


def trained(method, before, moments, scales, generator):
    """Uploads of a round: Adam as it is, over gradients of any size and direction."""
    start = before["adapter"]
    theta = {leaf: value.expand(len(SAMPLES), *value.shape).clone() for leaf, value in start.items()}
    optimizer = AdamW(theta, **method.optimizer_options())
    if moments:
        optimizer.m, optimizer.v, optimizer.steps = moments
    for step in range(max(map(steps, SAMPLES.tolist()))):
        active = torch.tensor([step < steps(count) for count in SAMPLES.tolist()])
        scale = scales[step % len(scales)]
        gradients = [scale * (1 + torch.rand(value.shape, generator=generator)) for value in theta.values()]
        optimizer.step(theta, gradients, active)
    return {"adapter": theta}, (optimizer.m, optimizer.v, optimizer.steps)


def times(adapters, factor):
    return {name: {leaf: factor * value for leaf, value in theta.items()} for name, theta in adapters.items()}


BETAS = st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)).map(sorted)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-12, -1e-6, 1e-3, 1.0, -30.0, 1e4]), min_size=1, max_size=7),
    BETAS, st.floats(1e-5, 1.0), st.sampled_from([0.0, 0.3]), st.floats(0, 0.9), st.integers(0, 9),
)  # fmt: skip
def test_no_order_and_no_first_bound_refuses_what_adam_and_averages_can_do(scales, betas, lr, decay, momentum, seed):
    bounds = proportion(lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=decay, server_momentum=momentum)
    server, moments, generator = Server(dict(FIRST), momentum), None, torch.Generator().manual_seed(seed)
    for number in range(3):
        before = {"adapter": dict(server.shared["adapter"])}
        uploads, moments = trained(bounds.method, before, moments, scales, generator)
        alone = replace(bounds, usual=type(bounds.usual)([1e9]))  # others move as far: the first bound alone
        assert alone.refused(uploads, before, SAMPLES) == {}
        average = WeightedMean()
        average.add(uploads["adapter"], SAMPLES)
        server.step({"adapter": average.result()})
        bounds.check_order(server.shared, before, 1, 30)
        bounds.check_order(server.shared, FIRST, number + 1, 30)


@given(st.integers(0, 99), st.floats(0, 3))
def test_the_product_mean_makes_no_adapter_longer(seed, size):
    generator = torch.Generator().manual_seed(seed)
    theta = {"x.A": torch.randn(3, 2, 6, generator=generator), "x.B": size * torch.randn(3, 5, 2, generator=generator)}
    mean = ProductMean()
    mean.add(theta, SAMPLES)
    lengths = torch.cat([leaf.flatten(1) for leaf in theta.values()], 1).norm(dim=1)
    assert torch.cat([leaf.flatten() for leaf in mean.result().values()]).norm() <= lengths.max() * (1 + 1e-5)


@given(st.floats(30.0, 3e38), st.integers(0, 2), st.sampled_from(["filled", "scaled", "turned"]), st.integers(1, 3))
def test_a_poisoned_upload_is_refused_and_no_other(size, who, how, clients):
    """Of three, of two, or alone; in the first round, where nobody knows what is usual."""
    who, samples = who % clients, SAMPLES[:clients]
    uploads, _ = trained(FLoRA(lr=0.01), FIRST, None, [1.0, 0.5], torch.Generator().manual_seed(1))
    uploads = {"adapter": {leaf: value[:clients].clone() for leaf, value in uploads["adapter"].items()}}
    for value in uploads["adapter"].values():
        value[who] = {"filled": torch.full_like(value[who], size), "scaled": size * value[who].clamp(min=0.1)}.get(
            how, -size * value[who].clamp(min=0.1)
        ).clamp(-3e38, 3e38)
    refused = proportion().refused(uploads, FIRST, samples)
    assert list(refused) == [who]
    assert "out of all proportion to its samples" in refused[who]


def test_the_median_of_the_round_and_of_earlier_ones_counts_as_well():
    """Five clients hardly move; a sixth goes nearly ten learning rates a step, which is within its own bound."""
    samples = torch.full((6,), 4)
    still = {"adapter": {leaf: value.expand(6, *value.shape).clone() for leaf, value in FIRST["adapter"].items()}}
    still["adapter"]["x.B"] += 0.001
    far = {"adapter": {**still["adapter"], "x.B": still["adapter"]["x.B"].clone()}}
    far["adapter"]["x.B"][5] += 0.48
    bounds = proportion()
    assert bounds.refused(still, FIRST, samples) == {}
    assert list(bounds.refused(far, FIRST, samples)) == [5]
    alone = {"adapter": {leaf: value[5:] for leaf, value in far["adapter"].items()}}
    assert list(bounds.refused(alone, FIRST, samples[5:])) == [0], "the earlier rounds are forgotten"
    assert proportion().refused(alone, FIRST, samples[5:]) == {}, "alone and in the first round nothing is usual"


@given(st.floats(0.01, 0.3), st.integers(0, 2))
def test_a_change_may_be_as_long_as_max_norm_and_no_longer(norm, client):
    uploads = {"adapter": {leaf: value.expand(3, *value.shape).clone() for leaf, value in FIRST["adapter"].items()}}
    uploads["adapter"]["x.A"][client, 0, 0] -= norm * 0.6  # 0.36 + 0.64 = 1, over two leaves
    uploads["adapter"]["x.B"][client, 0, 0] -= norm * 0.8
    assert replace(proportion(), max_norm=norm * 1.001).refused(uploads, FIRST, SAMPLES) == {}
    refused = replace(proportion(), max_norm=norm * 0.999).refused(uploads, FIRST, SAMPLES)
    assert refused.keys() == {client}
    assert "more than deployment.max_norm=" in refused[client]


@given(st.floats(300.0, 3e38), st.integers(0, 4))
def test_an_order_out_of_proportion_is_refused(size, rounds):
    with pytest.raises(RefusedError, match="out of all proportion"):
        proportion().check_order(times(FIRST, size), FIRST, rounds, 30)
    filled = {"adapter": {leaf: torch.full_like(value, size) for leaf, value in FIRST["adapter"].items()}}
    with pytest.raises(RefusedError, match="out of all proportion"):
        proportion().check_order(filled, FIRST, rounds, 30)


def test_a_method_that_shares_nothing_has_nothing_to_be_measured():
    bounds = Proportion(FLoRA(), TRAINING, {})
    assert bounds.refused({}, {}, SAMPLES) == {}
    bounds.check_order({}, {}, 3, 30)


def test_who_claims_many_samples_moves_no_further_for_it():
    before = times(FIRST, 1.0)
    claimed = torch.tensor([1_000_000, 100, 100, 100, 100])
    uploads = {"adapter": {leaf: value.repeat(5, 1, 1) for leaf, value in before["adapter"].items()}}
    for value in uploads["adapter"].values():
        value[0] = 600 * value[0] + 60
    assert set(proportion().refused(uploads, before, claimed)) == {0}


def test_one_refused_upload_does_not_keep_the_others_from_being_remembered():
    bounds = proportion()
    before = times(FIRST, 1.0)
    uploads = {"adapter": {leaf: value.repeat(3, 1, 1) for leaf, value in before["adapter"].items()}}
    uploads["adapter"]["x.A"][0] += 1e6
    assert set(bounds.refused(uploads, before, SAMPLES)) == {0}
    assert len(bounds.usual) == 2
