"""Clients that join at the end: they get what the server has, learn from their own samples, and disturb nobody."""

from __future__ import annotations

import json

import pytest
import torch

from feddlp.evaluation import accuracy
from feddlp.federation.host import FederatedData
from feddlp.federation.newcomers import join
from feddlp.methods import registry
from feddlp.methods.feddat import FedDAT
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.flora import FLoRA
from feddlp.methods.local import Local
from feddlp.training.cohort import Cohort, Slot
from holdings import everyone, whole_state

KEYS = {"clients", "zero_shot", "received", "tuned"}
LEARNED = {"lr": 0.02}


@pytest.fixture
def newcomers(client_data):
    """Two clients that no federation has seen, with many test samples."""
    parts = (((9, 5), 300), ((1, 1), 320), ((40, 25), 325))
    return FederatedData((3, 4), *(client_data("text", sizes, offset, exact=True) for sizes, offset in parts))


@pytest.fixture
def finished(make_federation):
    def play(method, rounds=1, **training):
        federation = make_federation(method, "text", exact=True, **training)
        for _ in range(rounds):
            federation.play_round()
        return federation

    return play


def cohort_of(federation, data, lane=0):
    lane = federation.lanes[lane]
    slots = [Slot(client, lane.seed, lane.method) for client in data.ids]
    return Cohort(slots, federation.clients.backbone, federation.clients.prompts)


def joined(federation, newcomers, epochs):
    return join(federation.clients, federation.order(), newcomers, epochs)


def scored(correct, data):
    return accuracy(correct, data.test.sizes()).as_dict()


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_method_welcomes_newcomers_with_the_agreed_keys(name, finished, newcomers):
    method = registry()[name]()
    (row,) = joined(finished(method, 1), newcomers, 2)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row.keys() == KEYS
    assert row["clients"] == 2
    assert row["zero_shot"].keys() == {"pooled", "client_mean", "client_std", "client_lowest", "client_p10"}
    assert (row["received"] is None) == (not method.shared)
    assert len(row["tuned"]) == (2 if method.adapters() else 0)


def test_zero_shot_is_the_frozen_model_and_received_the_servers_adapter(finished, newcomers):
    federation = finished(FLoRA(**LEARNED), 3)
    (row,) = joined(federation, newcomers, 1)
    visitor = cohort_of(federation, newcomers)
    frozen = visitor.correct(newcomers.test, 64, lambda f, batch: {"": f.frozen(batch, {})})[""]
    assert row["zero_shot"] == scored(frozen, newcomers)
    visitor.download(federation.servers[0].shared)
    assert row["received"] == scored(visitor.correct(newcomers.test, 64)[""], newcomers)
    assert row["received"] != row["zero_shot"]


@pytest.mark.parametrize(
    "method", [FLoRA(**LEARNED), FedDAT(**LEARNED), FedDLP(**LEARNED)], ids=lambda m: type(m).__name__
)
def test_tuned_is_the_methods_own_prediction_after_each_epoch(method, finished, newcomers):
    federation = finished(method)
    (row,) = joined(federation, newcomers, 2)
    cohort = cohort_of(federation, newcomers)
    cohort.download(federation.servers[0].shared)
    cohort.start_round(1.0)
    for epoch in range(2):
        cohort.fit(newcomers.train.shuffled(4, [(3, 0), (4, 0)], 1, epoch))
        assert row["tuned"][epoch] == scored(cohort.correct(newcomers.test, 64)[""], newcomers)
    assert row["tuned"][0] != row["zero_shot"]


def test_a_newcomer_does_the_same_alone_and_in_company(finished, newcomers):
    federation = finished(FedDLP(**LEARNED))
    (both,) = joined(federation, newcomers, 2)
    alone = [joined(federation, newcomers.select([k]), 2)[0] for k in (0, 1)]
    sizes = newcomers.test.sizes().tolist()
    for stage in range(2):
        correct = sum(row["tuned"][stage]["pooled"] * n for row, n in zip(alone, sizes, strict=True))
        assert both["tuned"][stage]["pooled"] == pytest.approx(correct / sum(sizes), abs=1e-5)


def test_joining_leaves_the_federation_as_it_was_to_the_bit(finished, newcomers):
    federation = finished(FedDLP(**LEARNED))
    before = whole_state(federation)
    first, second = (joined(federation, newcomers, 2) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in whole_state(federation).items())


def test_lanes_welcome_as_federations_of_their_own(finished, newcomers):
    lanes = [(0, FLoRA(lr=0.02)), (1, FLoRA(lr=0.003))]
    together = joined(finished(lanes), newcomers, 2)
    apart = []
    for seed, method in lanes:
        (row,) = joined(finished(method, seed=seed), newcomers, 2)
        apart.append(row)
    assert together == apart
    assert len({json.dumps(row) for row in apart}) == 2


def test_newcomers_of_a_federation_that_took_ranks_away_have_all_of_theirs(finished, newcomers):
    federation = finished(FedDLP(compact=True, gate_threshold=0.4, lr=0.02), 3)
    (row,) = joined(federation, newcomers, 1)
    assert row["tuned"][0] is not None


def test_where_nothing_is_shared_the_others_do_not_matter(finished, newcomers):
    """Local: whatever became of the clients of the federation, newcomers do the same."""
    federation = finished(Local(**LEARNED))
    (row,) = joined(federation, newcomers, 1)
    assert row["received"] is None
    assert row["tuned"][0] != row["zero_shot"]
    moved = {name: value + 1 for name, value in everyone(federation).state_dict().items()}
    federation.clients.stores[0].put("moved", range(3), moved)
    assert joined(federation, newcomers, 1) == [row]
