"""Tables, as pure functions of a run's records.

Three accuracies stand side by side and are never mixed up: after the final round, in the round chosen on validation
data, and in the best test round. The last is what most papers print; it peeks at the test set and is marked so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

from feddlp.costs import MIB

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One method's line; accuracies in %, rounds counted from 1."""

    method: str
    rounds: int
    final: float
    chosen: float | None  # None without validation samples
    chosen_round: int | None
    best: float
    best_round: int
    client_mean: float  # the spread is that of the final round
    client_std: float
    client_lowest: float
    parameters: int  # trained by a client
    parameters_sent: int
    mib: float  # sent and received by one client over the whole run
    active_ranks: float | None  # mean over clients, of all gates
    gates: int
    seconds: float  # per round, mean


def pooled(row: Row, part: str) -> float:
    """Pooled accuracy of a round; lowest possible where there are no samples."""
    return float(row[part]["pooled"]) if row[part] else float("-inf")


def summarise_method(rows: Sequence[Row]) -> Summary:
    """One method's rounds, in order, to its line. The earliest round wins a tie."""
    final, best = rows[-1], max(rows, key=lambda row: pooled(row, "test"))
    chosen = max(rows, key=lambda row: pooled(row, "validation")) if final["validation"] else None
    return Summary(
        method=final["method"],
        rounds=final["round"],
        final=final["test"]["pooled"],
        chosen=chosen["test"]["pooled"] if chosen else None,
        chosen_round=chosen["round"] if chosen else None,
        best=best["test"]["pooled"],
        best_round=best["round"],
        client_mean=final["test"]["client_mean"],
        client_std=final["test"]["client_std"],
        client_lowest=final["test"]["client_lowest"],
        parameters=sum(final["parameters"].values()),
        parameters_sent=sum(final["parameters"][name] for name in final["shared"]),
        mib=sum(row["bytes_up"] + row["bytes_down"] for row in rows) / MIB,
        active_ranks=final["active_ranks"],
        gates=final["gates"],
        seconds=sum(row["seconds"] for row in rows) / len(rows),
    )


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """All methods of a run, in the order in which they were run."""
    return [summarise_method(list(group)) for _, group in groupby(rows, key=lambda row: row["method"])]


def cells(line: Summary) -> tuple[str, ...]:
    """One row of the table as text."""
    return (
        line.method,
        f"{line.final:.2f}",
        "-" if line.chosen is None else f"{line.chosen:.2f} (r{line.chosen_round})",
        f"{line.best:.2f} (r{line.best_round})",
        f"{line.client_mean:.2f} ± {line.client_std:.2f}",
        f"{line.client_lowest:.2f}",
        f"{line.parameters:,}",
        f"{line.parameters_sent:,}",
        f"{line.mib:.2f}",
        "-" if line.active_ranks is None else f"{line.active_ranks:.1f} / {line.gates}",
        f"{line.seconds:.2f}",
    )


HEADINGS = (
    ("method", "left"),
    ("final\nround", "right"),
    ("validation-\nchosen", "right"),
    ("best test\nround *", "right"),
    ("per client\nmean ± std", "right"),
    ("lowest\nclient", "right"),
    ("trained\nparams", "right"),
    ("sent\nparams", "right"),
    ("MiB per\nclient", "right"),
    ("active\nranks", "right"),
    ("s per\nround", "right"),
)
NOTE = (
    "Accuracy in %: pooled over all clients' test samples; per client and lowest: final round. "
    "* optimistic, it is picked on the test set. MiB: up and down, all rounds."
)


def comparison(lines: Sequence[Summary], title: str) -> Table:
    """The table that `feddlp run` and `feddlp show` print."""
    table = Table(title=title, title_justify="left", caption=NOTE, caption_justify="left", pad_edge=False)
    for heading, side in HEADINGS:
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for line in lines:
        table.add_row(*cells(line))
    return table
