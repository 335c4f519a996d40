"""What a round leaves in the record: plain rows of numbers, one lane at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from feddlp.costs import trainable_parameters
from feddlp.evaluation import accuracy
from feddlp.federation.results import RoundResult
from feddlp.federation.rounds import Federation
from feddlp.model.adapters import LinearSite

Row = dict[str, Any]


def round_row(name: str, lane: int, federation: Federation, result: RoundResult) -> Row:
    """One line of rounds.jsonl. Accuracies in %; bytes are the round's total, divided by the number of clients."""
    roster, (seed, method) = federation.roster, federation.lanes[lane]
    sites, clients = federation.clients.sites, len(roster.ids)
    test = accuracy(result.test_correct, roster.test)
    validation = accuracy(result.validation_correct, roster.validation)
    return {
        "method": name,
        "seed": seed,
        "round": result.round,
        "test": test.as_dict() if test else None,
        "validation": validation.as_dict() if validation else None,
        "diagnostics": {key: round(value, 6) for key, value in result.diagnostics.items()},
        "train_loss": mean_losses(result, roster.train),
        "parameters": trainable_parameters(method, sites),
        "parameters_sent": sum(v.numel() for theta in federation.servers[lane].shared.values() for v in theta.values()),
        "clients": clients,
        "participants": int(result.participated.sum()),
        "reported": int(result.reported.sum()),
        "bytes_down": whole(result.bytes_down.sum().item() / clients),
        "bytes_up": whole(result.bytes_up.sum().item() / clients),
        "active_ranks": None if not result.active else sum_active(result.active).double().mean().item(),
        "gates": sum(result.ranks.values()),
        "export_bytes": export_bytes(federation, result),
        "seconds": round(result.seconds, 3),
        "lanes": result.lanes,
        **federation.clients.load(),
        "peak_mib": round(result.peak_mib, 1),
    }


def whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def mean_losses(result: RoundResult, samples: Tensor) -> dict[str, float | None]:
    """Mean over the participants, weighted by training samples, by adapter; None where a loss is no number."""
    weights = samples[result.participated].double()
    means: dict[str, float | None] = {}
    for name, loss in result.losses.items():
        mean = (loss[result.participated].double() @ weights / weights.sum()).item()
        means[name] = mean if math.isfinite(mean) else None
    return means


def sum_active(active: Mapping[str, Tensor]) -> Tensor:
    """Gates that are not zero, of each client over all sites. [K]"""
    return torch.stack(list(active.values())).sum(0)


def export_bytes(federation: Federation, result: RoundResult) -> float | None:
    """Bytes of A and B of the ranks that are left, gates folded in, mean over clients; None without gates."""
    if not result.active:
        return None
    sites, total = federation.clients.sites, 0.0
    for key, active in result.active.items():
        site = sites[site_only(key)]
        assert isinstance(site, LinearSite)
        total += 4 * (site.in_features + site.out_features) * active.double().mean().item()
    return total


def client_rows(name: str, lane: int, federation: Federation, result: RoundResult) -> list[Row]:
    """The rows of clients.csv for one round: of who took part, and before the first round of all that were scored."""
    roster = federation.roster
    sizes = {"train": roster.train, "validation": roster.validation, "test": roster.test}
    active = sum_active(result.active) if result.active else None
    rows = []
    for k in listed(result).tolist():
        tests, correct = int(sizes["test"][k]), int(result.test_correct[k])
        joined = bool(result.participated[k])
        losses = {key: loss[k].item() for key, loss in result.losses.items()} if joined else {}
        rows.append(
            {
                "method": name,
                "seed": federation.lanes[lane].seed,
                "round": result.round,
                "client": roster.ids[k],
                "name": roster.names.get(roster.ids[k], ""),
                **{f"{part}_samples": int(counts[k]) for part, counts in sizes.items()},
                "validation_correct": int(result.validation_correct[k]),
                "test_correct": correct,
                "test_accuracy": round(100 * correct / tests, 6) if tests else "",
                "train_loss": ";".join(f"{key}={loss:.6g}" for key, loss in losses.items() if math.isfinite(loss)),
                "active_ranks": "" if active is None else int(active[k]),
                "participated": int(joined),
                "reported": int(result.reported[k]),
                "bytes_down": int(result.bytes_down[k]),
                "bytes_up": int(result.bytes_up[k]),
            }
        )
    return rows


def listed(result: RoundResult) -> Tensor:
    """The places of the clients that a round's records tell of."""
    told = result.participated if result.round else result.test_correct >= 0
    return told.nonzero()[:, 0]


def rank_row(name: str, lane: int, federation: Federation, result: RoundResult) -> Row | None:
    """One line of ranks.jsonl: active ranks of who took part, at every site; None for a method without gates."""
    if not result.active:
        return None
    told = listed(result)
    return {
        "method": name,
        "seed": federation.lanes[lane].seed,
        "round": result.round,
        "clients": [federation.roster.ids[k] for k in told.tolist()],
        "active": {site_only(key): counts[told].tolist() for key, counts in result.active.items()},
        "ranks": {site_only(key): count for key, count in result.ranks.items()},
    }


def site_only(key: str) -> str:
    """The site in "adapter/site"; no method has gates in two adapters."""
    return key.partition("/")[2]
