"""Synthetic run folders with every record of schema 2, from a formula, so that each number can be computed by hand."""

from __future__ import annotations

import csv
import json
import random
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from feddlp import states
from feddlp.record_types import Environment
from feddlp.records import RunFolder
from tampering import commit

LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
SITES = [*(f"vision_model.encoder.layers.{n}.{leaf}" for n in range(2) for leaf in LEAVES), "visual_projection"]
RANK = 4
COLUMNS = (
    "method", "seed", "round", "client", "name", "train_samples", "validation_samples", "test_samples",
    "validation_correct", "test_correct", "test_accuracy", "train_loss", "active_ranks", "participated", "reported",
    "bytes_down", "bytes_up",
)  # fmt: skip
ADAPTERS: dict[str, dict[str, int]] = {
    "zero_shot": {}, "local": {"adapter": 18880}, "flora": {"adapter": 18880},
    "feddlp": {"local": 37860, "global": 18880},
}  # fmt: skip
SENT = {"zero_shot": 0, "local": 0}
LEVEL = {"zero_shot": 70.0, "local": 93.0, "flora": 97.0, "feddlp": 95.0}


def accuracies(pooled: float) -> dict[str, float]:
    """Five numbers that can be told apart."""
    return {
        "pooled": pooled, "client_mean": pooled - 1, "client_std": 3.5,
        "client_lowest": pooled - 12, "client_p10": pooled - 7,
    }  # fmt: skip


def pooled_test(method: str, seed: int, round: int) -> float:
    """Rises towards the method's level; seed s lies s tenths above seed 0; the third round is the best of four."""
    return LEVEL.get(method, 90.0) - 20 / (round + 1) + seed / 10 + (4 if round == 3 else 0)


def pooled_validation(method: str, seed: int, round: int) -> float:
    """Best in the second round."""
    return 90.0 if round == 2 else 80.0 - round


def round_row(method: str, seed: int, round: int, clients: int = 4) -> dict[str, Any]:
    parameters = ADAPTERS.get(method, {"adapter": 1000})
    sent, gated = SENT.get(method, 18880), method == "feddlp"
    test = pooled_test(method, seed, round)
    return {
        "method": method, "seed": seed, "round": round, "test": accuracies(test),
        "validation": accuracies(pooled_validation(method, seed, round)),
        "diagnostics": {"received": test - 2, "local": test, "global": test - 1} if gated else {},
        "train_loss": {name: 1 / round + place for place, name in enumerate(parameters)},
        "parameters": parameters, "parameters_sent": sent, "clients": clients, "participants": clients,
        "reported": clients, "bytes_down": 2**19 if sent else 0, "bytes_up": 2**20 if sent else 0,
        "active_ranks": 52.0 - 52 * round / 200 if gated else None, "gates": 52 if gated else 0,
        "seconds": round + seed / 2, "peak_mib": 800.0 + 10 * round,
    }  # fmt: skip


def client_row(method: str, seed: int, round: int, client: int) -> dict[str, Any]:
    correct = min(20, 10 + client % 10 + round % 2)
    return {
        "method": method, "seed": seed, "round": round, "client": client, "train_samples": 30 + client,
        "validation_samples": 3, "test_samples": 20, "validation_correct": 2, "test_correct": correct,
        "test_accuracy": 100 * correct / 20, "train_loss": "adapter=0.3", "active_ranks": "", "participated": 1,
        "reported": 1, "bytes_down": 2**19, "bytes_up": 2**20,
    }  # fmt: skip


def partition(clients: int, class_names: Sequence[str], newcomers: Sequence[int] = ()) -> dict[str, Any]:
    """Skewed: most clients hold few classes."""
    draw = random.Random(1)

    def counts(scale: float) -> list[int]:
        return [min(200, int(scale * draw.paretovariate(0.9))) if draw.random() < 0.3 else 0 for _ in class_names]

    parts = [{"train": counts(4), "validation": counts(0.6), "test": counts(1.4)} for _ in range(clients)]
    return {"class_names": list(class_names), "clients": parts, "newcomers": list(newcomers)}


def ranks_row(method: str, seed: int, round: int, clients: int, sites: Sequence[str]) -> dict[str, Any]:
    active = {s: [max(0, RANK - (round + i + k) % 6) for k in range(clients)] for i, s in enumerate(sites)}
    about = {"method": method, "seed": seed, "round": round, "clients": list(range(clients))}
    return {**about, "active": active, "ranks": dict.fromkeys(sites, RANK)}


def newcomers_row(method: str, seed: int) -> dict[str, Any]:
    tuned = [accuracies(80.0 + seed), accuracies(85.0 + seed)]
    return {
        "method": method, "seed": seed, "clients": 2,
        "zero_shot": accuracies(60.0 + seed), "received": accuracies(70.0 + seed), "tuned": tuned,
    }  # fmt: skip


def config(name: str, seed: int, methods: Sequence[str], rounds: int, clients: int, **overrides: Any) -> dict[str, Any]:
    """Dotted overrides such as {"data.dirichlet_beta": 0.01}."""
    table: dict[str, Any] = {
        "name": name, "runs_dir": "runs", "methods": ", ".join(methods), "seed": seed,
        "data": {"dataset": "digits", "partition": "dirichlet", "clients": clients, "dirichlet_beta": 0.1},
        "model": {"checkpoint": "tiny-clip", "adapt": "image", "device": "auto"},
        "training": {"rounds": rounds},
        "method": {method: {"lr": 0.001} for method in methods},
    }  # fmt: skip
    for key, value in overrides.items():
        *path, leaf = key.split(".")
        target = table
        for part in path:
            target = target.setdefault(part, {})
        target[leaf] = value
    return table


def environment(seed: int) -> dict[str, Any]:
    return {
        "python": "3.11.7", "packages": {"feddlp": "0.1.0", "torch": "2.13.0"}, "platform": "Linux", "cpu_count": 2,
        "threads": 2, "cuda": None, "configuration": f"c0ffee{seed}", "data": "da7a", "backbone": "bac4",
    }  # fmt: skip


def make_run(
    parent: Path, name: str = "demo", *, seed: int = 0, methods: Sequence[str] = tuple(ADAPTERS), rounds: int = 4,
    finished: Mapping[str, int] | None = None, clients: int = 4, class_names: Sequence[str] = ("cat", "dog", "eel"),
    sites: Sequence[str] = SITES, newcomers: Sequence[int] = (), overrides: Mapping[str, Any] | None = None,
) -> RunFolder:  # fmt: skip
    """A folder as a run would have left it; `finished` says after how many rounds a method stopped."""
    folder = parent / name
    folder.mkdir(parents=True)
    table = config(name, seed, methods, rounds, clients, **(overrides or {}))
    (folder / "config.toml").write_text(tomli_w.dumps(table))
    run = RunFolder(folder)
    states.write(folder / "environment.json", Environment(**environment(seed)))
    run.write_partition(partition(clients, class_names, newcomers))
    played = [
        (method, seed, number)
        for method in methods
        for number in range(1, (finished or {}).get(method, 1 if method == "zero_shot" else rounds) + 1)
    ]
    lines(folder / "rounds.jsonl", [round_row(*place, clients) for place in played])
    lines(folder / "ranks.jsonl", [ranks_row(*place, clients, sites) for place in played if place[0] == "feddlp"])
    for method in methods:
        if newcomers and method != "zero_shot":
            run.record_newcomers(newcomers_row(method, seed))
    with (folder / "clients.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(client_row(*place, k) for place in played for k in range(clients))
    return commit(run)


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def edit_rows(folder: RunFolder, change: Any) -> None:
    """Rewrite rounds.jsonl: change(row) alters a row in place; False drops it."""
    rows = folder.read_rounds()
    lines(folder.rounds, [row for row in rows if change(row) is not False])
    commit(folder)


def set_option(folder: RunFolder, key: str, value: Any) -> None:
    table = tomllib.loads(folder.config.read_text(encoding="utf-8"))
    *path, leaf = key.split(".")
    target = table
    for part in path:
        target = target.setdefault(part, {})
    target[leaf] = value
    folder.config.write_text(tomli_w.dumps(table), encoding="utf-8")
