"""Plots as inline SVG: drawn by matplotlib, coloured by the page.

Text stays text, colours are the page's CSS variables (so light and dark are one drawing), and every id carries the
figure's own prefix, so that many plots can share a page. The same data give the same bytes. One unit is one CSS pixel.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from feddlp.report.measures import Curve
from feddlp.report.readings import Measure

VARIABLES = ("ink", "soft", "grid", "cell", *(f"c{i}" for i in range(8)), *(f"h{i}" for i in range(1, 8)), "on-h")
MARKERS = "os^DvPX*"
SHAPES = (  # the same, for the legend, about the middle of a box of 34 x 14
    "M17 3a4 4 0 1 0 .01 0z", "M13 3h8v8h-8z", "M17 2.5L21.5 11h-9z", "M17 2L22 7 17 12 12 7z", "M17 11.5L12.5 3h9z",
    "M15.5 2.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", "M13 5l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z",
    "M17 1.5l1.5 3.7 4 .3-3.1 2.5 1 3.9L17 9.800l-3.400 2.100 1-3.900L11.500 5.500l4-.3z",
)  # fmt: skip
DASHES: tuple[tuple[float, ...] | None, ...] = (None, (4, 1.5), (1, 1.2), (5, 1.2, 1, 1.2))
WIDTH = 1.8
HEADROOM = 2500  # cells up to which a gap is drawn between them


@dataclass(frozen=True)
class Style:
    """How a method looks on every plot; colour is never the only cue."""

    index: int

    @property
    def colour(self) -> str:
        return colour(f"c{self.index % 8}")

    @property
    def marker(self) -> str:
        return MARKERS[self.index % 8]

    def dash(self, line: int = 0) -> tuple[float, ...] | None:
        return DASHES[(self.index + self.index // 8 + line) % 4]

    def swatch(self, line: int | None = 0, marker: bool = True) -> Markup:
        """A piece of the line for the legend, as SVG; line None is the marker alone."""
        fill = f"var(--c{self.index % 8})"
        dashes = " ".join(f"{length * WIDTH:g}" for length in self.dash(line or 0) or ())
        look = f"fill:none;stroke:{fill};stroke-width:{WIDTH};stroke-dasharray:{dashes or 'none'}"
        parts = [f'<path d="M0 7H34" style="{look}"/>'] if line is not None else []
        parts += [f'<path d="{SHAPES[self.index % 8]}" style="fill:{fill}"/>'] if marker else []
        return swatch("".join(parts))


def swatch(content: str) -> Markup:
    """A small drawing for the legend."""
    box = '<svg class="swatch" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">'
    return Markup(f"{box}{content}</svg>")


@dataclass(frozen=True)
class Scale:
    """Classes of values for a heat map: starts[i] is the lowest value of level i + 1; what is lower is level 0."""

    starts: tuple[float, ...]
    maximum: float

    def level(self, value: float) -> int:
        return bisect_right(self.starts, value)

    def shade(self, level: int) -> str:
        """One of the page's shades: the highest level has the strongest, h7, however many there are."""
        levels = len(self.starts)
        return f"h{7 if levels == 1 else 1 + round((level - 1) * 6 / (levels - 1))}" if level else "cell"

    def labels(self) -> list[str]:
        """What each level holds, level 0 first; whole numbers."""
        ends = [start - 1 for start in self.starts[1:]] + [self.maximum] * bool(self.starts)
        spans = zip(self.starts, ends, strict=True)
        return ["0"] + [f"{low:,.0f}" if low == high else f"{low:,.0f}–{high:,.0f}" for low, high in spans]


def scale(maximum: int, geometric: bool = True) -> Scale:
    """At most seven levels above zero: every number its own, or steps that grow (geometric) or are even."""
    if maximum <= 7:
        return Scale(tuple(range(1, maximum + 1)), maximum)
    space = np.geomspace(1, maximum + 1, 8) if geometric else np.linspace(1, maximum + 1, 8)
    return Scale(tuple(sorted({round(float(value)) for value in space[:-1]})), maximum)


def colour(variable: str) -> str:
    """A stand-in for a CSS variable, exchanged for it after drawing."""
    return f"#f1a0{VARIABLES.index(variable):02x}"


@contextmanager
def drawing() -> Iterator[None]:
    """The look of all plots, and nothing of the reader's own matplotlib settings."""
    ink, soft = colour("ink"), colour("soft")
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "feddlp", "font.size": 12, "text.color": ink,
        "axes.edgecolor": soft, "axes.labelcolor": ink, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": colour("grid"), "grid.linewidth": 0.8,
        "xtick.color": soft, "ytick.color": soft, "xtick.labelcolor": ink, "ytick.labelcolor": ink,
        "xtick.labelsize": 11, "ytick.labelsize": 11, "text.parse_math": False, "axes.unicode_minus": True,
    }  # fmt: skip
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # the browser's fonts have it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def plain(text: str, length: int = 28) -> str:
    """One short line of printable characters: what a tick label has room for."""
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))
    return text if len(text) <= length else text[: length - 1] + "…"


def finish(figure: Figure, prefix: str, least: float) -> Markup:
    """The drawing as an <svg> element named by its caption; never narrower than `least` pixels."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    box = root.get("viewBox", "0 0 1 1")
    clean(root, prefix)
    width = float(box.split()[2])
    root.attrib = {
        "class": "plot", "role": "img", "aria-labelledby": f"{prefix}-caption", "viewBox": box,
        "style": f"min-width:{least:.0f}px;max-width:{width:.0f}px",
    }  # fmt: skip
    return Markup(ET.tostring(root, encoding="unicode"))


def clean(root: ET.Element, prefix: str) -> None:
    """Drop metadata, style sheets and unused ids; shorten numbers; put the page's colours in; make ids unique."""
    used = set(re.findall(r"#([\w.]+)", " ".join(value for node in root.iter() for value in node.attrib.values())))
    for node in list(root.iter()):
        for child in [child for child in node if child.tag.endswith(("}metadata", "}style"))]:
            node.remove(child)
        node.tag, node.tail = node.tag.rpartition("}")[2], None
        if node.tag != "text":
            node.text = None
        attributes = {key.rpartition("}")[2]: value for key, value in node.attrib.items()}
        node.attrib = {k: tidy(k, value, prefix) for k, value in attributes.items() if k != "id" or value in used}


def tidy(key: str, value: str, prefix: str) -> str:
    """One attribute of the drawing."""
    if key == "id":
        return f"{prefix}-{value}"
    if key in ("href", "clip-path"):
        return value.replace("#", f"#{prefix}-")
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        return re.sub("#f1a0([0-9a-f]{2})", lambda found: f"var(--{VARIABLES[int(found[1], 16)]})", value)
    value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(value.split())


def draw_curve(axes: Axes, curve: Curve, style: Style, ends: tuple[float, float]) -> None:
    """A line with its band; a single point is a level all across the plot."""
    x, y = [x for x, _ in curve.points], [value.mean for _, value in curve.points]
    line: Any = {"color": style.colour, "linewidth": WIDTH, "linestyle": (0, style.dash(curve.dash))}
    if curve.level:
        axes.plot(ends, y[:1] * 2, **line)
        x, y, bands = list(ends), y[:1] * 2, [curve.points[0][1].std] * 2
    else:
        step = max(1, -(-len(x) // 12))
        axes.plot(x, y, marker=style.marker, markersize=6, markevery=step, **line)
        bands = [value.std for _, value in curve.points]
    low, high = zip(*((mean - (std or 0), mean + (std or 0)) for mean, std in zip(y, bands, strict=True)), strict=True)
    if any(bands):
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)


def lines(
    curves: Sequence[Curve], styles: Mapping[str, Style], x_label: str, y_label: str, prefix: str,
    whole: bool = True, log: bool = False, wide: bool = False,
) -> Markup:  # fmt: skip
    """Curves with bands of ± one standard deviation over seeds."""
    with drawing():
        figure, axes = canvas(760 if wide else 540, 330)
        across = [x for curve in curves if not curve.level for x, _ in curve.points] or [0, 1]
        ends = (min(across), max(across)) if max(across) > min(across) else (across[0] - 0.5, across[0] + 0.5)
        for curve in curves:
            draw_curve(axes, curve, styles[curve.method], ends)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if y_label.endswith("%") and axes.get_ylim()[1] > 100.5:
            axes.set_ylim(top=100.5)
        if whole and min(across) == max(across):
            axes.set_xlim(*ends)
            axes.set_xticks(across[:1])
        elif whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return finish(figure, prefix, 560 if wide else 440)


def dots(groups: Mapping[str, Mapping[int, Measure]], styles: Mapping[str, Style], x_label: str, prefix: str) -> Markup:
    """A row per method: a dot per client, spread a little so that equal ones stay apart, and a bar at the mean."""
    with drawing():
        figure, axes = canvas(760, 70 + 46 * len(groups))
        for place, (method, clients) in enumerate(groups.items()):
            values = [value.mean for value in clients.values()]
            lift = [place + 0.56 * ((0.5 + client * 0.618034) % 1 - 0.5) for client in clients]
            style = styles[method]
            axes.plot(values, lift, linestyle="", marker=style.marker, markersize=6, color=style.colour, alpha=0.75)
            axes.plot([np.mean(values)] * 2, [place - 0.38, place + 0.38], color=colour("ink"), linewidth=2.2)
        axes.set_yticks(range(len(groups)), [plain(method) for method in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        return finish(figure, prefix, 560)


def heat_map(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], levels: Scale,
    x_label: str, prefix: str,
) -> Markup:  # fmt: skip
    """A cell per row and column, shaded by level; numbers stand in the cells where there is room."""
    height, width = 26 if len(rows) <= 12 else 18 if len(rows) <= 40 else 12, max(9.0, min(46.0, 900 / len(columns)))
    left = 30 + 6.4 * max(len(plain(name)) for name in rows)
    top = 40 + 6.4 * max(len(plain(name)) for name in columns)
    with drawing():
        figure, axes = canvas(left + width * len(columns) + 12, top + height * len(rows) + 12)
        grid = np.asarray([[levels.level(value) for value in row] for row in values])
        axes.add_patch(Rectangle((0, 0), len(columns), len(rows), facecolor=colour("cell"), linewidth=0))
        for level in range(1, len(levels.starts) + 1):
            shade(axes, grid == level, colour(levels.shade(level)))
        if len(columns) <= 20 and len(rows) <= 40:
            for y, x in np.argwhere(grid).tolist():
                ink = colour("on-h" if levels.shade(grid[y, x]) in ("h5", "h6", "h7") else "ink")
                axes.text(x + 0.5, y + 0.5, f"{values[y][x]:g}", ha="center", va="center", fontsize=10.5, color=ink)
        frame(axes, rows, columns, x_label, (height, width))
        return finish(figure, prefix, min(left + width * len(columns), 1060) * 0.9)


def shade(axes: Axes, cells: Any, fill: str) -> None:
    """All cells of one level as one path; neighbours in a row are joined where the map is dense."""
    gap = 0.03 if cells.size <= HEADROOM else 0.0
    corners: list[list[int]] = []
    for row, column in np.argwhere(cells).tolist():
        if not gap and corners and corners[-1][0] == row and corners[-1][2] == column:
            corners[-1][2] = column + 1
        else:
            corners.append([row, column, column + 1])
    if not corners:
        return
    boxes = [
        [(a + gap, y + gap), (b - gap, y + gap), (b - gap, y + 1 - gap), (a + gap, y + 1 - gap), (0, 0)]
        for y, a, b in corners
    ]
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * len(boxes)
    axes.add_patch(PathPatch(Path(np.concatenate(boxes), codes), facecolor=fill, linewidth=0))


def frame(axes: Axes, rows: Sequence[str], columns: Sequence[str], x_label: str, size: tuple[float, float]) -> None:
    """Names along the top and the left, the first row on top."""
    short = max(len(plain(name)) for name in columns) <= 3 and size[1] >= 20
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(np.arange(len(columns)) + 0.5, [plain(name) for name in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [plain(name) for name in rows])
    axes.tick_params(axis="y", length=0, labelsize=min(11, size[0] - 1))
    axes.tick_params(axis="x", length=0, labelsize=min(11, size[1]), rotation=0 if short else 90)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlabel(x_label)
