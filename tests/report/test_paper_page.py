"""The paper's tables on the page: every number in its place, the paper's set apart, nothing lost."""

from __future__ import annotations

import pytest
from page_reader import Page
from records_factory import make_run
from test_page import HOSTILE, check
from test_paper import everything, run

from feddlp.records import RunFolder
from feddlp.report.page import render, write_report
from feddlp.report.paper import TABLES, build
from feddlp.report.paper_forms import PaperTable, shown
from feddlp.report.paper_numbers import Key


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunFolder]:
    return [make_run(tmp_path_factory.mktemp("runs"), methods=("local", "feddlp"), rounds=2)]


@pytest.fixture(scope="module")
def tables() -> list[PaperTable]:
    return [build(name, everything(name), comparable=True) for name in TABLES]


@pytest.fixture(scope="module")
def source(runs, tables) -> str:
    return render(runs, tables)


@pytest.fixture(scope="module")
def page(source) -> Page:
    return check(source)


def test_the_tables_are_the_first_chapter_and_the_runs_follow(page, tables):
    assert page.text("h2")[:3] == ["The paper's tables", "Key finding", "What this is about"]
    assert page.text("h3")[: len(tables)] == [table.title for table in tables]
    assert {"#paper", *(f"#paper-{name}" for name in TABLES)} <= set(page.values("href"))
    assert page.table("s1-accuracy-table")


def test_without_tables_nothing_is_added(runs, source):
    plain = render(runs)
    assert "The paper's tables" not in plain
    assert render(runs, []) == plain
    assert source.count("<h2") == plain.count("<h2") + 1


@pytest.mark.parametrize("name", TABLES)
def test_every_number_stands_in_its_row_and_column(page, tables, name):
    table = next(one for one in tables if one.name == name)
    sections = list(dict.fromkeys(line.section for line in table.lines))
    expected = {}
    for line in table.lines:
        where = f"paper-{name}-{sections.index(line.section) + 1}", " ".join(line.label.split())
        for key, reading in table.readings.items():
            numbers = [shown(cell.ours.get(key), cell.decimals) for cell in line.cells]
            expected[*where, reading if len(table.readings) > 1 else ""] = numbers
        if any(cell.paper for cell in line.cells):
            expected[*where, "paper *"] = [shown(cell.paper, cell.decimals) for cell in line.cells]
    grids = [f"paper-{name}-{place}" for place in range(1, len(sections) + 1)]
    found = {(grid, *key): cells for grid in grids for key, cells in page.grid(grid).items()}
    assert found == expected


def test_columns_have_their_headings(page, tables):
    heads = set(page.text("th"))
    assert {" ".join(heading.split()) for table in tables for heading in table.headings} <= heads
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row", "rowgroup"}
    regions = [attributes.get("aria-labelledby") for attributes in page.all("div") if attributes.get("tabindex") == "0"]
    assert {"paper-table1-1-caption", "paper-table1-2-caption", "paper-fig2-1-caption"} <= set(regions)


def test_the_papers_numbers_are_set_apart_by_more_than_colour(page, source):
    printed = [index for index, (_, attributes) in enumerate(page.elements) if attributes.get("class") == "printed"]
    texts = [" ".join(page.texts[index].split()) for index in printed]
    assert len(printed) == source.count("paper *</th>") > 50
    assert all("paper *" in text for text in texts)
    assert "font-style: italic" in source.split(".printed > td")[1].split("}")[0]
    assert "box-shadow" in source.split(".grid .printed > th.reading {")[1].split("}")[0]


def test_below_the_comparable_reading_and_no_other(page):
    rows = [reading for label, reading in page.grid("paper-table1-1") if label == "FedDLP"]
    assert rows == ["final", "chosen", "best *", "paper *"]


def test_all_notes_stand_below_their_table(page, tables):
    for table in tables:
        name = f"paper-{table.name}"
        (place,) = [i for i, (_, attributes) in enumerate(page.elements) if attributes.get("aria-labelledby") == name]
        inside = [i for i in range(place, len(page.elements)) if page.within(i, place)]
        last = max(i for i in inside if page.elements[i][0] == "table")
        notes = [page.texts[i] for i in inside if page.elements[i][0] == "li" and i > last]
        assert notes == list(table.notes)


def test_the_figure_is_drawn_by_data_set_with_its_numbers(runs):
    results = {
        Key("local", "image", "pets", 0.1): [run(50, 60, 70, seed=0), run(52, 64, seed=1)],
        Key("sora_local", "image", "pets", 0.1): [run(40, 45, 48)],
        Key("local", "image", "digits", 0.1): [run(90, 91)],
    }
    page = check(render(runs, [build("fig2", results, comparable=False)]))
    assert page.table("paper-fig2-lines-1-data") == {
        "1": {"Local": "51.00 ± 1.41", "SoRA, local": "40.00"},
        "2": {"Local": "62.00 ± 2.83", "SoRA, local": "45.00"},
        "3": {"Local": "70.00", "SoRA, local": "48.00"},
    }
    assert page.table("paper-fig2-lines-2-data") == {"1": {"Local": "90.00"}, "2": {"Local": "91.00"}}
    captions = page.text("figcaption")
    assert "; pets." in captions[0]
    assert "; digits." in captions[1]


def test_nothing_run_is_a_table_of_dashes(runs):
    page = check(render(runs, [build(name, {}, comparable=False) for name in TABLES]))
    for name in TABLES:
        cells = [cell for row in page.grid(f"paper-{name}-1").values() for cell in row]
        assert set(cells) == {"-"}
    assert not [figure for figure in page.all("figure") if str(figure.get("id")).startswith("paper-")]


def test_hostile_text_stays_text(runs):
    results = {Key("local", "image", HOSTILE, 0.1): [run(50, 60)]}
    source = render(runs, [build("fig2", results, comparable=False), build("table1", results, comparable=False)])
    assert HOSTILE in check(source).text("th")
    assert "<script" not in source


def test_the_file_holds_the_tables(runs, tables, source, tmp_path):
    write_report(runs, tmp_path / "report.html", tables)
    assert (tmp_path / "report.html").read_text("utf-8") == source
