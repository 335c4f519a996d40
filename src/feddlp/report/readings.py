"""What every table, plot and page reads a record by: which round an accuracy is of, and the mean over seeds.

Three accuracies stand side by side and are never mixed up: after the final round, in the round chosen on validation
data, and in the best test round. Over seeds the spread is the sample standard deviation (ddof 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from feddlp.report.latest import Row

ABSENT = "–"


@dataclass(frozen=True)
class Measure:
    """A mean over seeds; std is the sample's, and None for fewer than two."""

    mean: float
    std: float | None = None
    count: int = 1  # seeds that have a value
    runs: int = 1  # all


class Picked(NamedTuple):
    """The rounds that the three accuracies are of; the earliest wins a tie."""

    final: Row
    validation_chosen: Row | None  # the best validation accuracy; None without validation samples
    best_test: Row | None  # optimistic: picked on test data


def measure(values: Iterable[float | None]) -> Measure | None:
    """Mean and sample standard deviation of what is known, the same in any order; None without a value."""
    every = list(values)
    known = [float(value) for value in every if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    squares = math.fsum((value - mean) ** 2 for value in known)
    std = math.sqrt(squares / (len(known) - 1)) if len(known) > 1 else None
    return Measure(mean, std, len(known), len(every))


def shown(value: Measure | None, digits: int = 2) -> str:
    """ "96.32 ± 0.13" """
    if value is None:
        return ABSENT
    spread = "" if value.std is None else f" ± {value.std:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{spread}"


def accuracy(row: Row | None, part: str, key: str = "pooled") -> float | None:
    """An accuracy of a round in %; None where no client had such samples, or it was not recorded."""
    value = ((row or {}).get(part) or {}).get(key)
    return None if value is None else float(value)


def picked(rows: Sequence[Row]) -> Picked:
    """The rounds of one method and seed, in order, to the three that count."""
    return Picked(rows[-1], best_row(rows, "validation"), best_row(rows, "test"))


def best_row(rows: Sequence[Row], part: str) -> Row | None:
    scored = [(value, row) for row in rows if (value := accuracy(row, part)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None
