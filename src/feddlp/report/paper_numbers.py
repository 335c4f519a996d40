"""From rounds to the numbers of the paper's tables: ours by reading and over seeds, and the paper's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

from feddlp.files import MIB
from feddlp.report.latest import Row
from feddlp.report.paper_forms import Value, value_of
from feddlp.report.readings import Picked, accuracy, picked


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


def paper_value(entry: float | Mapping[str, float] | None, name: str = "mean") -> Value | None:
    """An entry of a paper's row: a number, or several by name."""
    if entry is None:
        return None
    if isinstance(entry, Mapping):
        return Value(entry[name], entry.get("std")) if name in entry else None
    return Value(entry)


def runs_of(results: Results, key: Key) -> list[Run]:
    """The runs that have at least one round."""
    return [rows for rows in results.get(key, ()) if rows]


def test_pooled(row: Row) -> float:
    return pooled(row, "test")


def validation_pooled(row: Row) -> float:
    return pooled(row, "validation")


def pooled(row: Row, part: str) -> float:
    """Pooled accuracy of a round; lower than any target where there are no samples."""
    found = accuracy(row, part)
    return -math.inf if found is None else found


def read(runs: Sequence[Run], measure: Callable[[Row], float]) -> dict[str, Value]:
    """A measure over seeds by reading; a reading that no run has is left out."""
    rounds = [picked(rows)._asdict() for rows in runs]
    readings = {name: value_of([measure(row) if (row := one[name]) else None for one in rounds]) for name in PICKS}
    return {name: value for name, value in readings.items() if value and value.seeds}


def mean_of(parts: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """The mean over data sets by reading, where all have it: of the means, and of the deviations as in the paper."""
    common = [name for name in PICKS if all(name in part for part in parts)]
    return {name: mean_value([part[name] for part in parts]) for name in common}


def mean_value(values: Sequence[Value]) -> Value:
    means = [value.mean for value in values if value.mean is not None]
    spreads = [value.std for value in values if value.std is not None]
    spread = fmean(spreads) if len(spreads) == len(values) else None
    return Value(fmean(means), spread, min(value.seeds for value in values), min(value.runs for value in values))


def to_target(rows: Run, target: float, value: Callable[[Row], float] = test_pooled) -> tuple[float, int] | None:
    """What one client sends and receives until an accuracy is first reached (Tables V and VI), and in which round.

    Args:
        target: in %.
        value: of a round, in %; the paper judges on pooled test accuracy.

    Returns:
        MiB up and down, the reaching round included, and that round; None where the target is not reached.
    """
    sent = 0.0
    for row in rows:
        sent += row["bytes_up"] + row["bytes_down"]
        if value(row) >= target:
            return sent / MIB, int(row["round"])
    return None


def reached(runs: Sequence[Run], target: float) -> dict[str, tuple[Value, Value]]:
    """MiB and rounds until the target over seeds, judged on validation and on test data. No samples: left out."""
    found = {}
    for name, part, value in (("validation", "validation", validation_pooled), ("test", "test", test_pooled)):
        judged = [to_target(rows, target, value) for rows in runs if any(row[part] for row in rows)]
        mib, rounds = (value_of([one and one[index] for one in judged]) for index in (0, 1))
        if mib and rounds:
            found[name] = mib, rounds
    return found


def common_target(runs: Sequence[Run]) -> float | None:
    """The highest whole percent that every run reaches on test data; None without a run."""
    best = [max(map(test_pooled, rows)) for rows in runs]
    return float(math.floor(min(best))) if best else None


def ratio(cost: Value, base: Value) -> Value | None:
    """A cost as a multiple of another, of the means; None unless both are of all runs, or the other is free."""
    whole = cost.seeds == cost.runs and base.seeds == base.runs
    if not whole or cost.mean is None or not base.mean:
        return None
    return Value(cost.mean / base.mean, None, min(cost.seeds, base.seeds), max(cost.runs, base.runs))
