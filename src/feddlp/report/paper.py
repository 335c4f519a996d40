"""The tables of the paper (arXiv 2503.07552, Tables I-VIII and Fig. 2) in its layout, our numbers beside the paper's.

`TABLES` says what each table compares, `needs` what has to be run for it, `build` makes it from the rounds of those
runs; `report.paper_forms` holds what comes out and prints it. Where we differ from the paper, and why:

- Three readings of every accuracy; the paper prints the best test round only, which peeks at the test set.
- Zero-shot is an extra reference row; `combined` is the ablation of Tables VII and VIII matched to FedDLP, beside
  `combined_published`, which is what the paper ran.
- Tables V and VI have FLoRA, FedDAT and FedDLP for both towers, and are judged on validation data as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Literal, NamedTuple

from feddlp.report import paper_numbers as numbers
from feddlp.report.paper_forms import Cell, Line, PaperTable
from feddlp.report.paper_notes import notes
from feddlp.report.paper_numbers import PAPER_DATASETS, PAPER_METHODS, Key, Results, Run
from feddlp.report.readings import Measure, accuracy, measure


class Need(NamedTuple):
    """What a runner has to run, for every data set and seed."""

    method: str
    tower: str
    beta: float


@dataclass(frozen=True)
class Specification:
    """What a table compares."""

    title: str
    kind: Literal["accuracy", "spread", "ablation", "traffic", "curve"]
    betas: tuple[float, ...]
    towers: tuple[str, ...]
    methods: tuple[str, ...]
    base: str = ""  # of the ratios in a table of traffic


COMPARED = ("zero_shot", "local", "fedclip", "flora", "feddat", "feddlp")
TRAFFIC = ("flora", "feddat", "feddlp")
ABLATION = ("combined_published", "combined", "feddlp")
BOTH = ("text", "image")
LABELS = {
    "zero_shot": "zero-shot", "local": "Local", "fedclip": "FedCLIP", "flora": "FLoRA", "feddat": "FedDAT",
    "feddlp": "FedDLP", "combined": "Combined, matched", "combined_published": "Combined, as published",
    "sora_local": "SoRA, local",
}  # fmt: skip
ACCURACY = {"final": "final", "validation_chosen": "chosen", "best_test": "best *"}
JUDGED = {"validation": "validation", "test": "test *"}
BY_ROUND = {"round": "test accuracy"}
PERCENTS = (10, 25, 50, 75, 100)  # of the rounds, in the table of Fig. 2

TABLES = {
    "table1": Specification("Table I: pooled test accuracy, %, β = 0.1", "accuracy", (0.1,), BOTH, COMPARED),
    "table2": Specification("Table II: pooled test accuracy, %, β = 0.01", "accuracy", (0.01,), BOTH, COMPARED),
    "table3": Specification("Table III: test accuracy over clients, β = 0.1", "spread", (0.1,), BOTH, COMPARED),
    "table4": Specification("Table IV: test accuracy over clients, β = 0.01", "spread", (0.01,), BOTH, COMPARED),
    "table5": Specification(
        "Table V: MiB per client to a target accuracy, text tower",
        "traffic", (0.1, 0.01), ("text",), TRAFFIC, "feddat",
    ),
    "table6": Specification(
        "Table VI: MiB per client to a target accuracy, image tower",
        "traffic", (0.1, 0.01), ("image",), TRAFFIC, "flora",
    ),
    "table7": Specification(
        "Table VII: combined or apart, pooled test accuracy, %, β = 0.1", "ablation", (0.1,), BOTH, ABLATION
    ),
    "table8": Specification(
        "Table VIII: combined or apart, pooled test accuracy, %, β = 0.01", "ablation", (0.01,), BOTH, ABLATION
    ),
    "fig2": Specification(
        "Fig. 2: LoRA and SoRA, local, image tower, pooled test accuracy, %, β = 0.1",
        "curve", (0.1,), ("image",), ("local", "sora_local"),
    ),
}  # fmt: skip
METRICS = {  # in the rows, and in the paper's
    "pooled_accuracy": ("pooled", "mean"),
    "client_std": ("client_std", "std_over_clients"),
    "client_lowest": ("client_lowest", "lowest"),
}
COMMON = (
    "The target, where neither the paper nor you set one, is the highest whole percent that every run compared on that "
    "data reaches on test data; it was set after the runs."
)


def needs(table: str) -> list[Need]:
    """What has to be run for a table, on every data set of interest. `local` and `sora_local` have rank 2."""
    spec = TABLES[table]
    return [Need(method, tower, beta) for beta, tower, method in product(spec.betas, spec.towers, spec.methods)]


def build(
    table: str, results: Results, *, comparable: bool, target: float | None = None, deviations: Sequence[str] = ()
) -> PaperTable:
    """A table from the runs made for it; what was not run stays a dash.

    Args:
        results: one run a seed, its rounds in order.
        comparable: the model is CLIP ViT-B/32 and the runs follow the paper's partition; only then do the paper's
            numbers stand beside ours.
        target: for Tables V and VI, in %, where the paper has none; None takes the highest whole percent that every
            compared run on that data reaches on test data.
        deviations: what keeps runs with the paper's model and data from being comparable, for the notes.
    """
    spec, wanted = TABLES[table], set(needs(table))
    runs = {
        key: [rows for rows in found if rows]
        for key, found in results.items()
        if Need(key.method, key.tower, key.beta) in wanted
    }
    making = Making(table, spec, runs, comparable, target)
    made = {"traffic": traffic, "curve": curve}.get(spec.kind, by_method)(making)
    return replace(made, notes=notes(made, spec.kind, runs, deviations))


@dataclass(frozen=True)
class Making:
    """What a table is made from."""

    name: str
    spec: Specification
    runs: Mapping[Key, list[Run]]  # those of this table, each with at least one round
    comparable: bool
    target: float | None

    @property
    def datasets(self) -> tuple[str, ...]:
        """The columns: the paper's four where its numbers stand or where nothing was run, then whatever was run."""
        there = dict.fromkeys(key.dataset for key, runs in self.runs.items() if runs)
        four = [name for name in PAPER_DATASETS if self.comparable or name in there or not there]
        return tuple(dict.fromkeys([*four, *there]))

    def of(self, method: str, tower: str, dataset: str, beta: float) -> list[Run]:
        return self.runs.get(Key(method, tower, dataset, beta), [])

    def paper(self, cell: Cell, column: str, name: str = "mean") -> Cell:
        """The cell with the paper's number in Tables I-IV, VII and VIII."""
        if not self.comparable or cell.method not in PAPER_METHODS:
            return cell
        row = numbers.paper_row(self.name, tower=cell.tower, method=PAPER_METHODS[cell.method])
        return replace(cell, paper=numbers.paper_value(row.get(column), name))

    def table(self, headings: Sequence[str], readings: Mapping[str, str], lines: Sequence[Line]) -> PaperTable:
        return PaperTable(self.name, self.spec.title, "method", tuple(headings), readings, tuple(lines))


def by_method(making: Making) -> PaperTable:
    """Tables I-IV, VII and VIII: a line a tower and method, a column a data set."""
    (beta,), kind, datasets = making.spec.betas, making.spec.kind, making.datasets
    what = {"client_std": "std", "client_lowest": "lowest"} if kind == "spread" else {"pooled_accuracy": ""}
    columns = list(product(datasets, what))
    headings = [f"{dataset}\n{what[metric]}".strip() for dataset, metric in columns]
    average = kind == "accuracy" and set(PAPER_DATASETS) <= set(datasets)
    headings += ["average"] * average + ["sent (M)"] * (kind == "accuracy")
    lines = []
    for tower, method in product(making.spec.towers, making.spec.methods):
        cells = []
        for dataset, metric in columns:
            ours, papers = METRICS[metric]
            found = numbers.read(making.of(method, tower, dataset, beta), ours)
            cells.append(making.paper(Cell(tower, method, dataset, beta, metric, found), dataset, papers))
        if average:
            cells.append(average_cell(making, cells))
        if kind == "accuracy":
            cells.append(sent_cell(making, method, tower, beta))
        lines.append(Line(f"{tower} tower", LABELS[method].replace(", ", ",\n"), tuple(cells)))
    return replace(making.table(headings, ACCURACY, lines), together=len(what))


def average_cell(making: Making, cells: Sequence[Cell]) -> Cell:
    four = [cell.ours for cell in cells if cell.dataset in PAPER_DATASETS]
    return making.paper(replace(cells[0], dataset="average", ours=numbers.mean_of(four)), "average")


def sent_cell(making: Making, method: str, tower: str, beta: float) -> Cell:
    """Parameters sent, in millions; the same for all data sets and readings."""
    runs = [rows for key, found in making.runs.items() if key[:2] == (method, tower) for rows in found]
    sent = fmean(rows[-1]["parameters_sent"] for rows in runs) / 1e6 if runs else 0
    ours = dict.fromkeys(ACCURACY, Measure(sent, None, len(runs), len(runs))) if runs else {}
    cell = Cell(tower, method, "", beta, "parameters_sent_millions", ours, decimals=3)
    return making.paper(cell, "params_millions")


def traffic(making: Making) -> PaperTable:
    """Tables V and VI: MiB and, in the CSV alone, rounds to the target; and MiB as multiples of one method's."""
    (tower,), methods = making.spec.towers, making.spec.methods
    base = methods.index(making.spec.base)
    lines, every = [], []
    said: dict[str, None] = {}
    for dataset, beta in product(making.datasets, making.spec.betas):
        row = numbers.paper_row(making.name, dataset=dataset, beta=beta) if making.comparable else {}
        runs = {method: making.of(method, tower, dataset, beta) for method in methods}
        target, how = traffic_target(making, row, list(runs.values()))
        found = {method: {} if target is None else numbers.reached(runs[method], target) for method in methods}
        mib, rounds = (
            [
                Cell(
                    tower, method, dataset, beta, metric,
                    {reading: pair[index] for reading, pair in found[method].items()},
                    numbers.paper_value(row.get(column, {}).get(PAPER_METHODS[method])), target=target,
                )
                for method in methods
            ]
            for index, (metric, column) in enumerate(TO_TARGET.items())
        )  # fmt: skip
        cells = (*mib, *(ratio_cell(cell, mib[base]) for cell in mib if cell is not mib[base]))
        goal = "" if target is None else f"\nto {target:g} %"
        lines.append(Line("", f"{dataset}, β {beta:g}{goal}", cells))
        every += [*cells, *rounds]
        said[how] = None
    labels = [LABELS[method] for method in methods]
    headings = [*labels, *(f"{label}\n÷ {labels[base]}" for label in labels if label != labels[base])]
    table = making.table(headings, JUDGED, lines)
    return replace(table, corner="data, target", every=tuple(every), notes=tuple(filter(None, said)))


TO_TARGET = {"mib_to_target": "mebibytes", "rounds_to_target": "rounds"}  # as in the paper's rows


def traffic_target(making: Making, row: Mapping[str, float], runs: Sequence[Sequence[Run]]) -> tuple[float | None, str]:
    """The target in % and, where it is not the paper's, how it was set."""
    if row:
        return float(row["target_percent"]), ""
    if making.target is not None:
        return making.target, f"The target is {making.target:g} %, as asked for, where the paper has none."
    found = numbers.common_target([rows for one in runs for rows in one])
    return found, "" if found is None else COMMON


def ratio_cell(cell: Cell, base: Cell) -> Cell:
    """A method's MiB as a multiple of the base's; the paper's from its MiB too, as one of its ratios is misprinted."""
    pairs = {
        reading: numbers.ratio(cell.ours[reading], base.ours[reading]) for reading in cell.ours if reading in base.ours
    }
    ours = {reading: value for reading, value in pairs.items() if value}
    paper = numbers.ratio(cell.paper, base.paper) if cell.paper and base.paper else None
    return replace(cell, metric=f"mib_ratio_to_{base.method}", ours=ours, paper=paper)


def curve(making: Making) -> PaperTable:
    """Fig. 2 as numbers: a few rounds to look at, and every round in the CSV."""
    (beta,), (tower,) = making.spec.betas, making.spec.towers
    last: dict[str, int] = {}
    for key, runs in making.runs.items():
        last[key.dataset] = max([last.get(key.dataset, 0), *(int(rows[-1]["round"]) for rows in runs)])
    lines, every = [], []
    for dataset in [name for name in making.datasets if last.get(name)] or ["flowers"]:
        end = last.get(dataset, 0)
        rounds = [1, *(max(1, math.ceil(percent * end / 100)) for percent in PERCENTS)]
        for method in making.spec.methods:
            by_round = [
                {row["round"]: accuracy(row, "test") for row in rows}
                for rows in making.of(method, tower, dataset, beta)
            ]
            cells = {}
            for number in {*rounds, *range(1, end + 1)}:
                value = measure(accuracies.get(number) for accuracies in by_round)
                ours = {"round": value} if value else {}
                cells[number] = Cell(tower, method, dataset, beta, "pooled_accuracy", ours, round=number)
            lines.append(Line(f"{dataset}, {end} rounds", LABELS[method], tuple(cells[number] for number in rounds)))
            every += [cells[number] for number in range(1, end + 1)]
    headings = ["round 1", *(f"{percent} % of\nrounds" for percent in PERCENTS)]
    return replace(making.table(headings, BY_ROUND, lines), every=tuple(every))
