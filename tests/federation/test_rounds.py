"""Rounds in process: the same twice, resumed = uninterrupted, and honest bookkeeping."""

from __future__ import annotations

import pytest
import torch

from feddlp.federation.rows import gates_at_start, sum_active
from feddlp.methods import registry
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.flora import FLoRA
from feddlp.methods.zero_shot import ZeroShot

FEDDLP = FedDLP(gate_threshold=0.02)


def copy_state(federation):
    return {name: tensor.clone() for name, tensor in federation.state_dict(0).items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["feddlp", "flora", "local"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name, tower, make_federation):
    federations = [make_federation(registry()[name](), tower, seed) for seed in (0, 0, 1)]
    for federation in federations:
        federation.play_round()
    first, again, other = map(copy_state, federations)
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_equals_uninterrupted_to_the_bit(stop, make_federation):
    undisturbed, stopped, resumed = (make_federation(FEDDLP) for _ in range(3))
    results = [undisturbed.play_round()[0] for _ in range(3)]
    for _ in range(stop):
        stopped.play_round()
    resumed.load_state_dict(stop, [copy_state(stopped)])
    later = [resumed.play_round()[0] for _ in range(3 - stop)]
    assert equal(copy_state(undisturbed), copy_state(resumed))
    for expected, found in zip(results[stop:], later, strict=True):
        assert expected.round == found.round
        assert torch.equal(expected.losses["local"], found.losses["local"])
        assert torch.equal(expected.test_correct, found.test_correct)


def test_the_server_averages_by_training_samples(make_federation):
    federation = make_federation(FLoRA())
    federation.play_round()
    weights = federation.data.train.sizes().double()
    for leaf, value in federation.cohort.theta["adapter"].items():
        expected = torch.einsum("k,k...->...", weights / weights.sum(), value.detach().double()).float()
        torch.testing.assert_close(federation.servers[0].shared["adapter"][leaf], expected)


def test_bytes_are_those_of_the_shared_tensors(make_federation):
    federation = make_federation(FEDDLP)
    (result,) = federation.play_round()
    parameters = sum(leaf.numel() for leaf in federation.servers[0].shared["global"].values())
    assert result.bytes_up.tolist() == result.bytes_down.tolist() == [4 * parameters] * 3


def test_gates_are_pruned_and_counted(make_federation):
    federation = make_federation(FedDLP(gate_threshold=0.2))
    counts = [sum_active(federation.play_round()[0].active) for _ in range(3)]
    assert gates_at_start(federation) == 4 * 25  # 25 linear layers in the embedded image tower
    assert (counts[0] > counts[-1]).all()
    assert make_federation(FLoRA()).play_round()[0].active == {}


def test_a_method_that_trains_nothing_is_scored_once(make_federation):
    federation = make_federation(ZeroShot(), rounds=50)
    assert federation.rounds == 1
    assert federation.play_round()[0].losses == {}


def test_several_local_epochs_differ_in_order_and_count_as_steps(make_federation):
    one, two = make_federation(FLoRA()), make_federation(FLoRA(), local_epochs=2)
    assert two.steps() == 2 * one.steps() == 6
    steps = []
    two.play_round(lambda: steps.append(1))
    assert len(steps) == 6
    assert two.cohort.optimizers["adapter"].steps.tolist() == [6, 2, 4]
    one.play_round()
    assert one.cohort.optimizers["adapter"].steps.tolist() == [3, 1, 2]
