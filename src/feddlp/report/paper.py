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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any, Literal, NamedTuple

from feddlp.report.latest import Row
from feddlp.report.paper_forms import Cell, Line, PaperTable, Value, value_of
from feddlp.report.paper_notes import notes
from feddlp.report.paper_numbers import (
    PAPER_DATASETS,
    PAPER_METHODS,
    Key,
    Results,
    Run,
    common_target,
    mean_of,
    paper_row,
    paper_value,
    ratio,
    reached,
    read,
    runs_of,
    test_pooled,
)  # fmt: skip


class Need(NamedTuple):
    """What a runner has to run, for every data set and seed."""

    method: str
    tower: str
    beta: float


@dataclass(frozen=True)
class Specification:
    """What a table compares."""

    name: str
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

TABLES: Mapping[str, Specification] = {
    one.name: one
    for one in (
        Specification("table1", "Table I: pooled test accuracy, %, β = 0.1", "accuracy", (0.1,), BOTH, COMPARED),
        Specification("table2", "Table II: pooled test accuracy, %, β = 0.01", "accuracy", (0.01,), BOTH, COMPARED),
        Specification("table3", "Table III: test accuracy over clients, β = 0.1", "spread", (0.1,), BOTH, COMPARED),
        Specification("table4", "Table IV: test accuracy over clients, β = 0.01", "spread", (0.01,), BOTH, COMPARED),
        Specification(
            "table5", "Table V: MiB per client to a target accuracy, text tower",
            "traffic", (0.1, 0.01), ("text",), TRAFFIC, base="feddat",
        ),
        Specification(
            "table6", "Table VI: MiB per client to a target accuracy, image tower",
            "traffic", (0.1, 0.01), ("image",), TRAFFIC, base="flora",
        ),
        Specification(
            "table7", "Table VII: combined or apart, pooled test accuracy, %, β = 0.1",
            "ablation", (0.1,), BOTH, ABLATION,
        ),
        Specification(
            "table8", "Table VIII: combined or apart, pooled test accuracy, %, β = 0.01",
            "ablation", (0.01,), BOTH, ABLATION,
        ),
        Specification(
            "fig2", "Fig. 2: LoRA and SoRA, local, image tower, pooled test accuracy, %, β = 0.1",
            "curve", (0.1,), ("image",), ("local", "sora_local"),
        ),
    )
}  # fmt: skip


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
    spec = TABLES[table]
    wanted = set(needs(table))
    runs = {key: runs_of(results, key) for key in results if Need(key.method, key.tower, key.beta) in wanted}
    made, said = BUILDERS[spec.kind](Making(spec, runs, comparable, target))
    return replace(made, notes=notes(made, runs, said, deviations))


@dataclass(frozen=True)
class Making:
    """What a builder of one kind of table works from."""

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

    @property
    def rows(self) -> Iterator[tuple[str, str]]:
        return product(self.spec.towers, self.spec.methods)

    def of(self, method: str, tower: str, dataset: str, beta: float) -> list[Run]:
        return self.runs.get(Key(method, tower, dataset, beta), [])

    def paper(self, method: str, tower: str, column: str, name: str = "mean") -> Value | None:
        """The paper's number in Tables I-IV, VII and VIII."""
        if not self.comparable or method not in PAPER_METHODS:
            return None
        return paper_value(paper_row(self.spec.name, tower=tower, method=PAPER_METHODS[method]).get(column), name)

    def paper_traffic(self, dataset: str, beta: float) -> dict[str, Any]:
        """The paper's row in Tables V and VI."""
        return paper_row(self.spec.name, dataset=dataset, beta=beta) if self.comparable else {}

    def table(self, headings: Sequence[str], readings: Mapping[str, str], lines: Sequence[Line]) -> PaperTable:
        name, title = self.spec.name, self.spec.title
        return PaperTable(name, title, "method", tuple(headings), readings, list(readings)[-1], tuple(lines), ())


COMMON = (
    "The target, where neither the paper nor you set one, is the highest whole percent that every run compared on that "
    "data reaches on test data; it was set after the runs."
)
Made = tuple[PaperTable, Sequence[str]]


def accuracy_cell(making: Making, method: str, tower: str, dataset: str) -> Cell:
    (beta,) = making.spec.betas
    ours = read(making.of(method, tower, dataset, beta), test_pooled)
    return Cell(tower, method, dataset, beta, "pooled_accuracy", ours, making.paper(method, tower, dataset))


def average_cell(making: Making, cells: Sequence[Cell]) -> Cell:
    four = [cell.ours for cell in cells if cell.dataset in PAPER_DATASETS]
    method, tower = cells[0].method, cells[0].tower
    paper = making.paper(method, tower, "average")
    return replace(cells[0], dataset="average", ours=mean_of(four) if len(four) == 4 else {}, paper=paper)


def sent_cell(making: Making, method: str, tower: str) -> Cell:
    """Parameters sent, in millions; the same for all data sets and readings."""
    (beta,) = making.spec.betas
    runs = [rows for key, found in making.runs.items() if key[:2] == (method, tower) for rows in found]
    sent = fmean(rows[-1]["parameters_sent"] for rows in runs) / 1e6 if runs else None
    ours = {} if sent is None else dict.fromkeys(ACCURACY, Value(sent, None, len(runs), len(runs)))
    paper = making.paper(method, tower, "params_millions")
    return Cell(tower, method, "", beta, "parameters_sent_millions", ours, paper, decimals=3)


def accuracy(making: Making) -> Made:
    """Tables I and II, and without average and parameters Tables VII and VIII."""
    whole = making.spec.kind == "accuracy"
    average = whole and set(PAPER_DATASETS) <= set(making.datasets)
    lines = []
    for tower, method in making.rows:
        cells = [accuracy_cell(making, method, tower, dataset) for dataset in making.datasets]
        cells += [average_cell(making, cells)] * average + [sent_cell(making, method, tower)] * whole
        lines.append(Line(f"{tower} tower", LABELS[method].replace(", ", ",\n"), tuple(cells)))
    headings = [*making.datasets, *["average"] * average, *["sent (M)"] * whole]
    return making.table(headings, ACCURACY, lines), ()


def client_std(row: Row) -> float:
    return float(row["test"]["client_std"])


def client_lowest(row: Row) -> float:
    return float(row["test"]["client_lowest"])


SPREADS: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
    ("client_std", "std_over_clients", client_std),
    ("client_lowest", "lowest", client_lowest),
)


def spread(making: Making) -> Made:
    """Tables III and IV."""
    (beta,) = making.spec.betas
    lines = []
    for tower, method in making.rows:
        cells = []
        for dataset, (metric, name, measure) in product(making.datasets, SPREADS):
            ours = read(making.of(method, tower, dataset, beta), measure)
            cells.append(Cell(tower, method, dataset, beta, metric, ours, making.paper(method, tower, dataset, name)))
        lines.append(Line(f"{tower} tower", LABELS[method], tuple(cells)))
    headings = [f"{dataset}\n{what}" for dataset in making.datasets for what in ("std", "lowest")]
    return replace(making.table(headings, ACCURACY, lines), together=2), ()


def traffic_cells(making: Making, dataset: str, beta: float, target: float | None) -> tuple[list[Cell], list[Cell]]:
    """MiB and rounds to the target, a cell a method."""
    (tower,) = making.spec.towers
    mib: list[Cell] = []
    rounds: list[Cell] = []
    for method in making.spec.methods:
        found = {} if target is None else reached(making.of(method, tower, dataset, beta), target)
        for cells, index, metric, column in (
            (mib, 0, "mib_to_target", "mebibytes"),
            (rounds, 1, "rounds_to_target", "rounds"),
        ):
            ours = {reading: pair[index] for reading, pair in found.items()}
            paper = paper_value(making.paper_traffic(dataset, beta).get(column, {}).get(PAPER_METHODS[method]))
            cells.append(Cell(tower, method, dataset, beta, metric, ours, paper, target=target))
    return mib, rounds


def ratio_cell(cell: Cell, base: Cell) -> Cell:
    """A method's MiB as a multiple of the base's; the paper's from its MiB too, as one of its ratios is misprinted."""
    pairs = {reading: ratio(cell.ours[reading], base.ours[reading]) for reading in cell.ours if reading in base.ours}
    ours = {reading: value for reading, value in pairs.items() if value}
    paper = ratio(cell.paper, base.paper) if cell.paper and base.paper else None
    return replace(cell, metric=f"mib_ratio_to_{base.method}", ours=ours, paper=paper)


def traffic_target(making: Making, dataset: str, beta: float) -> tuple[float | None, str]:
    """The target in % and, where it is not the paper's, how it was set."""
    if entry := making.paper_traffic(dataset, beta):
        return float(entry["target_percent"]), ""
    if making.target is not None:
        return making.target, f"The target is {making.target:g} %, as asked for, where the paper has none."
    (tower,) = making.spec.towers
    found = common_target([rows for method in making.spec.methods for rows in making.of(method, tower, dataset, beta)])
    return found, "" if found is None else COMMON


def traffic(making: Making) -> Made:
    """Tables V and VI."""
    lines, every, said = [], [], []
    base = making.spec.methods.index(making.spec.base)
    for dataset, beta in product(making.datasets, making.spec.betas):
        target, how = traffic_target(making, dataset, beta)
        mib, rounds = traffic_cells(making, dataset, beta, target)
        cells = (*mib, *(ratio_cell(cell, mib[base]) for cell in mib if cell is not mib[base]))
        goal = "" if target is None else f"\nto {target:g} %"
        lines.append(Line("", f"{dataset}, β {beta:g}{goal}", cells))
        every += [*cells, *rounds]
        said += [how] * bool(how)
    labels = [LABELS[method] for method in making.spec.methods]
    headings = [*labels, *(f"{label}\n÷ {labels[base]}" for label in labels if label != labels[base])]
    made = making.table(headings, JUDGED, lines)
    return replace(made, corner="data, target", every=tuple(every)), tuple(dict.fromkeys(said))


def curve_cell(making: Making, method: str, dataset: str, number: int) -> Cell:
    (beta,), (tower,) = making.spec.betas, making.spec.towers
    by_round = [{row["round"]: test_pooled(row) for row in rows} for rows in making.of(method, tower, dataset, beta)]
    value = value_of([accuracies.get(number) for accuracies in by_round])
    ours = {"round": value} if value and value.seeds else {}
    return Cell(tower, method, dataset, beta, "pooled_accuracy", ours, round=number)


def last_round(making: Making, dataset: str) -> int:
    runs = [rows for key, found in making.runs.items() if key.dataset == dataset for rows in found]
    return max((int(rows[-1]["round"]) for rows in runs), default=0)


def curve(making: Making) -> Made:
    """Fig. 2 as numbers: a few rounds to look at, and every round in the CSV."""
    lines: list[Line] = []
    every: list[Cell] = []
    for dataset in [name for name in making.datasets if last_round(making, name)] or ["flowers"]:
        last = last_round(making, dataset)
        rounds = [1, *(max(1, math.ceil(percent * last / 100)) for percent in PERCENTS)]
        for method in making.spec.methods:
            cells = tuple(curve_cell(making, method, dataset, number) for number in rounds)
            lines.append(Line(f"{dataset}, {last} rounds", LABELS[method], cells))
            every += [curve_cell(making, method, dataset, number) for number in range(1, last + 1)]
    headings = ["round 1", *(f"{percent} % of\nrounds" for percent in PERCENTS)]
    return replace(making.table(headings, BY_ROUND, lines), every=tuple(every)), ()


BUILDERS: Mapping[str, Callable[[Making], Made]] = {
    "accuracy": accuracy,
    "ablation": accuracy,
    "spread": spread,
    "traffic": traffic,
    "curve": curve,
}
