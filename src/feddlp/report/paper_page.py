"""The paper's tables as sections of the page: one grid a tower, all notes below, and Fig. 2 as lines too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from feddlp.report.blocks import Blocks, Figure, Grid, line_figure
from feddlp.report.measures import Curve
from feddlp.report.paper_forms import PaperTable, line_rows
from feddlp.report.plots import Style

Styles = Mapping[str, Style]


class Section(NamedTuple):
    """One of the paper's tables."""

    id: str
    title: str
    lead: str
    blocks: Blocks


BESIDE = (
    "Rows named paper *, in italics behind a bar, are the numbers that the paper prints; they stand below the reading "
    "that they may be compared with, and no other."
)
ALONE = "In the paper's layout, with our numbers alone."


def paper_sections(tables: Sequence[PaperTable], styles: Styles) -> tuple[Section, ...]:
    """A section a table, in the given order."""
    drawn = {cell.method for table in tables for cell in table.every if cell.round is not None}
    missing = sorted(drawn - styles.keys())
    styles = {**styles, **{method: Style(place) for place, method in enumerate(missing, len(styles))}}
    return tuple(section(table, styles) for table in tables)


def section(table: PaperTable, styles: Styles) -> Section:
    """One grid a block of the table, such as a tower, and its figures before them."""
    name = f"paper-{table.name}"
    head = (table.corner, *["reading"] * table.named, *map(one_line, table.headings))
    grids = []
    for place, (title, lines) in enumerate(table.sections(), 1):
        groups = [(one_line(line.label), line_rows(table, line)) for line in lines]
        grids.append(Grid(f"{name}-{place}", title, head, groups, table.named))
    grids[-1] = replace(grids[-1], notes=table.notes)
    lead = BESIDE if table.has_paper else ALONE
    return Section(name, table.title, lead, (*figures(table, name, styles), *grids))


def one_line(text: str) -> str:
    return " ".join(text.split())


def figures(table: PaperTable, name: str, styles: Styles) -> Iterator[Figure]:
    """A drawing a data set, of a table that has a number for every round."""
    by_round = [cell for cell in table.every if cell.round is not None]
    labels = {cell.method: one_line(line.label) for line in table.lines for cell in line.cells}
    for place, dataset in enumerate(dict.fromkeys(cell.dataset for cell in by_round), 1):
        curves = []
        for method, label in labels.items():
            own = [cell for cell in by_round if (cell.dataset, cell.method) == (dataset, method)]
            y = tuple(cell.ours.get("round") for cell in own)
            curves.append(Curve(label, method, tuple(float(cell.round or 0) for cell in own), y))
        if curves := [curve for curve in curves if curve.points]:
            caption = (
                f"{table.title}; {dataset}. The band is ± one standard deviation over seeds, where there are several."
            )
            yield line_figure(f"{name}-lines-{place}", caption, "Test accuracy in % by round", curves, styles)
