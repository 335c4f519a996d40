"""What is written down of a round: the agreed keys, sums that agree, and nothing that JSON does not know."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from feddlp.federation.rows import client_rows, mean_losses, rank_row, round_row
from feddlp.methods import registry
from feddlp.methods.feddlp import FedDLP
from feddlp.methods.flora import FLoRA
from feddlp.record_types import CLIENT_COLUMNS

ROUND = {
    *("method", "seed", "round", "test", "validation", "diagnostics", "train_loss", "parameters", "parameters_sent"),
    *("clients", "participants", "reported", "bytes_down", "bytes_up", "active_ranks", "gates", "seconds", "peak_mib"),
    *("lanes", "export_bytes", "wave", "activation_mib"),
}
ACCURACY = {"pooled", "client_mean", "client_std", "client_lowest", "client_p10"}
DIAGNOSTICS = {"predicted", "received", "local", "global", "combined", "ensemble"}
PARTIAL = {"participation": 0.7, "report_rate": 0.5}
METHODS = {name: method() for name, method in registry().items()} | {
    "compact": FedDLP(compact=True, gate_threshold=0.3, lr=0.02),
    "private B": FLoRA(factors_sent="A"),
    "fixed A": FedDLP(factors_trained="B"),
}


def rows_of(name, federation, rounds=2):
    """Everything that a run writes down: (round's row, clients' rows, ranks' row)."""
    for _ in range(rounds):
        for lane, result in enumerate(federation.play_round()):
            clients = client_rows(name, lane, federation, result)
            yield round_row(name, lane, federation, result), clients, rank_row(name, lane, federation, result)


def strict(row):
    """Through JSON as it is defined, which has neither NaN nor infinity."""
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, PARTIAL) for name in METHODS]
    + [(name, training) for name in ("feddlp", "local") for training in ({}, {"diagnostics": False})],
    ids=str,
)
def test_rows_have_the_agreed_keys_and_agree_with_each_other(name, training, make_federation):
    federation = make_federation(METHODS[name], "text", **training)
    adapters = federation.lanes[0].method.adapters().keys() - set(federation.lanes[0].method.frozen)
    (began,) = federation.score_start() or [None]
    known = {row["client"]: row for row in (client_rows(name, 0, federation, began) if began else [])}
    assert sorted(known) == ([0, 1, 2] if federation.training.participation < 1 else [])
    assert not any(row["participated"] or row["round"] for row in known.values())
    for number, (row, clients, ranks) in enumerate(rows_of(name, federation), start=1):
        strict(row)
        assert row.keys() == ROUND
        assert row["test"].keys() == row["validation"].keys() == ACCURACY
        assert row["diagnostics"].keys() <= DIAGNOSTICS
        assert bool(row["diagnostics"]) == (training.get("diagnostics", True) and name not in ALONE)
        assert row["train_loss"].keys() == row["parameters"].keys() == adapters
        assert (row["method"], row["seed"], row["round"], row["clients"]) == (name, 0, number, 3)
        assert 1 <= row["participants"] <= 3
        assert 0 <= row["reported"] <= row["participants"]
        assert row["parameters_sent"] <= sum(row["parameters"].values())
        known |= {client["client"]: client for client in clients}
        check_clients(row, clients, [known[client] for client in range(3)], federation)
        check_ranks(row, clients, known, ranks, federation)


ALONE = {"zero_shot", "local", "sora_local"}


def check_clients(row, joined, clients, federation):
    assert len(joined) == row["participants"]
    assert all(client["participated"] for client in joined)
    check_sums(row, joined, federation)
    for part in ("test", "validation"):
        correct, samples = (sum(client[f"{part}_{what}"] for client in clients) for what in ("correct", "samples"))
        assert row[part]["pooled"] == pytest.approx(100 * correct / samples, abs=1e-5)
    shares = [client["test_accuracy"] for client in clients]
    assert row["test"]["client_lowest"] == pytest.approx(min(shares), abs=1e-5)
    assert row["test"]["client_mean"] == pytest.approx(sum(shares) / 3, abs=1e-5)


def check_sums(row, clients, federation):
    assert all(tuple(client) == CLIENT_COLUMNS for client in clients)
    assert sum(client["reported"] for client in clients) == row["reported"]
    for direction in ("bytes_down", "bytes_up"):
        assert sum(client[direction] for client in clients) / 3 == pytest.approx(row[direction])
    for name, loss in row["train_loss"].items():
        parts = [dict(part.split("=") for part in client["train_loss"].split(";")) for client in clients]
        weights = [client["train_samples"] for client in clients]
        mean = sum(w * float(part[name]) for w, part in zip(weights, parts, strict=True)) / sum(weights)
        assert loss == pytest.approx(mean, rel=1e-4)
    for client in clients:
        text = ",".join(str(value) for value in client.values()).lower()
        assert "nan" not in text
        assert "inf" not in text
        assert all(client[f"{part}_samples"] == sizes[client["client"]] for part, sizes in held(federation).items())


def held(federation):
    return {part: getattr(federation.clients.data, part).sizes().tolist() for part in ("train", "validation", "test")}


def check_ranks(row, clients, known, ranks, federation):
    if not row["gates"]:
        assert ranks is None
        assert row["active_ranks"] is None
        assert {client["active_ranks"] for client in clients} == {""}
        return
    strict(ranks)
    assert ranks.keys() == {"method", "seed", "round", "clients", "active", "ranks"}
    assert ranks["active"].keys() == ranks["ranks"].keys() <= federation.clients.backbone.sites.keys()
    assert sum(ranks["ranks"].values()) == row["gates"]
    totals = [sum(counts[k] for counts in ranks["active"].values()) for k in range(len(clients))]
    assert [client["active_ranks"] for client in clients] == totals
    assert [client["client"] for client in clients] == ranks["clients"]
    assert row["active_ranks"] == pytest.approx(sum(client["active_ranks"] for client in known.values()) / 3)
    for site, counts in ranks["active"].items():
        assert len(counts) == row["participants"]
        assert max(counts) <= ranks["ranks"][site]


def test_bytes_are_the_rounds_total_per_client_and_may_be_fractions(make_federation):
    federation = make_federation(FLoRA(), "text", participation=0.4)
    whole = 4 * sum(leaf.numel() for leaf in federation.servers[0].shared["adapter"].values())
    (row, _, _) = next(rows_of("flora", federation, 1))
    assert row["bytes_down"] == row["bytes_up"] == pytest.approx(whole / 3)
    (row, _, _) = next(rows_of("flora", make_federation(FLoRA(), "text"), 1))
    assert row["bytes_down"] == row["bytes_up"] == whole == 4 * row["parameters_sent"]
    assert isinstance(row["bytes_down"], int)


def test_every_lane_has_rows_of_its_own(make_federation):
    lanes = [(3, FedDLP(gate_threshold=0.0)), (3, FedDLP(gate_threshold=9.0)), (8, FedDLP())]
    rows = list(rows_of("feddlp", make_federation(lanes, "text"), 1))
    assert [row["seed"] for row, _, _ in rows] == [3, 3, 8]
    assert [ranks["seed"] for _, _, ranks in rows] == [3, 3, 8]
    assert rows[0][0]["active_ranks"] == rows[0][0]["gates"]
    assert rows[1][0]["active_ranks"] == 0


@pytest.mark.parametrize("sick", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_neither_written_nor_taken_for_zero(sick, make_federation):
    """A run that diverged must not look like one that learned everything."""
    federation = make_federation(FLoRA(), "text")
    (result,) = federation.play_round()
    broken = replace(result, losses={"adapter": torch.tensor([sick, 1.0, 1.0])})
    row = round_row("flora", 0, federation, broken)
    strict(row)
    assert row["train_loss"] == {"adapter": None}
    clients = client_rows("flora", 0, federation, broken)
    assert [client["train_loss"] for client in clients] == ["", "adapter=1", "adapter=1"]


def test_who_sat_out_does_not_count_in_the_mean_loss(make_federation):
    federation = make_federation(FLoRA(), "text")
    (result,) = federation.play_round()
    joined = torch.tensor([True, False, True])
    losses = {"adapter": torch.tensor([2.0, math.nan, 1.0])}
    found = mean_losses(replace(result, participated=joined, losses=losses), torch.tensor([3, 100, 1]))
    assert found == {"adapter": pytest.approx(7 / 4)}


def test_clients_without_samples_of_a_kind_leave_the_cell_empty(make_federation):
    federation = make_federation(FLoRA(), "text")
    (result,) = federation.play_round()
    none = torch.zeros(3, dtype=torch.int64)
    federation.roster = replace(federation.roster, test=none, validation=none)
    row = round_row("flora", 0, federation, replace(result, test_correct=torch.zeros(3, dtype=torch.int64)))
    assert row["test"] is None
    assert row["validation"] is None
    clients = client_rows("flora", 0, federation, replace(result, test_correct=torch.zeros(3, dtype=torch.int64)))
    assert {client["test_accuracy"] for client in clients} == {""}
