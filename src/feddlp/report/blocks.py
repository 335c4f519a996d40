"""What a section of the page is made of: tables, figures, and a line where something is missing.

Nothing here is markup but the drawings; the template escapes every other text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from feddlp.report import plots
from feddlp.report.measures import Curve
from feddlp.report.plots import Scale, Style
from feddlp.report.readings import ABSENT, Measure, shown

Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """The first column names the row; the others are numbers unless words is set."""

    id: str
    caption: str
    head: tuple[str, ...]
    rows: Cells
    notes: tuple[str, ...] = ()
    words: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing with its legend (swatch, label) and its data."""

    id: str
    caption: str
    svg: Markup
    data: Table
    legend: tuple[tuple[Markup, str], ...] = ()
    wide: bool = False
    kind: str = "figure"


@dataclass(frozen=True)
class Missing:
    """One line that says what is not there, and why."""

    text: str
    kind: str = "missing"


@dataclass(frozen=True)
class Listing:
    """A long text behind its title."""

    title: str
    text: str
    kind: str = "listing"


@dataclass(frozen=True)
class Grid:
    """A table in which one label stands before several rows; without names of the rows, each label has one."""

    id: str
    caption: str
    head: tuple[str, ...]
    groups: Sequence[tuple[str, Mapping[str, Sequence[str]]]]  # label -> name of the row -> cells
    named: bool
    notes: tuple[str, ...] = ()
    kind: str = "grid"


Blocks = Sequence[Table | Figure | Missing | Listing | Grid]


def line_legend(curves: Sequence[Curve], styles: Mapping[str, Style]) -> tuple[tuple[Markup, str], ...]:
    return tuple((styles[c.method].swatch(c.dash, not c.level), c.label) for c in curves)


def dot_legend(methods: Sequence[str], styles: Mapping[str, Style]) -> tuple[tuple[Markup, str], ...]:
    bar = plots.swatch('<path d="M17 0V14" style="stroke:var(--ink);stroke-width:2.2"/>')
    return (*((styles[m].swatch(line=None), m) for m in methods), (bar, "mean over clients"))


def scale_legend(scale: Scale, unit: str) -> tuple[tuple[Markup, str], ...]:
    swatch = Markup('<span class="shade" style="background:var(--{})"></span>')
    return tuple((swatch.format(scale.shade(level)), f"{text} {unit}") for level, text in enumerate(scale.labels()))


def line_figure(
    name: str, caption: str, title: str, curves: Sequence[Curve], styles: Mapping[str, Style],
    y: str = "test accuracy, %", *, wide: bool = True, log: bool = False,
) -> Figure:  # fmt: skip
    """Curves over the rounds; `title` is that of their data."""
    svg = plots.lines(curves, styles, "round", y, name, log=log, wide=wide)
    data = Table(f"{name}-data", title, ("Round", *(curve.label for curve in curves)), curve_rows(curves))
    return Figure(name, caption, svg, data, line_legend(curves, styles), wide)


def curve_rows(curves: Sequence[Curve]) -> Cells:
    """A row for each x of any curve; levels stand in every row."""
    places = sorted({x for curve in curves if not curve.level for x in curve.x}) or [curves[0].x[0]]
    found = [dict.fromkeys(places, c.y[0]) if c.level else dict(zip(c.x, c.y, strict=True)) for c in curves]
    return [[f"{x:g}", *(short(values.get(x)) for values in found)] for x in places]


def short(value: Measure | None) -> str:
    """Small numbers, such as losses, need digits that accuracies do not."""
    return shown(value, 2 if value is None or abs(value.mean) >= 10 else 4)


def joined(values: Sequence[object]) -> str:
    """ "2, 3" of distinct values in order"""
    return ", ".join(map(str, dict.fromkeys(values))) or ABSENT
