"""What a scene leaves, by name, whatever form the records have: the one place that knows how they are read.

A digest is (elements, norm, projection) of some tensors together: each is projected onto a wave that its name decides,
so that permuted values and exchanged or renamed tensors show. Digests are compared with a tolerance, for processors
differ in the last bits.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import feddlp
from feddlp.federation.clients import ClientStore, gather
from feddlp.records import RunFolder

Digest = tuple[int, float, float]
BESIDE = {"seconds", "peak_mib", "wave", "activation_mib", "checksum", "format"}  # no result


def digest(tensors: Mapping[str, Tensor]) -> Digest:
    """Of tensors by name."""
    count, square, projection = 0, 0.0, 0.0
    for name, value in tensors.items():
        flat = value.detach().double().flatten()
        wave = torch.sin(torch.arange(1, flat.numel() + 1, dtype=torch.float64) + crc32(name.encode()) % 1000)
        count, square = count + flat.numel(), square + float(flat @ flat)
        projection += float(flat @ wave)
    return count, math.sqrt(square), projection


def grouped(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Digest]:
    """A digest for the tensors that have the first parts of their names in common."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        groups.setdefault("/".join(name.split("/")[:depth]), {})[name] = value
    return {group: digest(members) for group, members in groups.items()}


def close(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Equal but for rounding."""
    size = max(abs(expected[1]), 1e-6)
    return found[0] == expected[0] and all(
        math.isclose(a, b, rel_tol=0, abs_tol=1e-7 * size) for a, b in zip(found[1:], expected[1:], strict=True)
    )


def methods_of(run: Path) -> list[str]:
    state = RunFolder(run).state()
    return sorted(name for name, history in state.methods.items() if history.last.round) if state else []


def digests(run: Path) -> dict[str, Digest]:
    """Every tensor of a run's checkpoints: of the server ("server/shared/adapter/leaf"), and of the clients side by
    side ("adapter/kind/leaf")."""
    found: dict[str, Digest] = {}
    for method in methods_of(run):
        server, clients = tensors(RunFolder(run), method)
        found |= {f"{method}: {name}": value for name, value in (grouped(server, 3) | grouped(clients, 2)).items()}
    return found


def tensors(folder: RunFolder, method: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    found, state = folder.load_checkpoint(method), folder.checkpoint_state(method)
    assert found
    assert state
    store = ClientStore(folder.checkpoint(method))
    store.load(state.clients)
    rows = sorted(store.where)
    clients = gather(store.parts({row: place for place, row in enumerate(rows)})) if rows else {}
    server = {name: value for name, value in found[1].items() if name.startswith("server/")}
    return server, clients | {"clients": torch.tensor(rows)}


def numbers(row: Any, name: str = "") -> dict[str, float]:
    """The numbers of a record's row, by path."""
    if isinstance(row, bool | int | float):
        return {name: float(row)}
    if isinstance(row, dict | list):
        items = row.items() if isinstance(row, dict) else enumerate(row)
        return {k: v for key, one in items if key not in BESIDE for k, v in numbers(one, f"{name}/{key}").items()}
    return {}


def scores(run: Path) -> dict[str, Digest]:
    """All numbers of the records, a digest for each column."""
    found: dict[str, list[float]] = {}
    for file in ("rounds.jsonl", "ranks.jsonl", "newcomers.jsonl"):
        lines = (run / file).read_text().splitlines() if (run / file).exists() else []
        for row in map(json.loads, lines):
            for key, value in numbers(row).items():
                found.setdefault(f"{file} {row['method']}{key}", []).append(value)
    with (run / "clients.csv").open() as table:
        for row in csv.DictReader(table):
            for key, text in row.items():
                if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text):
                    found.setdefault(f"clients.csv {row['method']}/{key}", []).append(float(text))
    return grouped({name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}, 2)


def predicted(method: str, predictor: feddlp.Predictor, pictures: Sequence[Image.Image]) -> dict[str, Digest]:
    """Probabilities of all classes, in the order of the classes' names."""
    rows = [sorted(one.classes) for one in predictor.predict(pictures, top=len(predictor.class_names))]
    values = torch.tensor([[probability for _, probability in row] for row in rows], dtype=torch.float64)
    return {f"{method}: predicted": digest({"predicted": values})}


def exported(method: str, run: feddlp.Run, client: int, to: Path) -> dict[str, Digest]:
    """The tensors of an exported client; merged where there is no adapter to export."""
    to.parent.mkdir(exist_ok=True)
    try:
        run.export(client, to, method)
    except feddlp.api.UserError:
        try:
            run.export(client, to, method, merge=True)
        except feddlp.api.UserError:  # predicts in several passes
            return {}
    return {f"{method}: exported {file.name}": digest(load_file(file)) for file in sorted(to.glob("*.safetensors"))}
