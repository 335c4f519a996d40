"""Gates: the proximal operators against their definitions, and pruned ranks taken away without a trace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.federation.waves import Wave
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.sora_local import SoRALocal
from feddlp.model.adapters import FeatureSite, LinearSite, WeightSite
from feddlp.model.gates import (
    PROXIMAL,
    GatedLoRA,
    active_by_site,
    gates,
    hard_threshold,
    keep,
    pruned_bytes,
    soft_threshold,
    sora_code_threshold,
    survivors,
    without_pruned,
)
from feddlp.training.cohort import Cohort, Slot
from holdings import everyone, resume, whole_state

SITES = {"first": LinearSite(6, 4), "second": LinearSite(5, 8)}
values = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=12)
thresholds = st.floats(0, 1, width=32)
few = settings(max_examples=40)


def theta_of(clients=3, rank=4, seed=0, dead=0.5):
    """Random adapters in float64 of which a share of the gates is zero."""
    g = torch.Generator().manual_seed(seed)
    one = GatedLoRA(rank).init(SITES, lambda site: g)
    theta = {name: torch.randn(clients, *leaf.shape, generator=g).double() for name, leaf in one.items()}
    for gate in gates(theta).values():
        gate *= torch.rand(gate.shape, generator=g) >= dead
    return theta


def product(theta, site, client):
    down, up, gate = (theta[f"{site}.{leaf}"][client] for leaf in ("A", "B", "gate"))
    return up @ gate.diag() @ down


# The proximal operators


@few
@given(values, thresholds)
def test_soft_is_the_minimiser_of_its_proximal_problem(numbers, threshold):
    """prox(g) = argmin_z 1/2 (z - g)^2 + xi |z|: no other point is lower, whether near or far."""
    gate = torch.tensor(numbers, dtype=torch.float64)
    found = soft_threshold(gate, threshold)

    def cost(z):
        return 0.5 * (z - gate) ** 2 + threshold * z.abs()

    for other in (found + 1e-3, found - 1e-3, torch.zeros_like(gate), gate):
        assert (cost(found) <= cost(other) + 1e-12).all()


@few
@given(values, thresholds)
def test_sora_code_is_its_two_lines_of_code_for_every_number(numbers, threshold):
    found = sora_code_threshold(torch.tensor(numbers, dtype=torch.float64), threshold)
    for value, result in zip(numbers, found.tolist(), strict=True):
        if abs(value) > threshold:
            value -= math.copysign(threshold, value)
        assert result == (0.0 if abs(value) < threshold else value)


@few
@given(values, thresholds)
def test_hard_is_all_or_nothing(numbers, threshold):
    found = hard_threshold(torch.tensor(numbers, dtype=torch.float64), threshold)
    assert found.tolist() == [0.0 if abs(value) <= threshold else value for value in numbers]


def test_the_three_operators_differ_where_they_should():
    gate = torch.tensor([0.05, 0.15, 0.25, -0.15, -0.25])
    expected = {
        "soft": [0, 0.05, 0.15, -0.05, -0.15],
        "sora_code": [0, 0, 0.15, 0, -0.15],  # all below twice the threshold
        "hard": [0, 0.15, 0.25, -0.15, -0.25],
    }
    assert PROXIMAL.keys() == expected.keys()
    for name, numbers in expected.items():
        torch.testing.assert_close(PROXIMAL[name](gate, 0.1), torch.tensor(numbers))


@few
@given(values, thresholds, st.sampled_from(sorted(PROXIMAL)))
def test_every_operator_is_odd_and_never_grows_or_crosses_zero(numbers, threshold, name):
    gate, prox = torch.tensor(numbers), PROXIMAL[name]
    found = prox(gate, threshold)
    assert torch.equal(prox(-gate, threshold), -found)
    assert (found.abs() <= gate.abs()).all()
    assert (found * gate >= 0).all()
    assert torch.equal(prox(torch.zeros(3), threshold), torch.zeros(3))


@few
@given(values, st.sampled_from(sorted(PROXIMAL)))
def test_a_threshold_of_zero_changes_nothing(numbers, name):
    gate = torch.tensor(numbers)
    assert torch.equal(PROXIMAL[name](gate, 0.0), gate)


# The threshold: schedules, and one for each client


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1, 1]), ("rise", [0, 0.25, 0.5, 1, 1]), ("fall", [1, 0.75, 0.5, 0, 0])],
)
@pytest.mark.parametrize("prox", sorted(PROXIMAL))
def test_a_schedule_scales_the_threshold_by_rounds_finished(schedule, expected, prox):
    adapter = GatedLoRA(4, gate_threshold=0.4, prox=prox, gate_schedule=schedule, gate_schedule_rounds=4)
    theta = theta_of(dead=0)
    for rounds, share in zip((0, 1, 2, 4, 9), expected, strict=True):
        for name, gate in adapter.project(theta, float(rounds)).items():
            assert torch.equal(gate, PROXIMAL[prox](theta[name], 0.4 * share))


@pytest.mark.parametrize("prox", sorted(PROXIMAL))
@pytest.mark.parametrize("schedule", ["constant", "rise"])
def test_every_client_may_have_a_threshold_of_its_own(prox, schedule):
    options = {"prox": prox, "gate_schedule": schedule, "gate_schedule_rounds": 3}
    theta, xi = theta_of(dead=0), torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    together = GatedLoRA(4, gate_threshold=xi, **options).project(theta, 2.0)
    for k, threshold in enumerate(xi.tolist()):
        alone = GatedLoRA(4, gate_threshold=threshold, **options).project(theta, 2.0)
        assert all(torch.equal(together[name][k], alone[name][k]) for name in alone)


def test_thresholds_of_trials_reach_their_own_clients(make_federation):
    """xi times the learning rate, both stacked."""
    method = FedDLP(threshold_scale="lr", gate_threshold=2.0, lr=0.01)
    lanes = [(0, method), (0, replace(method, lr=0.03)), (0, replace(method, gate_threshold=7.0))]
    adapter = lanes_of(make_federation(lanes, exact=True)).adapters["local"]
    expected = [xi for xi in (0.02, 0.06, 0.07) for _ in range(3)]
    torch.testing.assert_close(adapter.gate_threshold, torch.tensor(expected, dtype=torch.float64))


def lanes_of(federation):
    """Every client of every lane side by side."""
    lanes, rows = torch.ones(len(federation.lanes), len(federation.clients.data.ids)).nonzero().unbind(1)
    return federation.clients.cohort(Wave(lanes, rows), federation.clients.stores)


def test_gates_start_normal_or_at_one_and_only_at_linear_layers():
    sites = {"linear": LinearSite(3, 3), "image.features": FeatureSite(8), "weight": WeightSite((4, 4))}
    draw = torch.Generator().manual_seed(0)
    normal, ones = (GatedLoRA(400, gate_init=kind).init(sites, lambda site: draw) for kind in ("normal", "ones"))
    assert normal.keys() == {"linear.A", "linear.B", "linear.gate"}
    assert abs(normal["linear.gate"].mean().item()) < 0.2
    assert normal["linear.gate"].std().item() == pytest.approx(1, abs=0.15)
    assert torch.equal(ones["linear.gate"], torch.ones(400))


# Taking ranks away


@few
@given(clients=st.integers(1, 4), rank=st.integers(1, 6), seed=st.integers(0, 99), dead=st.sampled_from([0, 0.5, 1]))
def test_compaction_leaves_every_product_and_every_output_as_it_was(clients, rank, seed, dead):
    theta, adapter = theta_of(clients, rank, seed, dead), GatedLoRA(rank)
    smaller = keep(theta, survivors(theta))
    (down, up), (less_down, less_up) = (adapter.factors(each, "first") for each in (theta, smaller))
    torch.testing.assert_close(less_up @ less_down, up @ down)
    for site in SITES:
        assert smaller[f"{site}.gate"].shape[1] == int((theta[f"{site}.gate"] != 0).sum(1).max())
        for client in range(clients):
            torch.testing.assert_close(product(smaller, site, client), product(theta, site, client))
    before, after = active_by_site(theta), active_by_site(smaller)
    assert all(torch.equal(before[site], after[site]) for site in SITES)


@few
@given(seed=st.integers(0, 99))
def test_survivors_stand_first_in_their_old_order_and_fillings_are_zero_everywhere(seed):
    theta = theta_of(4, 6, seed)
    smaller = keep(theta, survivors(theta))
    for site in SITES:
        for client in range(4):
            alive = theta[f"{site}.gate"][client].nonzero()[:, 0]
            leaves = {leaf: smaller[f"{site}.{leaf}"][client] for leaf in ("A", "B", "gate")}
            count = len(alive)
            assert torch.equal(leaves["A"][:count], theta[f"{site}.A"][client][alive])
            assert torch.equal(leaves["B"][:, :count], theta[f"{site}.B"][client][:, alive])
            assert torch.equal(leaves["gate"][:count], theta[f"{site}.gate"][client][alive])
            assert not leaves["A"][count:].any()
            assert not leaves["B"][:, count:].any()
            assert not leaves["gate"][count:].any()


@few
@given(seed=st.integers(0, 99))
def test_compacting_twice_is_compacting_once(seed):
    once = keep(theta := theta_of(3, 5, seed), survivors(theta))
    twice = keep(once, survivors(once))
    assert all(torch.equal(twice[name], leaf) for name, leaf in once.items())


def test_leaves_without_gates_pass_through_untouched():
    theta = theta_of() | {"third.A": torch.randn(3, 2, 5), "third.B": torch.randn(3, 5, 2)}
    smaller = keep(theta, survivors(theta))
    assert smaller["third.A"] is theta["third.A"]
    assert smaller["third.B"] is theta["third.B"]
    assert smaller.keys() == theta.keys()


@few
@given(seed=st.integers(0, 99))
def test_pruned_ranks_are_padded_with_zeros_and_nothing_else_changes(seed):
    theta = theta_of(3, 5, seed)
    padded = without_pruned(theta)
    assert padded.keys() == theta.keys()
    for site in SITES:
        alive = theta[f"{site}.gate"] != 0
        torch.testing.assert_close(padded[f"{site}.A"], theta[f"{site}.A"] * alive[:, :, None])
        torch.testing.assert_close(padded[f"{site}.B"], theta[f"{site}.B"] * alive[:, None, :])
        assert torch.equal(padded[f"{site}.gate"], theta[f"{site}.gate"])
        for client in range(3):
            torch.testing.assert_close(product(padded, site, client), product(theta, site, client))


def test_bytes_of_what_is_left_by_hand():
    theta = {name: leaf.float() for name, leaf in theta_of(2, 9, dead=0).items()}
    theta["first.gate"][0, 2:] = 0  # 2 of 9 ranks left
    theta["second.gate"][0, :] = 0  # none left
    mask = 2 + 2  # nine ranks take two bytes, at either site
    everything = 4 * (9 * (6 + 4 + 1) + 9 * (5 + 8 + 1)) + mask
    assert pruned_bytes(theta).tolist() == [4 * 2 * (6 + 4 + 1) + mask, everything]
    double = {name: leaf.double() for name, leaf in theta.items()}
    assert pruned_bytes(double).tolist() == [8 * 2 * (6 + 4 + 1) + mask, 2 * (everything - mask) + mask]


# A cohort that takes ranks away while it trains

DYING = FedDLP(gate_threshold=0.15, lr=0.02, weight_decay=0.1, compact=True)


@pytest.fixture
def make_cohort(exact_backbones, exact_prompts):
    def make(method, clients=(0, 1, 2), tower="text"):
        return Cohort([Slot(client, 0, method) for client in clients], exact_backbones[tower], exact_prompts)

    return make


def rounds(cohort, data, count=3, after=None):
    """Train and compact, `count` times."""
    owners = [(slot.client, slot.seed) for slot in cohort.slots]
    for played in range(count):
        cohort.start_round(float(played))
        cohort.fit(data.shuffled(4, owners, played, 0))
        cohort.compact()
        if after:
            after(cohort)


def living(state, client):
    """One client's adapters and moments as matrices that do not depend on how many filling ranks there are."""
    return {name: value[client] for name, value in state.items()}


def widths(cohort, name="local"):
    return [gate.shape[1] for gate in gates(cohort.theta[name]).values()]


def cut(leaf, kind, width):
    """A client's leaf with its first `width` ranks only; the others must be filling, zero to the bit."""
    axis = {"A": 0, "B": 1, "gate": 0}[kind]
    assert not leaf.narrow(axis, width, leaf.shape[axis] - width).any()
    return leaf.narrow(axis, 0, width)


def assert_same_client(together, k, alone):
    """Client k of a cohort and the same client by itself: adapters and moments, in float64."""
    for name in together.theta:
        pairs = [(together.theta[name], alone.theta[name])]
        for moment in ("m", "v"):
            pairs.append((moments(together, name, moment), moments(alone, name, moment)))
        for many, one in pairs:
            for leaf, value in one.items():
                mine = many[leaf][k].detach()
                if f"{leaf.rpartition('.')[0]}.gate" in gates(one):
                    gate = one[f"{leaf.rpartition('.')[0]}.gate"]
                    mine = cut(mine, leaf.rpartition(".")[2], gate.shape[1])
                torch.testing.assert_close(mine, value[0].detach(), rtol=0, atol=1e-9)
        assert together.optimizers[name].steps[k] == alone.optimizers[name].steps[0]


def moments(cohort, name, moment):
    """An optimiser's moment as leaves."""
    theta = cohort.learning(name)
    parts = torch.split(getattr(cohort.optimizers[name], moment), [leaf[0].numel() for leaf in theta.values()], dim=1)
    return {leaf: part.view_as(value) for (leaf, value), part in zip(theta.items(), parts, strict=True)}


@pytest.mark.parametrize(("tower", "prox"), [("image", "soft"), ("text", "soft"), ("text", "sora_code")])
def test_a_compacted_client_is_the_same_in_every_company(prox, tower, make_cohort, client_data):
    """Different clients lose different ranks, so each one's filling is another; three rounds with moments."""
    method, data = replace(DYING, prox=prox), client_data(tower, exact=True)
    together = make_cohort(method, (5, 0, 9), tower)
    rounds(together, data)
    counts = torch.stack(list(active_by_site(together.theta["local"]).values()))
    assert (counts != counts[:, :1]).any(), "no client has filling, so that nothing is tested"
    for k, client in enumerate((5, 0, 9)):
        alone = make_cohort(method, [client], tower)
        rounds(alone, data.select([k]))
        assert widths(alone) == counts[:, k].tolist()
        assert_same_client(together, k, alone)


def test_compaction_changes_no_prediction(make_cohort, client_data):
    data, cohort = client_data("text", exact=True), make_cohort(DYING)
    batch = next(data.in_order(8))
    cohort.fit(data.shuffled(4, [(0, 0), (1, 0), (2, 0)], 0, 0))
    before = {view: cohort.forward.frozen(batch, view) for view in ("local", "global")}
    narrow = min(widths(cohort))
    cohort.compact()
    assert min(widths(cohort)) < narrow
    for view, logits in before.items():
        torch.testing.assert_close(cohort.forward.frozen(batch, view), logits, rtol=0, atol=1e-9)


def test_without_compact_nothing_is_taken_away(make_cohort, client_data):
    cohort = make_cohort(replace(DYING, compact=False))
    rounds(cohort, client_data("text", exact=True))
    assert set(widths(cohort)) == {4}
    assert 0 < sum(active_by_site(cohort.theta["local"]).values()).sum() < 4 * 3 * len(widths(cohort))


def test_a_rank_that_was_taken_away_never_comes_back(make_cohort, client_data):
    """After the first compaction nothing prunes any more, and gates that live may only go on living."""
    cohort, data = make_cohort(DYING), client_data("text", exact=True)
    rounds(cohort, data, 1)
    free = make_cohort(replace(DYING, gate_threshold=0.0, lr=0.05))
    free.load_state_dict(cohort.state_dict())
    fillings = {name: gate.detach() == 0 for name, gate in gates(free.theta["local"]).items()}
    assert any(filling.any() for filling in fillings.values())
    rounds(free, data, 2, after=lambda trained: None)
    for name, filling in fillings.items():
        down, up, gate = (free.theta["local"][name.replace("gate", leaf)].detach() for leaf in ("A", "B", "gate"))
        assert not gate[filling].any()
        assert not (down * filling[:, :, None]).any()
        assert not (up * filling[:, None, :]).any()


def test_without_compaction_a_gate_may_come_back(make_cohort, client_data):
    """The other side of the promise: as long as its rank is there, a gate at 0 still has a gradient."""
    cohort, data = make_cohort(replace(DYING, compact=False)), client_data("text", exact=True)
    rounds(cohort, data, 1)
    free = make_cohort(replace(DYING, compact=False, gate_threshold=0.0, lr=0.05))
    free.load_state_dict(cohort.state_dict())
    dead = {name: gate.detach() == 0 for name, gate in gates(free.theta["local"]).items()}
    rounds(free, data, 1)
    assert any(gates(free.theta["local"])[name].detach()[was].any() for name, was in dead.items())


def test_survivors_keep_their_moments_and_their_step_counts(make_cohort, client_data):
    cohort, data = make_cohort(DYING), client_data("text", exact=True)
    cohort.fit(data.shuffled(4, [(0, 0), (1, 0), (2, 0)], 0, 0))
    kept = survivors(cohort.theta["local"])
    expected = {moment: keep_matching(cohort, kept, moment) for moment in ("m", "v")}
    steps = cohort.optimizers["local"].steps.clone()
    cohort.compact()
    optimizer = cohort.optimizers["local"]
    assert torch.equal(optimizer.steps, steps)
    assert optimizer.m.any()
    assert optimizer.m.shape == optimizer.v.shape == (3, len(optimizer.clipped))
    for moment, leaves in expected.items():
        found = moments(cohort, "local", moment)
        assert found.keys() == leaves.keys()
        assert all(torch.equal(found[leaf], value) for leaf, value in leaves.items())
    marks = torch.split(optimizer.clipped, [leaf[0].numel() for leaf in cohort.learning("local").values()])
    for leaf, mark in zip(cohort.learning("local"), marks, strict=True):
        assert (mark == (not leaf.endswith(".gate"))).all()  # gates stay out of the gradient norm


def keep_matching(cohort, kept, moment):
    """What the moments must become, picked rank by rank."""
    found = {}
    for leaf, value in moments(cohort, "local", moment).items():
        site, _, kind = leaf.rpartition(".")
        order, alive = kept[f"{site}.gate"]
        rows = []
        for client in range(len(value)):
            picked = value[client].movedim(1 if kind == "B" else 0, 0)[order[client]]
            picked = picked * alive[client].view(-1, *[1] * (picked.dim() - 1))
            rows.append(picked.movedim(0, 1 if kind == "B" else 0))
        found[leaf] = torch.stack(rows)
    return found


@pytest.mark.parametrize("method", [DYING, SoRALocal(compact=True)], ids=["feddlp", "sora_local"])
def test_without_any_rank_left_a_client_still_trains_and_predicts(method, make_cohort, client_data):
    """Leaves of width zero: the private adapter is the frozen model from then on."""
    cohort, data = make_cohort(replace(method, gate_threshold=100.0)), client_data("text", exact=True)
    rounds(cohort, data, 3)
    name = "local" if "local" in cohort.theta else "adapter"
    assert set(widths(cohort, name)) == {0}
    assert sum(active_by_site(cohort.theta[name]).values()).tolist() == [0, 0, 0]
    batch = next(data.in_order(4))
    torch.testing.assert_close(cohort.forward.frozen(batch, name), cohort.forward.frozen(batch, {}))
    assert (cohort.correct(data, 4)[""] <= data.sizes()).all()
    if "global" in cohort.theta:
        assert all(leaf.any() for leaf in cohort.theta["global"].values())


def test_ranks_are_taken_from_gates_of_every_kind_of_training(make_cohort, client_data):
    """With A fixed at its start (FFA-LoRA), A has no moments, and loses its pruned ranks all the same."""
    cohort, data = make_cohort(replace(DYING, factors_trained="B")), client_data("text", exact=True)
    rounds(cohort, data, 2)
    assert min(widths(cohort)) < 4
    for gate_name, gate in gates(cohort.theta["local"]).items():
        assert cohort.theta["local"][gate_name.replace("gate", "A")].shape[1] == gate.shape[1]


# A federation that takes ranks away


def compacted(federation):
    """All clients, without the ranks that they had only to stand beside wider ones."""
    cohort = everyone(federation)
    cohort.compact()
    return cohort


def test_a_compacting_federation_goes_on_from_its_state_to_the_bit(make_federation, tmp_path):
    undisturbed, stopped = (make_federation(DYING, "text", participation=0.7) for _ in range(2))
    expected = [undisturbed.play_round()[0] for _ in range(3)]
    for stop in (1, 2):
        stopped.play_round()
        state = whole_state(stopped)
        stopped = resume(make_federation(DYING, "text", participation=0.7), stopped, tmp_path)
        assert stopped.round == stop
        assert max(widths(everyone(stopped))) <= 4
        assert widths(everyone(stopped)) == [
            value.shape[1] for name, value in state.items() if name.endswith(".gate") and "/theta/" in name
        ]
    last = stopped.play_round()[0]
    assert min(widths(compacted(stopped))) < 4
    state, other = whole_state(undisturbed), whole_state(stopped)
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(last.test_correct, expected[-1].test_correct)
    assert last.active.keys() == expected[-1].active.keys()


def test_a_compacting_federation_counts_ranks_as_at_the_start(make_federation):
    """Active ranks fall; the ranks that a client began with, of which they are a share, do not."""
    federation = make_federation(DYING, "text")
    results = [federation.play_round()[0] for _ in range(2)]
    assert min(widths(everyone(federation))) < 4
    assert all(set(result.ranks.values()) == {4} for result in results)


def test_lanes_that_compact_equal_federations_of_their_own(make_federation):
    lanes = [(0, DYING), (1, replace(DYING, gate_threshold=0.4))]
    together = make_federation(lanes, "text", exact=True)
    apart = [make_federation(method, "text", seed, exact=True) for seed, method in lanes]
    for _ in range(2):
        results = together.play_round()
        for lane, federation in enumerate(apart):
            (alone,) = federation.play_round()
            assert torch.equal(results[lane].test_correct, alone.test_correct)
            assert all(torch.equal(results[lane].active[key], count) for key, count in alone.active.items())
            for leaf, value in federation.servers[0].shared["global"].items():
                torch.testing.assert_close(together.servers[lane].shared["global"][leaf], value, rtol=0, atol=1e-9)
