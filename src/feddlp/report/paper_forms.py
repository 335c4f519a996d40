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
from feddlp.report import readings
from feddlp.report.readings import Measure
from feddlp.report.tables import text_table

Which = Literal["final", "validation_chosen", "best_test"]
WIDTH = 100
PAPER = "paper *"
COLUMNS = (
    "table", "tower", "method", "dataset", "beta", "metric", "which", "ours_mean", "ours_std", "seeds",
    "paper_mean", "paper_std", "runs", "target", "round",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of the paper's layout, with all that is needed to find it again."""

    tower: str
    method: str
    dataset: str  # "average": over the paper's four; "": the same for all
    beta: float
    metric: str
    ours: Mapping[str, Measure] = field(default_factory=dict)  # by reading; not run: empty; count 0: not reached
    paper: Measure | None = None
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
    readings: Mapping[str, str]  # key in Cell.ours -> name in the text; the paper prints the last
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    together: int = 1  # so many neighbouring columns are never torn apart
    every: tuple[Cell, ...] = ()  # what the CSV holds where that is more than what is shown

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.every or tuple(cell for line in self.lines for cell in line.cells)

    @property
    def has_paper(self) -> bool:
        return any(cell.paper for cell in self.cells)

    @property
    def comparable(self) -> str:
        """The reading that the paper prints."""
        return list(self.readings)[-1]

    @property
    def named(self) -> bool:
        """Whether what a number is must be said."""
        return len(self.readings) > 1

    def sections(self) -> Iterator[tuple[str, list[Line]]]:
        """The title of each block, and its lines."""
        for section in dict.fromkeys(line.section for line in self.lines):
            title = f"{self.title}; {section}" if section else self.title
            yield title, [line for line in self.lines if line.section == section]


def shown(value: Measure | None, decimals: int = 2) -> str:
    """Such as 91.20±0.31; (2/3) says that 2 of 3 seeds have a value, and - that nothing was run."""
    if value is None:
        return "-"
    if not value.count:
        return "not reached"
    partial = f" ({value.count}/{value.runs})" if value.count < value.runs else ""
    return readings.shown(value, decimals).replace(" ± ", "±").replace(",", "") + partial


def line_rows(table: PaperTable, line: Line, which: Which | None = None) -> dict[str, list[str]]:
    """What the numbers of a line are -> the numbers: all readings or the chosen one, and the paper's.

    Where the table has numbers of the paper, the reading that is comparable with them is always there, and last.
    """
    chosen = [which] if which and which in table.readings else list(table.readings)
    beside = [table.comparable] if table.has_paper else []
    order = dict.fromkeys([*(name for name in chosen if name not in beside), *beside])
    rows = {table.readings[name]: [shown(cell.ours.get(name), cell.decimals) for cell in line.cells] for name in order}
    papers = {PAPER: [shown(cell.paper, cell.decimals) for cell in line.cells]}
    return rows | papers if any(cell.paper for cell in line.cells) else rows


def line_texts(table: PaperTable, line: Line, which: Which | None) -> list[str]:
    """A line's numbers, one below the other, and before them what they are, unless all have one reading."""
    rows = line_rows(table, line, which)
    texts = ["\n".join(column) for column in zip(*rows.values(), strict=True)]
    return [line.label, *["\n".join(rows)] * table.named, *texts]


def block(table: PaperTable, title: str, lines: Sequence[Line], which: Which | None, width: int) -> list[Table]:
    """A block of a table in as few parts as fit the width, evenly; labels and readings stand in each."""
    headings = [table.corner, *[""] * table.named, *table.headings]
    rows = [line_texts(table, line, which) for line in lines]
    first, step = len(headings) - len(table.headings), table.together
    units = [range(start, min(start + step, len(headings))) for start in range(first, len(headings), step)]
    parts: list[Table] = []
    for count in range(1, len(units) + 1):
        bounds = [round(index * len(units) / count) for index in range(count + 1)]
        columns = [[*range(first), *chain(*units[low:high])] for low, high in pairwise(bounds)]
        parts = [
            text_table(title, [headings[i] for i in part], [[row[i] for i in part] for row in rows], "")
            for part in columns
        ]
        if all((part.width or 0) <= width for part in parts):
            break
    return parts


def text(table: PaperTable, which: Which | None = None, width: int = WIDTH) -> list[Table | Text]:
    """For a terminal: the blocks of a table, wide ones in several parts, then its notes.

    Args:
        which: the reading to show; None shows all. The paper's number stands below the reading it can be compared with.
    """
    blocks = [part for title, lines in table.sections() for part in block(table, title, lines, which, width)]
    return [*blocks, Text("".join(f"- {note}\n" for note in table.notes))]


def csv_rows(table: PaperTable) -> Iterator[tuple[object, ...]]:
    """One row a cell and reading that holds a number, ours or the paper's; None is left empty."""
    for cell in table.cells:
        for reading in table.readings:
            ours, paper = cell.ours.get(reading), cell.paper if reading == table.comparable else None
            if ours or paper:
                address = (table.name, cell.tower, cell.method, cell.dataset, cell.beta, cell.metric, reading)
                numbers = (ours.mean, ours.std) if ours and ours.count else (None, None)
                papers = (paper.mean, paper.std) if paper else (None, None)
                seeds, runs = (ours.count, ours.runs) if ours else (0, 0)
                yield (*address, *numbers, seeds, *papers, runs, cell.target, cell.round)


def csv_text(tables: Iterable[PaperTable]) -> str:
    """All tables as one long table, full precision. A paper's number stands in the row it can be compared with.

    `which` is a reading; in Tables V and VI it is what the target was judged on (test, validation), in Fig. 2 "round".
    `seeds` have a value, of `runs` in all; columns that do not apply are empty.
    """
    return names.csv_text([COLUMNS, *(row for table in tables for row in csv_rows(table))])
