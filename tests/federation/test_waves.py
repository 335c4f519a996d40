"""Waves: many equal one, a resumed wave is the same, and what does not fit is split or refused in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddlp.errors import UserError
from feddlp.federation import waves
from feddlp.federation.waves import Wave, kept_bytes, split
from feddlp.methods import registry
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.flora import FLoRA
from feddlp.training.cohort import Cohort, Slot
from holdings import everyone, resume, whole_state

PARTIAL = {"participation": 0.7, "report_rate": 0.7}
LANES = [(0, FedDLP(gate_threshold=0.05, lr=0.01)), (1, FedDLP(gate_threshold=0.3, lr=0.03))]
PLAYED = {name: method() for name, method in registry().items()} | {
    "products": FLoRA(average_of="products", reset_optimizer=True, lr=0.01),
    "compact": FedDLP(gate_threshold=0.2, lr=0.02, compact=True),
    "lanes": LANES,
}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 12))
def test_every_client_stands_in_one_wave_the_largest_first(sizes, most):
    sizes, rows = torch.tensor(sizes), torch.arange(len(sizes))
    found = list(split(torch.zeros_like(rows), rows, sizes, most))
    order = torch.cat([wave.rows for wave in found])
    assert sorted(order.tolist()) == rows.tolist()
    assert sizes[order].tolist() == sorted(sizes.tolist(), reverse=True)
    widths = [len(wave.rows) for wave in found]
    assert max(widths) <= most
    assert max(widths) - min(widths) <= 1
    assert len(found) == -(-len(rows) // most)


@pytest.mark.parametrize("training", [{}, PARTIAL], ids=["all", "some"])
@pytest.mark.parametrize("name", sorted(PLAYED))
def test_many_waves_equal_one(name, training, make_federation):
    """Adapters, moments, servers and records; in float64."""
    one, many = (make_federation(PLAYED[name], "text", exact=True, wave=wave, **training) for wave in (100, 1))
    for _ in range(2):
        for expected, found in zip(one.play_round(), many.play_round(), strict=True):
            assert torch.equal(found.test_correct, expected.test_correct)
            assert torch.equal(found.bytes_up, expected.bytes_up)
            assert torch.equal(found.reported, expected.reported)
            assert found.diagnostics == expected.diagnostics
            for name, loss in expected.losses.items():
                torch.testing.assert_close(found.losses[name], loss, rtol=0, atol=1e-9, equal_nan=True)
    for lane in range(len(one.lanes)):
        same_clients(one, many, lane)
        state = many.state_dict(lane)
        for name, value in one.state_dict(lane).items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-8)


def same_clients(one, many, lane):
    """Products where ranks were taken away (their places may differ), leaves and moments elsewhere."""
    expected, found = everyone(one, lane), everyone(many, lane)
    if any(getattr(adapter, "compact", False) for adapter in expected.adapters.values()):
        for cohort in (expected, found):
            cohort.compact()
    pairs = expected.state_dict(), found.state_dict()
    assert pairs[0].keys() == pairs[1].keys()
    for name, value in pairs[0].items():
        torch.testing.assert_close(pairs[1][name], value, rtol=0, atol=1e-8)


def test_the_order_of_clients_only_permutes(make_federation):
    straight, turned = (make_federation(FedDLP(lr=0.01), "text", exact=True, wave=2) for _ in range(2))
    order = [2, 0, 1]
    turned.clients.data = turned.clients.data.select(order)
    turned.roster = turned.clients.roster
    for _ in range(2):
        (expected,), (found,) = straight.play_round(), turned.play_round()
        assert torch.equal(found.test_correct, expected.test_correct[order])
    moved = everyone(turned).state_dict()
    for name, value in everyone(straight).state_dict().items():
        torch.testing.assert_close(moved[name], value[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("wave", [1, 2])
def test_resumed_from_files_equals_uninterrupted_to_the_bit(wave, make_federation, tmp_path):
    options = {"wave": wave, "participation": 0.7}
    undisturbed, going = (make_federation(LANES, "text", **options) for _ in range(2))
    for _ in range(3):
        undisturbed.play_round()
        going.play_round()
        going = resume(make_federation(LANES, "text", participation=0.7, wave=0), going, tmp_path)
        assert going.clients.wave == wave
    for lane in range(2):
        state = whole_state(going, lane)
        assert all(torch.equal(value, state[name]) for name, value in whole_state(undisturbed, lane).items())


def test_who_never_took_part_has_no_entry(make_federation):
    federation = make_federation(FedDLP(), "text", participation=0.4)
    (result,) = federation.play_round()
    assert list(federation.clients.stores[0].where) == result.participated.nonzero()[:, 0].tolist()


# The memory budget


def test_activations_are_counted_and_grow_with_the_batch(make_federation):
    federation = make_federation(FLoRA(), "image")
    cohort = everyone(federation)
    small, large = (kept_bytes(cohort, next(federation.clients.data.train.in_order(size))) for size in (2, 8))
    assert small > 0
    assert large == pytest.approx(4 * small, rel=0.1)


def test_any_batch_fits_the_plan_though_the_largest_client_has_one_class(make_federation):
    """Captions of the batch alone are encoded, so that a client of many classes needs more than one of many samples."""
    federation = make_federation(FLoRA(objective="in_batch"), "text", wave=0)
    train = federation.clients.data.train
    labels = train.labels.clone()
    labels[train.indices[0]] = 0
    labels[train.indices[2][:4]] = torch.arange(4)
    federation.clients.data = replace(federation.clients.data, train=replace(train, labels=labels))
    for row in range(3):
        batch = next(federation.clients.data.train.select([row]).in_order(4))
        cohort = federation.clients.cohort(Wave(torch.tensor([0]), torch.tensor([row])), ())
        assert kept_bytes(cohort, batch) <= federation.clients.plan.activation_mib * 2**20


def test_a_wave_is_what_the_memory_allows(make_federation, monkeypatch):
    roomy = make_federation(FLoRA(), "image", wave=0)
    assert roomy.clients.side_by_side == 3
    state, activations = (value * 2**20 for value in (roomy.clients.plan.state_mib, roomy.clients.plan.activation_mib))
    client = waves.STATE_COPIES * state + waves.ACTIVATION_COPIES * activations
    monkeypatch.setattr(waves, "free_bytes", lambda device: (2.5 * client + 3 * state) / waves.AUTO_SHARE)
    tight = make_federation(FLoRA(), "image", wave=0)
    assert tight.clients.side_by_side == 2
    monkeypatch.setattr(waves, "free_bytes", lambda device: 0.5 * client)
    with pytest.raises(UserError, match=r"memory_limit=auto leaves .* lower training\.batch_size=4"):
        make_federation(FLoRA(), "image", wave=0).play_round()


def test_a_limit_counts_what_is_there_already(make_federation, monkeypatch):
    monkeypatch.setattr(waves, "used_bytes", lambda device: 2**30)
    assert make_federation(FLoRA(), "text", wave=0, memory_limit=2.0).clients.side_by_side == 3
    with pytest.raises(UserError, match=r"memory_limit=1GiB leaves 0 MiB"):
        make_federation(FLoRA(), "text", wave=0, memory_limit=1.0).play_round()


@pytest.mark.parametrize(
    ("store", "clients", "on_disk"),
    [("auto", 3, False), ("auto", 10**9, True), ("disk", 1, True), ("memory", 10, False)],
)
def test_clients_wait_on_the_disk_where_they_are_many(store, clients, on_disk, make_federation):
    federation = make_federation(FLoRA(), "text", client_store=store)
    batch = next(federation.clients.data.train.select([0]).in_order(4))
    probe = Cohort([Slot(0, 0, federation.lanes[0].method)], federation.clients.backbone, federation.clients.prompts)
    assert waves.make_plan(probe, batch, clients, federation.training).on_disk == on_disk
