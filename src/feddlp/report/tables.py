"""Tables, as pure functions of a run's records.

Three accuracies stand side by side and are never mixed up: after the final round, in the round chosen on validation
data, and in the best test round. The last is what most papers print; it peeks at the test set and is marked so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feddlp.errors import UserError
from feddlp.files import MIB
from feddlp.report.latest import Row
from feddlp.report.readings import picked

MOST = 10_000  # columns


@dataclass(frozen=True)
class Summary:
    """One method's line; accuracies in %, rounds counted from 1."""

    method: str
    seed: int
    rounds: int
    final: float
    chosen: float | None  # None without validation samples
    chosen_round: int | None
    best: float
    best_round: int
    client_mean: float  # the spread is that of the final round
    client_std: float
    client_lowest: float
    client_p10: float
    parameters: int  # trained by a client
    parameters_sent: int
    mib: float  # sent and received by one client over the whole run
    active_ranks: float | None  # mean over clients, of all gates
    gates: int
    seconds: float | None  # per round, mean; None where runs trained side by side
    export_mib: float | None  # of what is left of the private adapter, mean over clients; None without gates


def summarise_method(rows: Sequence[Row]) -> Summary:
    """One method's rounds, in order, to its line."""
    final, chosen, best = picked(rows)
    best = best or final
    same = {name: final[name] for name in ("method", "seed", "parameters_sent", "active_ranks", "gates")}
    spread = {name: final["test"][name] for name in ("client_mean", "client_std", "client_lowest", "client_p10")}
    return Summary(
        **same,
        **spread,
        rounds=final["round"],
        final=final["test"]["pooled"],
        chosen=chosen["test"]["pooled"] if chosen else None,
        chosen_round=chosen["round"] if chosen else None,
        best=best["test"]["pooled"],
        best_round=best["round"],
        parameters=sum(final["parameters"].values()),
        mib=sum(row["bytes_up"] + row["bytes_down"] for row in rows) / MIB,
        seconds=None if any(row["lanes"] > 1 for row in rows) else sum(row["seconds"] for row in rows) / len(rows),
        export_mib=None if final["export_bytes"] is None else final["export_bytes"] / MIB,
    )


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """All methods of a run, in the order in which they were run.

    Raises:
        UserError: the rows are another version's.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    try:
        return [summarise_method([row for row in rows if row["method"] == method]) for method in methods]
    except KeyError as error:
        raise UserError(f"rounds.jsonl has no {error}: another version of feddlp made it; use that one") from error


def accuracy_cells(line: Summary) -> tuple[str, ...]:
    chosen = "-" if line.chosen is None else f"{line.chosen:.2f} (r{line.chosen_round})"
    return (line.method, f"{line.final:.2f}", chosen, f"{line.best:.2f} (r{line.best_round})")


def client_cells(line: Summary) -> tuple[str, ...]:
    values = (line.client_mean, line.client_std, line.client_lowest, line.client_p10)
    return (line.method, *(f"{value:.2f}" for value in values))


def cost_cells(line: Summary) -> tuple[str, ...]:
    return (
        line.method,
        f"{line.parameters:,}",
        f"{line.parameters_sent:,}",
        f"{line.mib:.2f}",
        "-" if line.active_ranks is None else f"{line.active_ranks:.1f} of {line.gates}",
        "-" if line.seconds is None else f"{line.seconds:.2f}",
    )


ACCURACY = ("method", "final\nround", "validation-\nchosen", "best test\nround *")
CLIENTS = ("method", "mean of\nclients", "std of\nclients", "lowest\nclient", "10th per-\ncentile")
COSTS = ("method", "trained\nparams", "sent\nparams", "MiB per\nclient", "active\nranks", "seconds\na round")
ACCURACY_NOTE = (
    "Test accuracy in %, pooled over all clients' samples; (r3) = round 3.\n* optimistic: picked on test data."
)
CLIENTS_NOTE = "Test accuracy in % after the final round, every client counting alike."
COSTS_NOTE = "MiB up and down over all rounds. Active ranks: gates that are not pruned, mean over clients."


def comparison(lines: Sequence[Summary], title: str) -> list[Table]:
    """What `feddlp run` and `feddlp show` print: accuracy, spread and costs, each within 80 columns."""
    accuracy = text_table(title, ACCURACY, [accuracy_cells(line) for line in lines], ACCURACY_NOTE)
    clients = text_table("", CLIENTS, [client_cells(line) for line in lines], CLIENTS_NOTE)
    return [accuracy, clients, text_table("", COSTS, [cost_cells(line) for line in lines], COSTS_NOTE)]


def newcomers_table(rows: Mapping[str, Row]) -> Table:
    """Clients that joined at the end: pooled test accuracy as they came and after each epoch of their own."""
    epochs = max(len(row["tuned"]) for row in rows.values())
    headings = ("method", "zero-shot", "received", *(f"epoch {number}" for number in range(1, epochs + 1)))
    lines = []
    for method, row in rows.items():
        stages = [row["zero_shot"], row["received"], *row["tuned"], *[None] * (epochs - len(row["tuned"]))]
        lines.append((method, *("-" if stage is None else f"{stage['pooled']:.2f}" for stage in stages)))
    count = next(iter(rows.values()))["clients"]
    note = "Pooled test accuracy in %: of the frozen model, of the shared adapter as received,\nand after local epochs."
    return text_table(f"{count} clients that joined at the end", headings, lines, note)


def text_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Table:
    """A table whose first column names the row and whose others are numbers."""
    name = Text(title) if title else None
    table = Table(title=name, title_justify="left", caption=note, caption_justify="left", box=SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    table.width = Console(width=MOST).measure(table).maximum  # a narrow terminal may wrap a line, but no number is cut
    return table
