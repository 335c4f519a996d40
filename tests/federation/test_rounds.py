"""Rounds in process: the same twice, lanes = runs apart, resumed = uninterrupted, and honest bookkeeping."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from feddlp.federation import host
from feddlp.federation.rows import sum_active
from feddlp.methods import registry
from feddlp.methods.fedclip import FedCLIP
from feddlp.methods.feddat import FedDAT
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.feddlp_shared import FedDLPShared
from feddlp.methods.flora import FLoRA
from feddlp.methods.zero_shot import ZeroShot
from feddlp.model.gates import active_by_site
from holdings import everyone, restore, whole_state

FEDDLP = FedDLP(gate_threshold=0.02)


def kind(value):
    return type(value).__name__


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["feddlp", "flora", "local"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name, tower, make_federation):
    federations = [make_federation(registry()[name](), tower, seed) for seed in (0, 0, 1)]
    for federation in federations:
        federation.play_round()
    first, again, other = map(whole_state, federations)
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_equals_uninterrupted_to_the_bit(stop, make_federation):
    undisturbed, stopped, resumed = (make_federation(FEDDLP) for _ in range(3))
    results = [undisturbed.play_round()[0] for _ in range(3)]
    for _ in range(stop):
        stopped.play_round()
    restore(resumed, stop, [whole_state(stopped)])
    later = [resumed.play_round()[0] for _ in range(3 - stop)]
    assert equal(whole_state(undisturbed), whole_state(resumed))
    for expected, found in zip(results[stop:], later, strict=True):
        assert expected.round == found.round
        assert torch.equal(expected.losses["local"], found.losses["local"])
        assert torch.equal(expected.test_correct, found.test_correct)


def test_the_server_averages_by_training_samples(make_federation):
    federation = make_federation(FLoRA())
    federation.play_round()
    weights = federation.clients.data.train.sizes().double()
    for leaf, value in everyone(federation).theta["adapter"].items():
        expected = torch.einsum("k,k...->...", weights / weights.sum(), value.detach().double()).float()
        torch.testing.assert_close(federation.servers[0].shared["adapter"][leaf], expected)


def test_bytes_are_those_of_the_shared_tensors(make_federation):
    federation = make_federation(FEDDLP)
    (result,) = federation.play_round()
    parameters = sum(leaf.numel() for leaf in federation.servers[0].shared["global"].values())
    assert result.bytes_up.tolist() == result.bytes_down.tolist() == [4 * parameters] * 3


def test_gates_are_pruned_and_counted(make_federation):
    federation = make_federation(FedDLP(gate_threshold=0.2))
    results = [federation.play_round()[0] for _ in range(3)]
    counts = [sum_active(result.active) for result in results]
    assert sum(results[0].ranks.values()) == 4 * 25  # 25 linear layers in the embedded image tower
    assert (counts[0] > counts[-1]).all()
    assert make_federation(FLoRA()).play_round()[0].active == {}


def test_a_method_that_trains_nothing_is_scored_once(make_federation):
    federation = make_federation(ZeroShot(), rounds=50)
    assert federation.rounds == 1
    assert federation.play_round()[0].losses == {}


def test_several_local_epochs_differ_in_order_and_count_as_steps(make_federation):
    one, two = make_federation(FLoRA()), make_federation(FLoRA(), local_epochs=2)
    assert two.clients.steps() == 2 * one.clients.steps() == 6
    steps = []
    two.play_round(lambda: steps.append(1))
    assert len(steps) == 6
    assert everyone(two).optimizers["adapter"].steps.tolist() == [6, 2, 4]
    one.play_round()
    assert everyone(one).optimizers["adapter"].steps.tolist() == [3, 1, 2]


# Lanes: several runs side by side equal runs apart

GATED = FedDLP(gate_threshold=0.05, lr=0.01)
LANES = {
    "seeds": [(seed, GATED) for seed in (0, 42)],
    "trials": [(0, GATED), (0, replace(GATED, lr=0.03)), (0, replace(GATED, kd_weight=2.0, gate_threshold=0.3))],
    "both, momentum": [(s, FLoRA(lr=lr, server_momentum=0.5)) for s, lr in ((3, 0.01), (3, 0.002), (4, 0.01))],
    "proximal": [(s, FLoRA(lr=0.01, proximal=0.3, average_of="products", reset_optimizer=True)) for s in (5, 6)],
    "dat": [(s, FedDAT(lr=0.01, kd_weight=weight)) for s, weight in ((0, 1.0), (1, 0.2))],
}
PARTIAL = {"participation": 0.7, "report_rate": 0.5}


def assert_same_round(found, alone):
    """Two results of one round; counts exactly, losses to rounding in float64."""
    for field in ("round", "diagnostics", "ranks"):
        assert getattr(found, field) == getattr(alone, field)
    for field in ("participated", "reported", "validation_correct", "test_correct", "bytes_down", "bytes_up"):
        assert torch.equal(getattr(found, field), getattr(alone, field)), field
    assert found.active.keys() == alone.active.keys()
    assert all(torch.equal(found.active[key], count) for key, count in alone.active.items())
    assert found.losses.keys() == alone.losses.keys()
    for name, loss in alone.losses.items():
        torch.testing.assert_close(found.losses[name], loss, rtol=0, atol=1e-9, equal_nan=True)


def assert_same_state(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "training"),
    [("trials", {}), ("seeds", PARTIAL), ("both, momentum", PARTIAL), ("proximal", PARTIAL), ("dat", PARTIAL)],
)
def test_lanes_side_by_side_equal_federations_apart(name, training, make_federation):
    """Adapters, moments, server, scores, losses and bytes of every lane, whoever takes part in it."""
    lanes = LANES[name]
    together = make_federation(lanes, "text", exact=True, **training)
    apart = [make_federation(method, "text", seed, exact=True, **training) for seed, method in lanes]
    for _ in range(2):
        results = together.play_round()
        assert len(results) == len(lanes)
        for result, federation in zip(results, apart, strict=True):
            assert_same_round(result, federation.play_round()[0])
    for lane, federation in enumerate(apart):
        assert_same_state(whole_state(together, lane), whole_state(federation))
    assert not torch.equal(*(whole_state(together, lane)[last_leaf(together)] for lane in (0, 1)))


def last_leaf(federation):
    return [name for name in whole_state(federation) if "/theta/" in name and name.endswith(".B")][-1]


def test_lanes_of_an_image_tower_equal_federations_apart(make_federation):
    together = make_federation(LANES["trials"], exact=True)
    results = together.play_round()
    for lane, (seed, method) in enumerate(LANES["trials"]):
        alone = make_federation(method, seed=seed, exact=True)
        assert_same_round(results[lane], alone.play_round()[0])
        assert_same_state(whole_state(together, lane), whole_state(alone))


def test_a_lane_goes_on_alone_from_its_state_and_lanes_from_theirs(make_federation):
    """What stood side by side may part, and what was apart may join."""
    lanes = LANES["trials"]
    together = make_federation(lanes, "text", exact=True)
    together.play_round()
    states = [whole_state(together, lane) for lane in range(3)]
    results = together.play_round()
    joined = make_federation([lanes[2], lanes[0]], "text", exact=True)
    restore(joined, 1, [states[2], states[0]])
    for lane, result in zip((2, 0), joined.play_round(), strict=True):
        assert_same_round(result, results[lane])
    assert_same_state(whole_state(joined), whole_state(together, 2))
    assert_same_state(whole_state(joined, 1), whole_state(together))


def test_trials_that_differ_in_more_than_numbers_are_refused(make_federation):
    with pytest.raises(ValueError, match="objective cannot train side by side"):
        make_federation([(0, FLoRA()), (0, FLoRA(objective="in_batch"))], "text")


# Some take part


def clients_state(federation, client):
    return {name: value[client].clone() for name, value in everyone(federation).state_dict().items()}


@pytest.mark.parametrize("method", [GATED, FedDAT(), FLoRA(proximal=0.1, reset_optimizer=True)], ids=kind)
def test_who_sits_out_stays_as_it_was_and_scores_as_it_did(method, make_federation):
    federation = make_federation(method, "text", participation=0.4)
    sat_out = set()
    for _ in range(4):
        before = [clients_state(federation, client) for client in range(3)]
        (result,) = federation.play_round()
        assert result.participated.sum() == 1
        now, data = everyone(federation), federation.clients.data
        fresh = {part: now.correct(getattr(data, part), 64)[""] for part in ("validation", "test")}
        assert torch.equal(result.test_correct, fresh["test"])
        assert torch.equal(result.validation_correct, fresh["validation"])
        for client, state in enumerate(before):
            changed = any(not torch.equal(value, state[n]) for n, value in clients_state(federation, client).items())
            assert changed == bool(result.participated[client])
            if not changed:
                sat_out.add(client)
                assert not result.reported[client]
                assert result.bytes_up[client] == result.bytes_down[client] == 0
                assert all(loss[client].isnan() for loss in result.losses.values())
            else:
                assert result.bytes_down[client] > 0
    assert sat_out == {0, 1, 2}


def test_a_participant_does_the_same_whoever_else_takes_part(make_federation):
    """In the first round all start from the same server, so that company is all that differs."""
    everyone = make_federation(GATED, "text", exact=True)
    everyone.play_round()
    some = make_federation(GATED, "text", exact=True, participation=0.7)
    (result,) = some.play_round()
    assert result.participated.sum() == 2
    for client in result.participated.nonzero()[:, 0].tolist():
        assert_same_state(clients_state(some, client), clients_state(everyone, client))


@pytest.mark.parametrize("averaging", ["samples", "uniform"])
def test_the_server_averages_what_was_reported_and_nothing_else(averaging, make_federation):
    federation = make_federation(FLoRA(averaging=averaging), "text", exact=True, **PARTIAL)
    counts = set()
    for _ in range(6):
        before = {leaf: value.clone() for leaf, value in federation.servers[0].shared["adapter"].items()}
        (result,) = federation.play_round()
        counts.add(int(result.reported.sum()))
        sizes = federation.clients.data.train.sizes() if averaging == "samples" else torch.ones(3)
        weights = (sizes * result.reported).double()
        assert (result.bytes_up > 0).equal(result.reported)
        assert (result.bytes_down > 0).equal(result.participated)
        for leaf, value in federation.servers[0].shared["adapter"].items():
            theta = everyone(federation).theta["adapter"][leaf].detach()
            mean = torch.einsum("k,k...->...", weights / weights.sum(), theta) if weights.any() else before[leaf]
            torch.testing.assert_close(value, mean, rtol=0, atol=1e-12)
    assert len(counts) > 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_where_nobody_reports_the_server_stays_to_the_bit_and_clients_train(momentum, make_federation):
    federation = make_federation(FLoRA(server_momentum=momentum), "text", report_rate=0.0)
    before = {name: value.clone() for name, value in federation.servers[0].state_dict().items()}
    (result,) = federation.play_round()
    (result,) = federation.play_round()
    assert all(torch.equal(value, before[name]) for name, value in federation.servers[0].state_dict().items())
    assert result.participated.all()
    assert not result.reported.any()
    assert result.bytes_up.tolist() == [0, 0, 0]
    assert everyone(federation).optimizers["adapter"].steps.tolist() == [6, 2, 4]


# Going on from a state, with every option

RESUMED = {
    "momentum": (FLoRA(server_momentum=0.5, proximal=0.1), {}),
    "reset": (FedDAT(reset_optimizer=True), {}),
    "schedule": (replace(GATED, gate_schedule="rise", gate_schedule_rounds=3, gate_threshold=0.4), {"local_epochs": 2}),
    "products": (FLoRA(average_of="products", reset_optimizer=True), {}),
    "private B": (FLoRA(factors_sent="A"), {}),
    "fixed A": (FedDLP(factors_trained="B", server_momentum=0.5), {}),
    "pruned and shared": (FedDLPShared(gate_threshold=0.2), {}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted_whatever_the_options(name, make_federation):
    method, options = RESUMED[name]
    options = {"rounds": 4, "participation": 0.7, "report_rate": 0.7, **options}
    undisturbed, going = (make_federation(method, "text", **options) for _ in range(2))
    results = [undisturbed.play_round()[0] for _ in range(4)]
    assert 0 < sum(int(result.reported.sum()) for result in results) < 8
    for played in range(1, 4):
        found = going.play_round()[0]
        state = whole_state(going)
        going = make_federation(method, "text", **options)
        restore(going, played, [state])
        assert_same_bits(found, results[played - 1])
    assert_same_bits(going.play_round()[0], results[3])
    assert equal(whole_state(undisturbed), whole_state(going))


def assert_same_bits(found, expected):
    assert_same_round(found, expected)
    assert all(torch.equal(loss.nan_to_num(-1), expected.losses[n].nan_to_num(-1)) for n, loss in found.losses.items())


@pytest.mark.parametrize("schedule", ["rise", "fall"])
def test_a_schedule_knows_the_round_of_the_federation(schedule, make_federation):
    """A client's first round may be a late one: what counts is how far the federation has come."""
    method = replace(GATED, gate_schedule=schedule, gate_schedule_rounds=1, gate_threshold=50.0)
    federation = make_federation(method, "text", participation=0.4)
    for round in range(3):
        before = sum_active(active_by_adapter(federation))
        (result,) = federation.play_round()
        prunes = (round >= 1) == (schedule == "rise")
        expected = torch.where(result.participated, 0, before) if prunes else before
        assert sum_active(result.active).tolist() == expected.tolist()


def active_by_adapter(federation):
    return active_by_site(everyone(federation).theta["local"])


def test_a_reset_optimiser_is_a_new_one_every_round(make_federation):
    """Moments and step counts alike: the next round is that of clients that never stepped before."""
    method = FedDAT(reset_optimizer=True, lr=0.01)
    going, fresh = (make_federation(method, "text") for _ in range(2))
    going.play_round()
    state = whole_state(going)
    moments = {name for name in state if name.split("/")[1] in ("m", "v", "steps")}
    assert any(state[name].any() for name in moments)
    restore(fresh, 1, [{n: torch.zeros_like(v) if n in moments else v for n, v in state.items()}])
    for federation in (going, fresh):
        federation.play_round()
    assert equal(whole_state(going), whole_state(fresh))


# Diagnostics


@pytest.mark.parametrize("method", [GATED, FedDAT(), FLoRA()], ids=kind)
def test_diagnostics_change_nothing(method, make_federation):
    looked, blind = (make_federation(method, "text", diagnostics=on, participation=0.7) for on in (True, False))
    for _ in range(2):
        (seen,), (unseen,) = looked.play_round(), blind.play_round()
        assert seen.diagnostics
        assert unseen.diagnostics == {}
        assert torch.equal(seen.test_correct, unseen.test_correct)
    assert equal(whole_state(looked), whole_state(blind))


def test_received_is_the_servers_adapter_scored_before_anybody_trains(make_federation):
    federation = make_federation(FLoRA(lr=0.05), "text", local_epochs=3)
    visitor, data = everyone(make_federation(FLoRA(), "text")), federation.clients.data.test
    found, expected, trained = [], [], []
    for _ in range(4):
        visitor.download(federation.servers[0].shared)
        expected.append(percent(visitor.correct(data, 64)[""], data))
        (result,) = federation.play_round()
        trained.append(percent(result.test_correct, data))
        found.append(result.diagnostics["received"])
    assert found == pytest.approx(expected)
    assert found[1:] != pytest.approx(trained[:-1]), "equal scores before and after averaging would test nothing"
    assert found != pytest.approx(trained)


def percent(correct, data):
    return 100 * correct.sum().item() / data.sizes().sum().item()


def test_diagnostics_are_those_of_the_participants(make_federation):
    federation = make_federation(GATED, "text", participation=0.4)
    for _ in range(3):
        (result,) = federation.play_round()
        (client,) = result.participated.nonzero()[:, 0].tolist()
        samples = federation.clients.data.test.sizes()[client].item()
        assert result.diagnostics["local"] == pytest.approx(100 * result.test_correct[client].item() / samples)
        assert result.diagnostics.keys() == {"predicted", "received", "local", "global", "combined", "ensemble"}
    assert result.diagnostics["predicted"] == result.diagnostics["local"]


# FedProx


def test_a_proximal_term_pulls_towards_what_was_received_and_none_pulls_nowhere(make_federation):
    def moved(proximal):
        federation = make_federation(FLoRA(lr=0.01, proximal=proximal, max_grad_norm=0.0), "text", exact=True)
        start = {leaf: value.detach().clone() for leaf, value in everyone(federation).theta["adapter"].items()}
        federation.play_round()
        theta = everyone(federation).theta["adapter"]
        return sum((theta[leaf].detach() - value).square().sum(dim=(1, 2)) for leaf, value in start.items())

    free, weak, strong = moved(0.0), moved(10.0), moved(1e5)
    assert strong[0] < weak[0] < free[0]
    torch.testing.assert_close(free[1], strong[1])  # one step, from the anchor itself: nothing to pull yet


@pytest.mark.parametrize("common", [False, True], ids=["own", "common"])
@pytest.mark.parametrize("name", sorted(registry()))
def test_before_the_first_round_one_client_stands_in_for_all(name, common, make_federation):
    """As if each were scored by itself, with its own first adapters."""
    method = FedDLP(inference="ensemble") if name == "feddlp" else registry()[name]()
    federation = make_federation([(0, method), (1, method)], "both", exact=True, participation=0.4)
    if common:
        test = replace(federation.clients.data.test, indices=federation.clients.data.test.indices[:1] * 3)
        federation.clients.data = replace(federation.clients.data, test=test)
    for lane, start in enumerate(federation.score_start()):
        cohort = everyone(federation, lane)
        assert torch.equal(start.test_correct, cohort.correct(federation.clients.data.test, 2)[""])
        assert torch.equal(start.validation_correct, cohort.correct(federation.clients.data.validation, 2)[""])


def test_clients_that_begin_unlike_are_scored_one_by_one(make_federation, monkeypatch):
    """A private attention over features acts from the start, and differently at each client."""
    assert host.begin_alike(FedDLP())
    assert host.begin_alike(FedCLIP())
    monkeypatch.setattr(FedCLIP, "shared", ())
    assert not host.begin_alike(FedCLIP())
    federation = make_federation([(0, FedCLIP())], "image", exact=True, participation=0.4)
    (start,) = federation.score_start()
    assert torch.equal(start.test_correct, everyone(federation, 0).correct(federation.clients.data.test, 2)[""])


def test_the_start_is_scored_without_validation_samples(make_federation):
    federation = make_federation(GATED, "text", participation=0.4)
    none = replace(federation.clients.data.validation, indices=(torch.empty(0, dtype=torch.int64),) * 3)
    federation.clients.data = replace(federation.clients.data, validation=none)
    (start,) = federation.score_start()
    assert not start.validation_correct.any()
