"""The client axis changes nothing: stacked = separate, whatever the padding, the order or the company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.data.features import encode_prompts
from feddlp.data.prompts import class_prompts
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.flora import FLoRA
from feddlp.training.cohort import Cohort, Slot

METHODS = {
    "feddlp": FedDLP(gate_threshold=0.01, weight_decay=0.1),
    "feddlp-in_batch": FedDLP(objective="in_batch"),
    "flora": FLoRA(),
}


@pytest.fixture(scope="module")
def make_cohort(backbones, exact_backbones, prompts, exact_prompts):
    def make(method, clients, tower="image", exact=False):
        slots = [Slot(client, 0, method) for client in clients]
        return Cohort(slots, (exact_backbones if exact else backbones)[tower], exact_prompts if exact else prompts)

    return make


def train(cohort, data, epochs=2, batch_size=4):
    for epoch in range(epochs):
        cohort.fit(data.shuffled(batch_size, [(slot.client, slot.seed) for slot in cohort.slots], 0, epoch))
    return {name: tensor.clone() for name, tensor in cohort.state_dict().items()}


def largest_difference(state, other):
    assert state.keys() == other.keys()
    return max((state[name] - other[name]).abs().max().item() for name in state)


def separately(make_cohort, method, data, clients, **kind):
    """Cohorts of one, put side by side."""
    states = []
    for position, client in enumerate(clients):
        states.append(train(make_cohort(method, [client], **kind), data.select([position])))
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", METHODS)
def test_stacked_clients_equal_separate_ones(name, tower, make_cohort, client_data):
    data, clients = client_data(tower, exact=True), (5, 0, 9)
    together = train(make_cohort(METHODS[name], clients, tower, exact=True), data)
    apart = separately(make_cohort, METHODS[name], data, clients, tower=tower, exact=True)
    assert largest_difference(together, apart) < 1e-9


def test_ten_stacked_clients_equal_ten_cohorts_of_one_in_float32(make_cohort, client_data):
    """One local epoch at the demo's batch size: adapters within 1e-5, and so are the predicted probabilities."""
    data, method = client_data(sizes=(120, 50, 90, 10, 70, 80, 30, 100, 40, 60)), FedDLP()
    stacked = make_cohort(method, range(10))
    together = train(stacked, data, 1, 32)
    batch = next(data.in_order(10))
    probabilities = method.predict(stacked.forward, batch).softmax(-1)
    for client in range(10):
        cohort = make_cohort(method, [client])
        alone = train(cohort, data.select([client]), 1, 32)
        mine = {name: value[client : client + 1] for name, value in together.items()}
        assert largest_difference(adapters(mine), adapters(alone)) < 1e-5
        expected = method.predict(cohort.forward, next(data.select([client]).in_order(10))).softmax(-1)
        torch.testing.assert_close(probabilities[client : client + 1], expected, rtol=0, atol=1e-5)


def adapters(state):
    return {name: value for name, value in state.items() if "/theta/" in name}


@settings(max_examples=6)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4), batch_size=st.integers(1, 5))
def test_any_ragged_cohort_equals_its_clients_alone(make_cohort, client_data, sizes, batch_size):
    data, clients = client_data(sizes=sizes, exact=True), range(len(sizes))
    together = train(make_cohort(METHODS["feddlp"], clients, exact=True), data, 1, batch_size)
    for client in clients:
        alone = train(make_cohort(METHODS["feddlp"], [client], exact=True), data.select([client]), 1, batch_size)
        assert largest_difference({name: value[client : client + 1] for name, value in together.items()}, alone) < 1e-9


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", METHODS)
def test_padding_may_hold_anything(name, tower, make_cohort, client_data):
    """Zeros would hide a broken mask, so the padding is filled with garbage."""
    data = client_data(tower)
    clean, dirty = (make_cohort(METHODS[name], range(3), tower) for _ in range(2))
    for batch in data.in_order(4):
        clean.step(batch)
        dirty.step(soil(batch))
    assert largest_difference(clean.state_dict(), dirty.state_dict()) == 0


def soil(batch):
    """The same samples, other padding."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(batch.inputs.shape, generator=generator) * 100
    mask = batch.mask[: len(batch.inputs)]
    keep = mask.view(*mask.shape, *[1] * (batch.inputs.dim() - 2))
    labels = torch.randint(10, batch.labels.shape, generator=generator)
    return replace(
        batch,
        inputs=torch.where(keep, batch.inputs, noise.to(batch.inputs.dtype)),
        labels=torch.where(batch.mask, batch.labels, labels),
    )


def test_permuting_clients_permutes_results(make_cohort, client_data):
    data, order = client_data(exact=True), [2, 0, 1]
    straight = train(make_cohort(METHODS["feddlp"], [0, 1, 2], exact=True), data)
    shuffled = train(make_cohort(METHODS["feddlp"], order, exact=True), data.select(order))
    assert largest_difference({name: tensor[order] for name, tensor in straight.items()}, shuffled) < 1e-9


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_client_keeps_weights_gates_and_moments_to_the_bit(name, make_cohort, client_data):
    method = replace(METHODS[name], weight_decay=0.5)
    cohort, data = make_cohort(method, range(3)), client_data()
    batches = list(data.in_order(4))
    assert batches[1].mask.any(1).tolist() == [True, False, True]
    cohort.step(batches[0])
    before = {key: tensor[1].clone() for key, tensor in cohort.state_dict().items()}
    for batch in batches[1:]:
        cohort.step(batch)
    after = cohort.state_dict()
    assert all(torch.equal(before[key], after[key][1]) for key in before)
    assert any(not torch.equal(after[key][0], before[key]) for key in before)


def test_losses_are_means_over_a_clients_own_samples(make_cohort, client_data):
    data = client_data()
    together = make_cohort(FLoRA(lr=1e-9), range(3)).fit(data.in_order(4))["adapter"]
    for client in range(3):
        alone = make_cohort(FLoRA(lr=1e-9), [client]).fit(data.select([client]).in_order(64))["adapter"]
        assert together[client].item() == pytest.approx(alone.item(), rel=1e-4)


def test_a_loaded_state_goes_on_as_if_never_stored(make_cohort, client_data):
    data, method = client_data(), METHODS["feddlp"]
    undisturbed = make_cohort(method, range(3))
    stored = {name: tensor.clone() for name, tensor in train(undisturbed, data).items()}
    fresh = make_cohort(method, range(3))
    fresh.load_state_dict(stored)
    assert largest_difference(train(undisturbed, data), train(fresh, data)) == 0


def test_private_starts_differ_by_client_and_the_shared_start_is_the_servers(make_cohort):
    cohort = make_cohort(FedDLP(), [0, 1])
    starts = next(value for leaf, value in cohort.theta["local"].items() if leaf.endswith(".A"))
    assert not torch.equal(starts[0], starts[1])


def test_download_gives_every_client_the_servers_adapter_and_touches_nothing_else(make_cohort):
    cohort = make_cohort(FedDLP(), range(3))
    private = {leaf: value.detach().clone() for leaf, value in cohort.theta["local"].items()}
    server = {leaf: torch.full_like(value[0], 0.25) for leaf, value in cohort.theta["global"].items()}
    cohort.download({"global": server})
    assert all((value == 0.25).all() for value in cohort.theta["global"].values())
    assert all(torch.equal(value, private[leaf]) for leaf, value in cohort.theta["local"].items())


def test_correct_counts_only_real_samples(make_cohort, client_data):
    data, cohort = client_data(), make_cohort(FLoRA(), range(3))
    small, large = cohort.correct(data, 2)[""], cohort.correct(data, 64)[""]
    assert torch.equal(small, large)
    assert (large <= data.sizes()).all()


def test_a_prompt_for_training_is_learnt_from_and_not_scored_by(backbones, prompts, client_data, digits):
    data = client_data("text")
    other = encode_prompts(backbones["text"], class_prompts(digits.class_names, "a bad photo of the digit {}."))
    slots = [Slot(client, 0, FLoRA(lr=1e-2)) for client in range(3)]
    both, plain, foreign = (
        Cohort(slots, backbones["text"], said) for said in (replace(prompts, training=other), prompts, other)
    )
    trained = [train(cohort, data) for cohort in (both, plain, foreign)]
    assert largest_difference(trained[0], trained[2]) == 0
    assert largest_difference(trained[0], trained[1]) > 0
    plain.load_state_dict(trained[0])
    assert torch.equal(both.correct(data, 4)[""], plain.correct(data, 4)[""])
    batch = next(data.in_order(4))
    assert torch.equal(both.method.predict(both.forward, batch), plain.method.predict(plain.forward, batch))
