"""Plots as inline SVG: what they show, in whose colours, and that many can share a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.report.measures import Curve
from feddlp.report.plots import WIDTH, Scale, Style, dots, heat_map, lines, plain, scale
from feddlp.report.readings import Measure, measure

STYLES = {"flora": Style(0), "feddlp": Style(1)}
VARIABLE = re.compile(r"var\(--([\w-]+)\)")


def line(method: str = "flora", values: tuple[float, ...] = (50, 70, 90), **options: object) -> Curve:
    x = tuple(range(1, len(values) + 1))
    return Curve(method, method, x, tuple(Measure(value, 2.0, 3) for value in values), **options)  # type: ignore[arg-type]


def drawn(curves: list[Curve], prefix: str = "p") -> ET.Element:
    return ET.fromstring(lines(curves, STYLES, "round", "accuracy", prefix))


def mapped(values: list[list[int]], levels: Scale, names: str = "abcdefghijklmnopqrstuvwxyz" * 10) -> ET.Element:
    rows, columns = [f"row {n}" for n in range(len(values))], list(names[: len(values[0])])
    return ET.fromstring(heat_map(values, rows, columns, levels, "class", "m"))


def attributes(root: ET.Element, name: str) -> list[str]:
    return [value for node in root.iter() if (value := node.get(name))]


def texts(root: ET.Element) -> list[str]:
    return [node.text or "" for node in root.iter("text")]


def coordinates(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def line_of(root: ET.Element, variable: str) -> list[tuple[float, float]]:
    """The corners of the curve in this colour."""
    styles = [(node.get("d", ""), node.get("style", "")) for node in root.iter("path")]
    (path,) = [path for path, style in styles if f"stroke: var(--{variable})" in style and f"width: {WIDTH}" in style]
    return coordinates(path)


@pytest.fixture
def plot() -> ET.Element:
    return drawn([line(), line("feddlp", (60, 60, 60))])


def test_ids_carry_the_prefix_and_every_reference_resolves(plot):
    ids = attributes(plot, "id")
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("p-") for name in ids)
    used = [
        name
        for key in ("href", "clip-path")
        for text in attributes(plot, key)
        for name in re.findall(r"#([\w-]+)", text)
    ]
    assert set(used) == set(ids)


def test_two_plots_share_no_id():
    first, second = (set(attributes(drawn([line()], prefix), "id")) for prefix in ("p", "q"))
    assert not first & second


def test_colours_are_the_pages_variables_alone(plot):
    text = ET.tostring(plot, encoding="unicode")
    assert "#f1a0" not in text
    styles = " ".join(attributes(plot, "style"))
    assert not re.search(r"#[0-9a-f]{6}\b", styles)
    assert {"c0", "c1", "ink", "soft", "grid"} <= set(VARIABLE.findall(styles))


def test_nothing_is_loaded_and_no_style_sheet_leaks(plot):
    text = ET.tostring(plot, encoding="unicode")
    assert "http" not in text
    assert "<style" not in text
    assert "font-family" not in text


def test_the_same_data_give_the_same_bytes_whatever_the_readers_settings():
    first = lines([line()], STYLES, "x", "y", "p")
    with matplotlib.rc_context({"axes.linewidth": 9, "xtick.direction": "in", "svg.hashsalt": None, "font.size": 30}):
        assert lines([line()], STYLES, "x", "y", "p") == first


def test_the_plot_is_an_image_named_by_its_caption(plot):
    assert plot.get("role") == "img"
    assert plot.get("aria-labelledby") == "p-caption"


def test_a_line_goes_through_its_values(plot):
    rising, flat = line_of(plot, "c0"), line_of(plot, "c1")
    assert len(rising) == 3
    steps = [a[1] - b[1] for a, b in pairwise(rising)]
    assert steps[0] == pytest.approx(steps[1], abs=0.02)  # 50, 70, 90: even steps, upwards
    assert steps[0] > 0
    assert rising[0][1] - flat[0][1] == pytest.approx(steps[0] / 2, abs=0.02)  # 60 lies half a step above 50


def test_a_level_crosses_the_whole_plot():
    root = drawn([line(), Curve("feddlp", "feddlp", (1.0,), (measure([60.0]),), level=True)])
    ends, curve = line_of(root, "c1"), line_of(root, "c0")
    assert [x for x, _ in ends] == [curve[0][0], curve[-1][0]]
    assert ends[0][1] == ends[1][1]


def test_the_band_is_one_standard_deviation_to_each_side():
    """At 50 ± 2 and 90 ± 2 the band is a tenth as high as the line rises."""
    root = drawn([line(values=(50, 90))])
    (name,) = [node.get("href", "") for node in root.iter("use") if "fill-opacity" in node.get("style", "")]
    (band,) = [node for node in root.iter("path") if node.get("id") == name[1:]]
    left = min(x for x, _ in coordinates(band.get("d", "")))
    heights = [y for x, y in coordinates(band.get("d", "")) if x == left]
    rise = line_of(root, "c0")
    assert max(heights) - min(heights) == pytest.approx((rise[0][1] - rise[1][1]) / 10, abs=0.05)


def test_an_axis_in_percent_ends_at_a_hundred():
    full = [line(values=(100, 100))]
    percent, other = (texts(ET.fromstring(lines(full, STYLES, "x", label, "p"))) for label in ("accuracy, %", "n"))
    assert "100.0" in percent
    assert "101.0" not in percent
    assert "101.0" in other


def test_one_seed_has_no_band():
    root = drawn([Curve("flora", "flora", (1.0, 2.0), (measure([1.0]), measure([2.0])))])
    assert "fill-opacity" not in ET.tostring(root, encoding="unicode")


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (float("inf"), 1.0), (5.0,)])
def test_what_training_may_end_in_can_be_drawn(values):
    curve = Curve("flora", "flora", tuple(range(1, len(values) + 1)), tuple(measure([value]) for value in values))
    ET.fromstring(lines([curve], STYLES, "round", "loss", "p", log=True))


def test_a_dot_for_every_client_and_a_bar_at_the_mean():
    groups = {
        "flora": {0: Measure(50, None, 1), 1: Measure(50, None, 1), 7: Measure(80, None, 1)},
        "feddlp": {0: Measure(70, None, 1)},
    }
    root = ET.fromstring(dots(groups, STYLES, "accuracy", "p"))
    marks = Counter(
        VARIABLE.findall(node.get("style", ""))[0] for node in root.iter("use") if "var(--c" in node.get("style", "")
    )
    assert marks == {"c0": 3, "c1": 1}
    places = [
        (float(node.get("x", 0)), float(node.get("y", 0)))
        for node in root.iter("use")
        if "var(--c0)" in node.get("style", "")
    ]
    bars = [coordinates(node.get("d", ""))[0] for node in root.iter("path") if "2.2" in node.get("style", "")]
    bar = min(bars, key=lambda corner: corner[1])[0]  # the upper row's
    assert bar == pytest.approx(sum(x for x, _ in places) / 3, abs=0.05)
    assert len(set(places)) == 3  # equal clients stay apart
    assert {"flora", "feddlp"} <= set(texts(root))


@given(st.integers(0, 5000), st.booleans())
def test_a_scale_puts_every_number_in_the_class_that_names_it(maximum, geometric):
    levels = scale(maximum, geometric)
    labels = [re.sub(",", "", label).split("–") for label in levels.labels()]
    assert len(labels) <= 8
    for value in {0, 1, 2, maximum // 3, maximum // 2, max(0, maximum - 1), maximum}:
        if value <= maximum:
            low, high = labels[levels.level(value)][0], labels[levels.level(value)][-1]
            assert int(low) <= value <= int(high)


@given(st.integers(1, 12), st.integers(1, 60), st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_the_area_of_a_shade_is_its_number_of_cells(rows, columns, draw):
    values = [[draw.choice((0, 0, 1, 2, 3)) for _ in range(columns)] for _ in range(rows)]
    root = mapped(values, scale(3))
    expected = {shade: sum(row.count(value) for row in values) for value, shade in ((1, "h1"), (2, "h4"), (3, "h7"))}
    for shade, cells in expected.items():
        boxes = [
            node.get("d", "").count("z")
            for node in root.iter("path")
            if f"fill: var(--{shade})" in node.get("style", "")
        ]
        assert sum(boxes) == cells


def test_in_a_dense_map_neighbours_are_joined_and_cover_the_same():
    values = [[1, 1, 1, 0, 1] * 20 for _ in range(30)]
    root = mapped(values, scale(1), names="x" * 100)
    (path,) = [node.get("d", "") for node in root.iter("path") if "fill: var(--h7)" in node.get("style", "")]
    boxes = [coordinates(box) for box in path.split("z") if box.strip()]
    assert len(boxes) == 30 * 21  # 1110 1111 0 ...: runs of three, then of four, and one at the end
    (ground,) = [coordinates(node.get("d", "")) for node in root.iter("path") if "var(--cell)" in node.get("style", "")]
    share = sum(area(box) for box in boxes) / area(ground)
    assert share == pytest.approx(0.8, abs=0.01)


def area(box: list[tuple[float, float]]) -> float:
    x, y = zip(*box, strict=True)
    return (max(x) - min(x)) * (max(y) - min(y))


def test_numbers_stand_in_the_cells_of_a_small_map_only():
    assert texts(mapped([[0, 7]], scale(7))).count("7") == 1
    assert "7" not in texts(mapped([[7] * 30], scale(7)))


def test_the_first_row_is_on_top():
    root = mapped([[1, 0], [0, 2]], scale(2))
    tops = {
        shade: min(y for _, y in coordinates(node.get("d", "")))
        for node in root.iter("path")
        for shade in VARIABLE.findall(node.get("style", ""))
        if shade in ("h1", "h7")
    }
    assert tops["h1"] < tops["h7"]


def test_names_are_text_however_hostile():
    names = ["<script>alert(1)</script>", "$x^2$ 猫", "#f1a001 \x00\n&amp;"]
    svg = heat_map([[1, 0, 0]], ["r"], names, scale(1), "", "m")
    assert "<script" not in svg
    shown = texts(ET.fromstring(svg))
    assert [name for name in map(plain, names) if name not in shown] == []


@given(st.text(max_size=80))
def test_a_label_is_one_short_printable_line(text):
    label = plain(text)
    assert len(label) <= 28
    assert label.isprintable() or label == ""


def test_no_two_methods_look_alike():
    looks = {(style.colour, style.marker, style.dash()) for style in map(Style, range(32))}
    assert len(looks) == 32
    assert len({Style(n).swatch() for n in range(32)}) == 32
    assert all(Style(n).marker != Style(n + 1).marker and Style(n).dash() != Style(n + 1).dash() for n in range(7))
