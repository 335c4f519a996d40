"""Who gets gradient, in which order, and what travels: one look at every method."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from feddlp.federation.aggregation import ProductMean
from feddlp.methods import registry
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.feddlp_shared import FedDLPShared
from feddlp.methods.flora import FLoRA
from feddlp.methods.local import Local
from holdings import everyone

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
    cohort = everyone(make_federation(registry()[name]()))
    batch = next(make_federation(Local()).clients.data.train.in_order(4))
    before, order = snapshot(cohort), []
    for adapter, loss in cohort.method.losses(cohort.forward, batch):
        order.append(adapter)
        assert loss.shape == (3,)
        others = [leaf for other in cohort.theta if other != adapter for leaf in cohort.learning(other).values()]
        gradients = torch.autograd.grad(loss.sum(), others, allow_unused=True, retain_graph=True) if others else ()
        assert all(gradient is None for gradient in gradients)
    assert order == EXPECTED[name][0]
    frozen = cohort.theta.keys() - set(order)
    assert not any(value.requires_grad for other in frozen for value in cohort.theta[other].values())
    assert all(torch.equal(value, before[key]) for key, value in snapshot(cohort).items())


@pytest.mark.parametrize("name", EXPECTED)
def test_what_travels_and_what_stays(name, make_federation):
    federation = make_federation(registry()[name]())
    federation.play_round()
    cohort = everyone(federation)
    assert cohort.upload().keys() == federation.servers[0].shared.keys() == EXPECTED[name][1]
    for adapter in cohort.theta:
        for leaf, value in cohort.learning(adapter).items():
            clients_agree = all(torch.equal(value[0], other) for other in value[1:])
            assert not clients_agree, f"{adapter}.{leaf}: clients trained on different data"
    cohort.download(federation.servers[0].shared)
    for adapter in cohort.theta.keys() - set(cohort.method.frozen):
        for leaf, value in cohort.learning(adapter).items():
            agree = all(torch.equal(value[0], other) for other in value[1:])
            assert agree == (adapter in EXPECTED[name][1]), f"{adapter}.{leaf}"
            assert not agree or torch.equal(value[0], federation.servers[0].shared[adapter][leaf])


@pytest.mark.parametrize("name", ["combined", "feddat"])
def test_a_copy_is_what_the_server_last_sent_and_nothing_else(name, make_federation):
    federation = make_federation(registry()[name](), rounds=4, participation=0.67)
    for _ in range(4):
        sent = {leaf: value.clone() for leaf, value in federation.servers[0].shared["global"].items()}
        before = everyone(federation).theta["copy"]
        joined = federation.play_round()[0].participated
        assert 0 < joined.sum() < 3
        for leaf, value in everyone(federation).theta["copy"].items():
            expected = torch.where(joined.view(-1, 1, 1), sent[leaf], before[leaf])
            assert torch.equal(value, expected), leaf


LOW_RANK = [
    name
    for name, kind in registry().items()
    if "factors_trained" in {field.name for field in fields(kind)} and name != "feddlp_shared"
]


@pytest.mark.parametrize("name", LOW_RANK)
def test_ffa_never_moves_a_and_never_sends_it(name, make_federation):
    federation = make_federation(registry()[name](factors_trained="B", weight_decay=0.1, proximal=1.0))
    before = snapshot(everyone(federation))
    down = [(adapter, leaf) for adapter, leaf in before if leaf.endswith(".A")]
    assert down
    results = [federation.play_round()[0] for _ in range(2)]
    cohort = everyone(federation)
    for adapter, leaf in down:
        now = cohort.theta[adapter][leaf]
        source = ("global", leaf) if adapter == "copy" else (adapter, leaf)
        assert torch.equal(now, before[source]), f"{adapter}.{leaf}"
        if adapter in cohort.method.shared:
            assert all(torch.equal(now[0], other) for other in now[1:]), "averaging B needs one A"
    assert_only_sends(federation, results, ".B")


@pytest.mark.parametrize("name", LOW_RANK)
def test_fedsa_keeps_b_at_home(name, make_federation):
    federation = make_federation(registry()[name](factors_sent="A"))
    results = [federation.play_round()[0] for _ in range(2)]
    cohort = everyone(federation)
    before = snapshot(cohort)
    cohort.download(federation.servers[0].shared)
    for (adapter, leaf), value in before.items():
        if leaf.endswith(".B") and adapter not in cohort.method.frozen:
            assert torch.equal(cohort.theta[adapter][leaf], value)
            assert not any(torch.equal(value[0], other) for other in value[1:]), f"{adapter}.{leaf} stays private"
    assert_only_sends(federation, results, ".A")


def assert_only_sends(federation, results, ending):
    """Of the shared adapters one factor travels, whole, and its bytes are counted."""
    shared, cohort = federation.servers[0].shared, everyone(federation)
    sent = cohort.upload()
    for name, theta in cohort.theta.items():
        expected = {leaf for leaf in theta if leaf.endswith(ending)} if name in cohort.method.shared else set()
        assert set(shared.get(name, {})) == set(sent.get(name, {})) == expected
    count = sum(4 * value.numel() for theta in shared.values() for value in theta.values())
    for result in results:
        assert result.bytes_up.tolist() == result.bytes_down.tolist() == [count] * 3


def test_feddlp_shared_takes_back_only_ranks_that_it_has(make_federation):
    federation = make_federation(FedDLPShared())
    federation.play_round()
    cohort, (server,) = everyone(federation), federation.servers
    site = next(leaf.removesuffix(".gate") for leaf in cohort.theta["local"] if leaf.endswith(".gate"))
    down, up, gate = (cohort.theta["local"][f"{site}.{leaf}"] for leaf in ("A", "B", "gate"))
    with torch.no_grad():
        gate[1, 2] = 0
    own = [part.detach().clone() for part in (down[1, 2], up[1, :, 2])]
    whole = cohort.payload()
    assert whole[1] == whole[0] - 4 * (down.shape[2] + up.shape[1] + 1), "a rank is A's row, B's column and a gate"
    sent = cohort.upload()["local"]
    assert not sent[f"{site}.A"][1, 2].any()
    assert not sent[f"{site}.B"][1, :, 2].any()
    cohort.download(server.shared)
    held = server.shared["local"]
    assert torch.equal(down[1, 2], own[0])
    assert torch.equal(up[1, :, 2], own[1])
    assert gate[1, 2] == 0
    for client, ranks in ((0, [0, 1, 2, 3]), (1, [0, 1, 3]), (2, [0, 1, 2, 3])):
        assert torch.equal(down[client, ranks], held[f"{site}.A"][ranks])
        assert torch.equal(up[client][:, ranks], held[f"{site}.B"][:, ranks])
        assert torch.equal(gate[client, ranks], held[f"{site}.gate"][ranks])


@pytest.mark.parametrize(
    "contradiction",
    [
        {"factors_trained": "B", "factors_sent": "A"},
        {"average_of": "products", "reset_optimizer": True, "factors_trained": "B"},
        {"average_of": "products", "reset_optimizer": True, "factors_sent": "A"},
        {"average_of": "products", "reset_optimizer": True, "server_momentum": 0.9},
        {"average_of": "products"},
    ],
    ids=str,
)
def test_switches_that_contradict_each_other_are_refused(contradiction):
    with pytest.raises(ValueError, match="factors"):
        FLoRA(**contradiction)


@pytest.mark.parametrize("name", LOW_RANK)
def test_signs_of_the_factors_of_a_product_do_not_matter(name, make_federation, monkeypatch):
    """An SVD may return (-u, -v) for (u, v), and does so on another machine."""
    played, original = [], ProductMean.result
    for sign in (1, -1):

        def result(self, sign=sign):
            return {leaf: sign * value for leaf, value in original(self).items()}

        monkeypatch.setattr(ProductMean, "result", result)
        federation = make_federation(registry()[name](average_of="products", reset_optimizer=True), "text", exact=True)
        for _ in range(2):
            federation.play_round()
        batch = next(federation.clients.data.test.in_order(4))
        cohort = everyone(federation)
        played.append(cohort.method.predict(cohort.forward, batch))
    torch.testing.assert_close(*played, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", EXPECTED)
def test_prediction_uses_the_named_adapter(name, make_federation):
    federation = make_federation(registry()[name]())
    federation.play_round()
    batch = next(federation.clients.data.test.in_order(4))
    cohort = everyone(federation)
    f = cohort.forward
    assert torch.equal(cohort.method.predict(f, batch), f.frozen(batch, EXPECTED[name][2]))


def test_the_global_adapter_is_taught_by_the_local_one_as_just_updated(make_federation):
    """The cohort steps between the two losses, so the second loss sees the first step."""
    cohort = everyone(make_federation(FedDLP(lr=0.05)))
    batch = next(make_federation(Local()).clients.data.train.in_order(4))
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
    pairs = zip(*(everyone(one).theta["local"].values() for one in (first, second)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_kd_weight_makes_the_local_adapter_listen(make_federation):
    first, second = (make_federation(FedDLP(kd_weight=weight)) for weight in (0.0, 1.0))
    for federation in (first, second):
        federation.play_round()
    pairs = zip(*(everyone(one).theta["local"].values() for one in (first, second)), strict=True)
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
