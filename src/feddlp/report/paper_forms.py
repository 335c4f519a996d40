"""A table in the paper's layout as plain data, and its two plain forms: text of at most 100 columns, and CSV.

A cell holds our number in up to three readings ("final", "validation_chosen", "best_test", see `report.tables`) and the
paper's. The paper's number stands beside one reading alone, the comparable one; it is never a column of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Literal

from rich.table import Table
from rich.text import Text

from feddlp import names
from feddlp.report.readings import measure
from feddlp.report.tables import text_table

Which = Literal["final", "validation_chosen", "best_test"]
WIDTH = 100
COLUMNS = (
    "table", "tower", "method", "dataset", "beta", "metric", "which", "ours_mean", "ours_std", "seeds",
    "paper_mean", "paper_std", "runs", "target", "round",
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A number over seeds; std is the sample's (ddof 1) and None for fewer than two."""

    mean: float | None  # None: no run has it, for example a target that was never reached
    std: float | None = None
    seeds: int = 1  # that have a value
    runs: int = 1  # all


@dataclass(frozen=True)
class Cell:
    """One number of the paper's layout, with all that is needed to find it again."""

    tower: str
    method: str
    dataset: str  # "average": over the paper's four; "": the same for all
    beta: float
    metric: str
    ours: Mapping[str, Value] = field(default_factory=dict)  # by reading; not run: empty
    paper: Value | None = None
    decimals: int = 2
    target: float | None = None  # %
    round: int | None = None


@dataclass(frozen=True)
class Line:
    """One row; a section is a block of the table, such as a tower."""

    section: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table: headings name the cells of a line, readings name what a cell holds."""

    name: str
    title: str
    corner: str  # the heading above the labels
    headings: tuple[str, ...]
    readings: Mapping[str, str]  # key in Cell.ours -> name in the text, in order
    comparable: str  # the reading that the paper prints
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    together: int = 1  # so many neighbouring columns are never torn apart
    every: tuple[Cell, ...] = ()  # what the CSV holds where that is more than what is shown

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.every or tuple(cell for line in self.lines for cell in line.cells)

    @property
    def has_paper(self) -> bool:
        return any(cell.paper for cell in self.cells)


def value_of(values: Sequence[float | None]) -> Value | None:
    """One value a run, None where a run has none, as a cell; None without a run."""
    if not values:
        return None
    found = measure(values)
    return Value(found.mean, found.std, found.count, len(values)) if found else Value(None, None, 0, len(values))


def shown(value: Value | None, decimals: int = 2) -> str:
    """Such as 91.20±0.31; (2/3) says that 2 of 3 seeds have a value, and - that nothing was run."""
    if value is None:
        return "-"
    if value.mean is None:
        return "not reached"
    spread = "" if value.std is None else f"±{value.std:.{decimals}f}"
    partial = f" ({value.seeds}/{value.runs})" if value.seeds < value.runs else ""
    return f"{value.mean:.{decimals}f}{spread}{partial}"


def shown_readings(table: PaperTable, which: Which | None) -> tuple[str, ...]:
    """All readings, or the chosen one; where the paper has a number, always the one comparable with it, last."""
    chosen: list[str] = [which] if which and which in table.readings else list(table.readings)
    beside = [table.comparable] if table.has_paper else []
    return tuple(dict.fromkeys([name for name in chosen if name not in beside] + beside))


def line_texts(table: PaperTable, line: Line, readings: Sequence[str]) -> list[str]:
    """A line's numbers, one below the other, and before them what they are, unless all have one reading."""
    paper = any(cell.paper for cell in line.cells)
    names = [table.readings[reading] for reading in readings] + ["paper *"] * paper
    numbers = [[*(cell.ours.get(reading) for reading in readings), *[cell.paper] * paper] for cell in line.cells]
    columns = zip(numbers, line.cells, strict=True)
    texts = ["\n".join(shown(number, cell.decimals) for number in column) for column, cell in columns]
    return [line.label, *["\n".join(names)] * (len(table.readings) > 1), *texts]


def fits(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether `text_table` stays within the width: each column takes its widest line and three characters more."""
    columns = zip(headings, *rows, strict=True)
    return sum(max(len(line) for text in column for line in text.split("\n")) + 3 for column in columns) < width


def split(table: PaperTable, headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of as few tables as fit, evenly; those before the table's own headings stand in each."""
    first = len(headings) - len(table.headings)
    units = [
        list(range(start, min(start + table.together, len(headings))))
        for start in range(first, len(headings), table.together)
    ]
    parts: list[list[int]] = []
    for count in range(1, len(units) + 1):
        bounds = [round(index * len(units) / count) for index in range(count + 1)]
        chunks = [chain.from_iterable(units[low:high]) for low, high in pairwise(bounds)]
        parts = [[*range(first), *chunk] for chunk in chunks]
        if all(fits([headings[i] for i in part], [[row[i] for i in part] for row in rows], width) for part in parts):
            break
    return parts


def section_tables(table: PaperTable, section: str, readings: Sequence[str], width: int) -> Iterator[Table]:
    """One block of the table, in as many parts as its width needs."""
    headings = [table.corner, *[""] * (len(table.readings) > 1), *table.headings]
    rows = [line_texts(table, line, readings) for line in table.lines if line.section == section]
    title = f"{table.title}; {section}" if section else table.title
    for part in split(table, headings, rows, width):
        yield text_table(title, [headings[i] for i in part], [[row[i] for i in part] for row in rows], "")


def text(table: PaperTable, which: Which | None = None, width: int = WIDTH) -> list[Table | Text]:
    """For a terminal: the blocks of a table, wide ones in several parts, then its notes.

    Args:
        which: the reading to show; None shows all. The paper's number stands below the reading it can be compared with.
    """
    readings = shown_readings(table, which)
    sections = dict.fromkeys(line.section for line in table.lines)
    tables = [part for section in sections for part in section_tables(table, section, readings, width)]
    return [*tables, Text("".join(f"- {note}\n" for note in table.notes))]


def csv_rows(table: PaperTable) -> Iterator[dict[str, object]]:
    """One row a cell and reading that holds a number, ours or the paper's; None is left empty."""
    nothing = Value(None, None, 0, 0)
    for cell in table.cells:
        for reading in table.readings:
            paper = cell.paper if reading == table.comparable else None
            if reading not in cell.ours and paper is None:
                continue
            ours = cell.ours.get(reading, nothing)
            numbers = (
                ours.mean,
                ours.std,
                ours.seeds,
                *((paper.mean, paper.std) if paper else (None, None)),
                ours.runs,
            )
            address = (table.name, cell.tower, cell.method, cell.dataset, cell.beta, cell.metric, reading)
            yield dict(zip(COLUMNS, (*address, *numbers, cell.target, cell.round), strict=True))


def csv_text(tables: Iterable[PaperTable]) -> str:
    """All tables as one long table, full precision. A paper's number stands in the row it can be compared with.

    `which` is a reading; in Tables V and VI it is what the target was judged on (test, validation), in Fig. 2 "round".
    `seeds` have a value, of `runs` in all; columns that do not apply are empty.
    """
    rows = (tuple(row.values()) for table in tables for row in csv_rows(table))
    return names.csv_text([COLUMNS, *rows])
