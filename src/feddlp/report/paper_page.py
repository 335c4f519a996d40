"""The paper's tables as sections of the page: one grid a tower, all notes below, and Fig. 2 as lines too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from feddlp.report import plots
from feddlp.report.blocks import Figure, Grid, GridRow, Section, Table, curve_rows, line_legend
from feddlp.report.measures import Curve
from feddlp.report.paper_forms import Cell, Line, PaperTable, Value, shown, shown_readings
from feddlp.report.plots import Style
from feddlp.report.readings import Measure

Styles = Mapping[str, Style]
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
    name = f"paper-{table.name}"
    grids = list(table_grids(table, name))
    grids[-1] = replace(grids[-1], notes=table.notes)
    lead = BESIDE if table.has_paper else ALONE
    return Section(name, table.title, lead, (*figures(table, name, styles), *grids))


def table_grids(table: PaperTable, name: str) -> Iterator[Grid]:
    """One grid a block of the table, such as a tower."""
    named = len(table.readings) > 1
    head = (table.corner, *["reading"] * named, *map(one_line, table.headings))
    sections = dict.fromkeys(line.section for line in table.lines)
    for place, part in enumerate(sections, 1):
        lines = [line for line in table.lines if line.section == part]
        groups = tuple((one_line(line.label), tuple(grid_rows(table, line))) for line in lines)
        caption = f"{table.title}; {part}" if part else table.title
        yield Grid(f"{name}-{place}", caption, head, groups, named)


def grid_rows(table: PaperTable, line: Line) -> Iterator[GridRow]:
    """Ours by reading, and below the comparable one the paper's."""
    for reading in shown_readings(table, None):
        cells = tuple(shown(cell.ours.get(reading), cell.decimals) for cell in line.cells)
        yield GridRow(table.readings[reading], cells)
    if any(cell.paper for cell in line.cells):
        yield GridRow("paper *", tuple(shown(cell.paper, cell.decimals) for cell in line.cells), paper=True)


def one_line(text: str) -> str:
    return " ".join(text.split())


def figures(table: PaperTable, name: str, styles: Styles) -> Iterator[Figure]:
    """A drawing a data set, of a table that has a number for every round."""
    by_round = [cell for cell in table.every if cell.round is not None]
    labels = {cell.method: one_line(line.label) for line in table.lines for cell in line.cells}
    for place, dataset in enumerate(dict.fromkeys(cell.dataset for cell in by_round), 1):
        cells = [cell for cell in by_round if cell.dataset == dataset]
        curves = [curve for method in labels if (curve := by_round_curve(cells, method, labels[method])).points]
        if curves:
            yield figure(f"{name}-lines-{place}", f"{table.title}; {dataset}", curves, styles)


def by_round_curve(cells: Sequence[Cell], method: str, label: str) -> Curve:
    own = [cell for cell in cells if cell.method == method]
    y = tuple(measured(cell.ours.get("round")) for cell in own)
    return Curve(label, method, tuple(float(cell.round or 0) for cell in own), y)


def measured(value: Value | None) -> Measure | None:
    return None if value is None or value.mean is None else Measure(value.mean, value.std, value.seeds)


def figure(name: str, caption: str, curves: Sequence[Curve], styles: Styles) -> Figure:
    svg = plots.lines(curves, styles, "round", "test accuracy, %", name, f"{name}-caption", wide=True)
    head = ("Round", *(curve.label for curve in curves))
    data = Table(f"{name}-data", "Test accuracy in % by round", head, curve_rows(curves))
    text = f"{caption}. The band is ± one standard deviation over seeds, where there are several."
    return Figure(name, text, Markup(svg), data, line_legend(curves, styles), wide=True)
