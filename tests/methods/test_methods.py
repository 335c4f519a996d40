"""Who gets gradient, in which order, and what travels: one look at every method."""

from __future__ import annotations

import pytest
import torch

from feddlp.methods import registry
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.flora import FLoRA
from feddlp.methods.local import Local

DAT = {"local": 1.0, "copy": 1.0}
EXPECTED = {  # adapters in the order of their steps, what travels, what predicts
    "combined": (["local", "global"], {"global"}, DAT),
    "fedavg": (["weights"], {"weights"}, "weights"),
    "fedclip": (["attention"], {"attention"}, "attention"),
    "feddat": (["local", "global"], {"global"}, DAT),
    "feddlp": (["local", "global"], {"global"}, "local"),
    "feddlp_shared": (["local", "global"], {"local", "global"}, "local"),
    "flora": (["adapter"], {"adapter"}, "adapter"),
    "local": (["adapter"], set(), "adapter"),
    "sora_local": (["adapter"], set(), "adapter"),
    "zero_shot": ([], set(), {}),
}


def test_every_method_is_looked_at_here():
    assert registry().keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_steps_in_order_and_each_adapter_alone(name, make_federation):
    cohort = make_federation(registry()[name]()).cohort
    batch = next(make_federation(Local()).data.train.in_order(4))
    before, order = snapshot(cohort), []
    for adapter, loss in cohort.method.losses(cohort.forward, batch):
        order.append(adapter)
        assert loss.shape == (3,)
        others = [leaf for other in cohort.theta if other != adapter for leaf in cohort.learning(other).values()]
        gradients = torch.autograd.grad(loss.sum(), others, allow_unused=True, retain_graph=True) if others else ()
        assert all(gradient is None for gradient in gradients)
    assert order == EXPECTED[name][0]
    assert all(torch.equal(value, before[key]) for key, value in snapshot(cohort).items())


@pytest.mark.parametrize("name", EXPECTED)
def test_what_travels_and_what_stays(name, make_federation):
    federation = make_federation(registry()[name]())
    federation.play_round()
    assert federation.cohort.upload().keys() == federation.servers[0].shared.keys() == EXPECTED[name][1]
    for adapter in federation.cohort.theta:
        for leaf, value in federation.cohort.learning(adapter).items():
            clients_agree = all(torch.equal(value[0], other) for other in value[1:])
            assert not clients_agree, f"{adapter}.{leaf}: clients trained on different data"
    federation.cohort.download(federation.servers[0].shared)
    for adapter in federation.cohort.theta.keys() - set(federation.cohort.method.frozen):
        theta = federation.cohort.learning(adapter)
        agree = all(torch.equal(value[0], other) for value in theta.values() for other in value[1:])
        assert agree == (adapter in EXPECTED[name][1])


@pytest.mark.parametrize("name", EXPECTED)
def test_prediction_uses_the_named_adapter(name, make_federation):
    federation = make_federation(registry()[name]())
    federation.play_round()
    batch = next(federation.data.test.in_order(4))
    f = federation.cohort.forward
    assert torch.equal(federation.cohort.method.predict(f, batch), f.frozen(batch, EXPECTED[name][2]))


def test_the_global_adapter_is_taught_by_the_local_one_as_just_updated(make_federation):
    """The cohort steps between the two losses, so the second loss sees the first step."""
    cohort = make_federation(FedDLP(lr=0.05)).cohort
    batch = next(make_federation(Local()).data.train.in_order(4))
    losses = cohort.method.losses(cohort.forward, batch)
    name, loss = next(losses)
    theta = cohort.theta[name]
    gradients = torch.autograd.grad(loss.sum(), list(theta.values()))
    stale_teacher = cohort.forward.frozen(batch, "local")
    cohort.optimizers[name].step(theta, gradients, batch.mask.any(1))
    _, second = next(losses)
    glob, method = cohort.forward.frozen(batch, "global"), cohort.method
    fresh_teacher = cohort.forward.frozen(batch, "local")
    torch.testing.assert_close(second.detach(), method.loss("global", glob, fresh_teacher, batch))
    assert not torch.allclose(second.detach(), method.loss("global", glob, stale_teacher, batch))


def test_without_distillation_the_local_adapter_of_feddlp_ignores_the_server(make_federation):
    first, second = (make_federation(FedDLP(kd_weight=0.0)) for _ in range(2))
    server = second.servers[0]
    server.shared["global"] = {leaf: value + 0.1 for leaf, value in server.shared["global"].items()}
    for federation in (first, second):
        federation.play_round()
    pairs = zip(first.cohort.theta["local"].values(), second.cohort.theta["local"].values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_kd_weight_makes_the_local_adapter_listen(make_federation):
    first, second = (make_federation(FedDLP(kd_weight=weight)) for weight in (0.0, 1.0))
    for federation in (first, second):
        federation.play_round()
    pairs = zip(first.cohort.theta["local"].values(), second.cohort.theta["local"].values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_local_is_flora_that_sends_nothing(make_federation):
    local, flora = (make_federation(method, rounds=1) for method in (Local(), FLoRA()))
    (first,), (second,) = local.play_round(), flora.play_round()
    assert first.bytes_up.tolist() == first.bytes_down.tolist() == [0, 0, 0]
    assert second.bytes_up.tolist() == second.bytes_down.tolist()
    assert (second.bytes_up > 0).all()


def snapshot(cohort):
    return {
        (name, leaf): value.detach().clone() for name, theta in cohort.theta.items() for leaf, value in theta.items()
    }
