"""From rounds to the numbers of the paper's tables: ours by reading and over seeds, and the paper's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

from feddlp.files import MIB
from feddlp.report.latest import Row
from feddlp.report.readings import Measure, Picked, accuracy, measure, picked


class Key(NamedTuple):
    """What was run; the method goes by the name that it has in the tables."""

    method: str
    tower: str
    dataset: str
    beta: float


Run = Sequence[Row]  # one method, one seed, its rounds in order
Results = Mapping[Key, Sequence[Run]]  # one run a seed

PICKS = Picked._fields
PAPER_DATASETS = ("pets", "flowers", "aircraft", "dtd")
PAPER_METHODS = {
    "local": "Local", "fedclip": "FedCLIP", "flora": "FLoRA", "feddat": "FedDAT", "feddlp": "FEDDLP",
    "combined_published": "Combined",
}  # fmt: skip


@cache
def paper() -> dict[str, Any]:
    """The paper's tables as printed, and its errata by table."""
    return dict(json.loads(files("feddlp").joinpath("assets/paper.json").read_text("utf-8")))


def paper_row(table: str, **address: object) -> dict[str, Any]:
    """The row of a paper's table with these entries; empty where there is none."""
    rows = paper().get(table, {}).get("rows", [])
    return next((row for row in rows if all(row[name] == value for name, value in address.items())), {})


def paper_value(entry: float | Mapping[str, float] | None, name: str = "mean") -> Measure | None:
    """An entry of a paper's row: a number, or several by name."""
    if isinstance(entry, Mapping):
        return Measure(entry[name], entry.get("std")) if name in entry else None
    return None if entry is None else Measure(entry)


def read(runs: Sequence[Run], key: str) -> dict[str, Measure]:
    """A test accuracy over seeds by reading; a reading that no run has is left out."""
    rounds = [picked(rows)._asdict() for rows in runs]
    readings = {name: measure(accuracy(one[name], "test", key) for one in rounds) for name in PICKS}
    return {name: value for name, value in readings.items() if value}


def mean_of(parts: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    """The mean over data sets by reading, where all have it: of the means, and of the deviations as in the paper."""
    found = {}
    for name in PICKS:
        values = [part[name] for part in parts if name in part]
        if len(values) == len(parts):
            spreads = [value.std for value in values if value.std is not None]
            spread = fmean(spreads) if len(spreads) == len(values) else None
            counts = min(value.count for value in values), min(value.runs for value in values)
            found[name] = Measure(fmean(value.mean for value in values), spread, *counts)
    return found


def to_target(rows: Run, target: float, part: str = "test") -> tuple[float, int] | None:
    """What one client sends and receives until an accuracy is first reached (Tables V and VI), and in which round.

    Args:
        target: in %, pooled.
        part: of the samples; the paper judges on test data.

    Returns:
        MiB up and down, the reaching round included, and that round; None where the target is not reached.
    """
    sent = 0.0
    for row in rows:
        sent += row["bytes_up"] + row["bytes_down"]
        if (found := accuracy(row, part)) is not None and found >= target:
            return sent / MIB, int(row["round"])
    return None


def reached(runs: Sequence[Run], target: float) -> dict[str, tuple[Measure, Measure]]:
    """MiB and rounds until the target over seeds, judged on validation and on test data. No samples: left out."""
    found = {}
    for part in ("validation", "test"):
        if judged := [to_target(rows, target, part) for rows in runs if any(row[part] for row in rows)]:
            never = Measure(math.inf, None, 0, len(judged))
            mib, rounds = (measure(one and one[index] for one in judged) or never for index in (0, 1))
            found[part] = mib, rounds
    return found


def common_target(runs: Sequence[Run]) -> float | None:
    """The highest whole percent that every run reaches on test data; None without a run."""
    best = [accuracy(picked(rows).best_test, "test") for rows in runs]
    known = [value for value in best if value is not None]
    return float(math.floor(min(known))) if known and len(known) == len(best) else None


def ratio(cost: Measure, base: Measure) -> Measure | None:
    """A cost as a multiple of another, of the means; None unless both are of all runs, or the other is free."""
    if cost.count < cost.runs or base.count < base.runs or not base.mean:
        return None
    return Measure(cost.mean / base.mean, None, min(cost.count, base.count), max(cost.runs, base.runs))
