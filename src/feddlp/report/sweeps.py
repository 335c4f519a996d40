"""A finished sweep as tables: mean and standard deviation over seeds, one table a setting."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from feddlp.errors import UserError
from feddlp.names import csv_text
from feddlp.records import RunFolder, read_json
from feddlp.report.readings import measure, shown
from feddlp.report.tables import Summary, summarise, text_table

ACCURACY = (
    "method",
    "final\nround",
    "validation-\nchosen",
    "best test\nround *",
    "std over\nclients",
    "lowest\nclient",
)
COSTS = ("method", "chosen on\nvalidation data", "trained\nparams", "MiB per\nclient", "active\nranks", "KiB\nleft")
ACCURACY_NOTE = (
    "Pooled test accuracy in %, mean ± sample standard deviation over seeds.\n"
    "Std over clients and lowest client: of the final round, mean over seeds.\n"
    "* optimistic: picked on test data."
)
COSTS_NOTE = (
    "! the best value lies at the edge of the grid. MiB up and down over all rounds.\n"
    "KiB left: A and B of the private adapter without its pruned ranks, float32."
)
CHOICE = {"setting", "method", "chosen", "runs"}
"""What a sweep says at least of each setting and method."""
NAMES = {"lr": "lr", "kd_weight": "kd", "gate_threshold": "xi"}


class Line(NamedTuple):
    """One method in one setting."""

    setting: str
    method: str
    chosen: Mapping[str, float]
    edges: Sequence[str]  # chosen values that are the smallest or largest of the grid
    runs: Sequence[Summary]  # one a seed


class Result(NamedTuple):
    """The record of a sweep: for each setting and method what was chosen and its runs."""

    finished: bool
    choices: list[dict[str, Any]]


def is_sweep(path: Path) -> bool:
    return (path / "sweep.json").is_file()


def read_result(path: Path) -> Result:
    """What a sweep wrote down.

    Raises:
        UserError: not the folder of a sweep, or a damaged one.
    """
    file = path / "sweep.json"
    if (record := read_json(file)) is None:
        raise UserError(f"{path} is not the folder of a sweep (it has no sweep.json); run it first: feddlp sweep FILE")
    try:
        choices = [dict(choice) for choice in record["choices"]]
        complete = all(choice.keys() >= CHOICE for choice in choices)
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(f"{file} is damaged or from another version of feddlp; restore it, or remove it and run again")
    return Result(bool(record.get("finished")), choices)


def run_folders(path: Path) -> list[RunFolder]:
    """The runs that make up a sweep's result, without the trials that were not chosen."""
    return [RunFolder.open(path / run) for choice in read_result(path).choices for run in choice["runs"]]


def summarise_choices(path: Path, choices: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines of all settings, in the order of the sweep."""
    lines = []
    for choice in choices:
        title = ", ".join(f"{key}={value}" for key, value in choice["setting"].items())
        played = [RunFolder.open(path / run).read_rounds() for run in choice["runs"]]
        runs = [summary for rows in played for summary in summarise(rows)]
        if runs:
            lines.append(Line(title, choice["method"], choice["chosen"], choice.get("edges", ()), runs))
    return lines


def show_mean(values: Sequence[float | None], digits: int = 2) -> str:
    found = measure(values)
    return "-" if found is None else shown(found, digits)


def accuracy_cells(line: Line) -> tuple[str, ...]:
    runs = line.runs
    return (
        line.method,
        show_mean([run.final for run in runs]),
        show_mean([run.chosen for run in runs]),
        show_mean([run.best for run in runs]),
        f"{statistics.fmean(run.client_std for run in runs):.2f}",
        f"{statistics.fmean(run.client_lowest for run in runs):.2f}",
    )


def cost_cells(line: Line) -> tuple[str, ...]:
    active = [run.active_ranks for run in line.runs]
    return (
        line.method,
        " ".join(chosen_text(line, key) for key in line.chosen) or "-",
        f"{line.runs[0].parameters:,}",
        f"{statistics.fmean(run.mib for run in line.runs):.2f}",
        "-" if active[0] is None else f"{show_mean(active, 1)} of {line.runs[0].gates}",
        show_mean([None if run.export_mib is None else 1024 * run.export_mib for run in line.runs], 0),
    )


def chosen_text(line: Line, key: str) -> str:
    """ "lr 0.01", with a mark where the grid ends there."""
    return f"{NAMES.get(key, key)} {line.chosen[key]:g}" + ("!" if key in line.edges else "")


def by_setting(lines: Sequence[Line]) -> Iterator[tuple[str, list[Line]]]:
    for title in dict.fromkeys(line.setting for line in lines):
        yield title, [line for line in lines if line.setting == title]


def sweep_tables(path: Path, lines: Sequence[Line]) -> list[Table]:
    """What `feddlp sweep` prints: two tables a setting, each within 80 columns."""
    tables = []
    for title, found in by_setting(lines):
        seeds = max(len(line.runs) for line in found)
        heading = "  ".join(filter(None, [str(path), title, f"{seeds} {'seed' if seeds == 1 else 'seeds'}"]))
        tables.append(text_table(heading, ACCURACY, [accuracy_cells(line) for line in found], ACCURACY_NOTE))
        tables.append(text_table("", COSTS, [cost_cells(line) for line in found], COSTS_NOTE))
    return tables


def sweep_csv(lines: Sequence[Line]) -> str:
    """One row a setting, method and seed."""
    fields = ("final", "chosen", "chosen_round", "best", "best_round", "client_mean", "client_std", "client_lowest")
    costs = ("client_p10", "mib", "parameters", "parameters_sent", "active_ranks", "gates", "export_mib", "rounds")
    rows: list[Sequence[Any]] = [("setting", "method", "seed", "tuned", *fields, *costs)]
    for line in lines:
        tuned = " ".join(f"{key}={value:g}" for key, value in line.chosen.items())
        for run in line.runs:
            values = (getattr(run, name) for name in (*fields, *costs))
            rows.append((line.setting, line.method, run.seed, tuned, *("" if v is None else v for v in values)))
    return csv_text(rows)
