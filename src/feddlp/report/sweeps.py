"""A finished sweep as tables: mean and standard deviation over seeds, one table a setting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from rich.table import Table

from feddlp.errors import UserError
from feddlp.names import csv_text
from feddlp.records import RunFolder
from feddlp.report.readings import measure, shown
from feddlp.report.tables import Summary, summarise, text_table
from feddlp.states import Record, Sealed, read

ACCURACY = (
    "method", "final\nround", "validation-\nchosen", "best test\nround *", "std over\nclients", "lowest\nclient",
)  # fmt: skip
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
NAMES = {"lr": "lr", "kd_weight": "kd", "gate_threshold": "xi"}


class Choice(Record):
    """What was chosen for one setting and method, and its runs."""

    setting: dict[str, Any]
    method: str
    chosen: dict[str, float]
    edges: list[str]
    validation: dict[str, float | None]
    runs: list[Annotated[str, Field(pattern=r"^[^/.][^/]*(/[^/.][^/]*)*$")]]  # below the sweep's folder


class Result(Sealed):
    """sweep.json"""

    finished: bool
    choices: list[Choice]
    failed: dict[str, str]


class Line(NamedTuple):
    """One method in one setting."""

    setting: str
    choice: Choice
    runs: Sequence[Summary]  # one a seed


def is_sweep(path: Path) -> bool:
    return (path / "sweep.json").is_file()


def read_result(path: Path) -> Result:
    """What a sweep wrote down.

    Raises:
        UserError: not the folder of a sweep, or a damaged one.
    """
    if (found := read(path / "sweep.json", Result)) is None:
        raise UserError(f"{path} is not the folder of a sweep (it has no sweep.json); run it first: feddlp sweep FILE")
    return found


def run_folders(path: Path) -> list[RunFolder]:
    """The runs that make up a sweep's result, without the trials that were not chosen."""
    return [RunFolder.open(path / run) for choice in read_result(path).choices for run in choice.runs]


def summarise_choices(path: Path, choices: Sequence[Choice]) -> list[Line]:
    """The lines of all settings, in the order of the sweep."""
    lines = []
    for choice in choices:
        title = ", ".join(f"{key}={value}" for key, value in choice.setting.items())
        played = [RunFolder.open(path / run).read_rounds() for run in choice.runs]
        if runs := [summary for rows in played for summary in summarise(rows)]:
            lines.append(Line(title, choice, runs))
    return lines


def show_mean(values: Iterable[float | None], digits: int = 2) -> str:
    found = measure(values)
    return "-" if found is None else shown(found, digits)


def accuracy_cells(line: Line) -> tuple[str, ...]:
    """Those over pooled samples with their spread over seeds, those over clients without."""
    pooled = (show_mean(getattr(run, name) for run in line.runs) for name in ("final", "chosen", "best"))
    spread = (f"{fmean(getattr(run, name) for run in line.runs):.2f}" for name in ("client_std", "client_lowest"))
    return (line.choice.method, *pooled, *spread)


def cost_cells(line: Line) -> tuple[str, ...]:
    first, choice = line.runs[0], line.choice
    chosen = [
        f"{NAMES.get(key, key)} {value:g}" + ("!" if key in choice.edges else "")
        for key, value in choice.chosen.items()
    ]
    active = show_mean((run.active_ranks for run in line.runs), 1)
    return (
        choice.method,
        " ".join(chosen) or "-",
        f"{first.parameters:,}",
        f"{fmean(run.mib for run in line.runs):.2f}",
        "-" if first.active_ranks is None else f"{active} of {first.gates}",
        show_mean((None if run.export_mib is None else 1024 * run.export_mib for run in line.runs), 0),
    )


def sweep_tables(path: Path, lines: Sequence[Line]) -> list[Table]:
    """What `feddlp sweep` prints: two tables a setting, each within 80 columns."""
    tables = []
    for title in dict.fromkeys(line.setting for line in lines):
        found = [line for line in lines if line.setting == title]
        seeds = max(len(line.runs) for line in found)
        heading = "  ".join(filter(None, [str(path), title, f"{seeds} {'seed' if seeds == 1 else 'seeds'}"]))
        tables.append(text_table(heading, ACCURACY, [accuracy_cells(line) for line in found], ACCURACY_NOTE))
        tables.append(text_table("", COSTS, [cost_cells(line) for line in found], COSTS_NOTE))
    return tables


def sweep_csv(lines: Sequence[Line]) -> str:
    """One row a setting, method and seed."""
    fields = (
        "final", "chosen", "chosen_round", "best", "best_round", "client_mean", "client_std", "client_lowest",
        "client_p10", "mib", "parameters", "parameters_sent", "active_ranks", "gates", "export_mib", "rounds",
    )  # fmt: skip
    rows: list[Sequence[Any]] = [("setting", "method", "seed", "tuned", *fields)]
    for line in lines:
        tuned = " ".join(f"{key}={value:g}" for key, value in line.choice.chosen.items())
        for run in line.runs:
            values = (getattr(run, name) for name in fields)
            rows.append((line.setting, line.choice.method, run.seed, tuned, *values))
    return csv_text(rows)
