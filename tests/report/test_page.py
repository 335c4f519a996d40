"""The page: valid, self-contained, accessible, and its numbers are those of the records."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from page_reader import Page
from records_factory import edit_rows, lines, make_run, newcomers_row, pooled_test

from feddlp.errors import UserError
from feddlp.records import RunFolder
from feddlp.report.page import render, write_report

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunFolder]:
    """Two seeds, every record there is."""
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root, f"s{seed}", seed=seed, newcomers=(2, 3)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def source(runs) -> str:
    return render(runs)


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def check(source: str) -> Page:
    """Everything that must hold for any page."""
    page = Page(source)
    ids = page.values("id")
    assert source.startswith("<!DOCTYPE html>")
    assert len(set(ids)) == len(ids)
    named = " ".join(page.values("aria-labelledby", "aria-describedby", "aria-controls")).split()
    targets = [value[1:] for value in page.values("href") if value.startswith("#")]
    drawn = re.findall(r"url\(#([\w.-]+)\)", source)
    assert {*named, *targets, *drawn} <= set(ids)
    assert page.values("src", "srcset", "data", "action", "poster") == []
    assert [value for value in page.values("href") if not value.startswith("#")] == []
    assert "@import" not in source
    assert "url(h" not in source
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.elements)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    return page


def test_the_page_is_valid_self_contained_and_in_order(source):
    page = check(source)
    assert page.all("html") == [{"lang": "en"}]
    assert "http" not in source
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in page.all("meta")}
    assert page.text("h3") == [
        "Accuracy", "Costs", "Accuracy by round and by traffic", "Spread over clients", "Who holds which images",
        "Active ranks", "Training loss", "Diagnostics", "Configuration",
    ]  # fmt: skip


def test_every_figure_is_named_drawn_and_has_its_data(page):
    figures = page.all("figure")
    assert len(figures) == 7
    assert len(page.all("figcaption")) == len(figures)
    images = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert [image["aria-labelledby"] for image in images] == [f"{figure['id']}-caption" for figure in figures]
    assert page.text("summary").count("Data of this figure") == len(figures)
    for figure in figures:
        assert page.table(f"{figure['id']}-data")


def test_the_keyboard_reaches_everything(page):
    assert page.text("a")[0] == "Skip to the results"
    scrolled = [attributes for attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert scrolled
    assert all(box.get("tabindex") == "0" and box.get("aria-labelledby") for box in scrolled)
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    headings = [attributes["id"] for tag, attributes in page.elements if tag in ("h2", "h3") and "id" in attributes]
    assert {f"#{name}" for name in headings} - set(page.values("href")) == {"#s1"}  # its sections are linked instead


def test_accuracies_are_those_of_the_records(page):
    row = page.table("s1-accuracy-table")["feddlp"]
    final, chosen, best = (pooled_test("feddlp", 0, number) + 0.05 for number in (4, 2, 3))
    assert row["Final round"] == f"{final:.2f} ± 0.07"  # 91.05; a tenth apart: std 0.0707
    assert row["Validation-chosen"] == f"{chosen:.2f} ± 0.07 (r2)"
    assert row["Best test round*"] == f"{best:.2f} ± 0.07 (r3)"
    assert row["Client mean"] == f"{final - 1:.2f} ± 0.07"
    assert row["Client std"] == "3.50 ± 0.00"
    assert row["Lowest client"] == f"{final - 12:.2f} ± 0.07"
    assert row["10th percentile"] == f"{final - 7:.2f} ± 0.07"
    assert list(page.table("s1-accuracy-table")) == ["zero_shot", "local", "flora", "feddlp"]


def test_costs_are_those_of_the_records(page):
    rows = page.table("s1-costs-table")
    assert rows["feddlp"] == {
        "Trained parameters": "56,740", "Sent parameters": "18,880", "MiB per client, up + down": "6.00 ± 0.00",
        "Active ranks": "51.0 ± 0.0 of 52", "Seconds a round": "2.75 ± 0.35", "Peak memory, MiB": "840 ± 0",
    }  # fmt: skip
    assert rows["local"]["MiB per client, up + down"] == "0.00 ± 0.00"
    assert rows["zero_shot"]["Active ranks"] == "–"


def test_the_data_of_the_figures_are_those_of_the_records(page):
    rounds = page.table("s1-by-round-data")
    assert rounds["2"]["flora"] == f"{pooled_test('flora', 0, 2) + 0.05:.2f} ± 0.07"
    assert rounds["2"]["zero_shot"] == rounds["4"]["zero_shot"] == f"{pooled_test('zero_shot', 0, 1) + 0.05:.2f} ± 0.07"
    assert page.table("s1-client-dots-data")["3"]["flora"] == "65.00 ± 0.00"
    assert page.table("s1-client-dots-data")["mean"]["flora"] == "57.50"
    assert page.table("s1-rank-lines-data")["4"]["feddlp"] == "98.00 ± 0.00"
    assert page.table("s1-loss-lines-data")["2"]["feddlp: global"] == "1.5000 ± 0.0000"
    ranks = page.table("s1-ranks-3-data")["visual_projection"]
    assert (ranks["Ranks"], ranks["0"], ranks["1"]) == ("4", "0", "0")  # (4 + 12 + 0) % 6 = 4, then 5
    traffic = page.table("s1-by-traffic-data")
    assert traffic["feddlp"]["MiB so far"] == "6.000"  # the last of its rows


def test_the_partition_is_shown_with_all_three_parts(tmp_path):
    run = make_run(tmp_path, clients=2, class_names=("cat", "dog"), methods=["flora"])
    (run.path / "partition.json").write_text(
        '{"class_names": ["cat", "dog"], "newcomers": [1], "clients": [{"train": [5, 0], "validation": [1, 0],'
        ' "test": [2, 3]}, {"train": [0, 1234], "validation": [0, 0], "test": [0, 4]}]}'
    )
    table = Page(render([run])).table("s1-partition-map-data")
    assert table["client 0"] == {
        "All train": "5",
        "All validation": "1",
        "All test": "5",
        "cat": "5 / 1 / 2",
        "dog": "0 / 0 / 3",
    }
    assert table["client 1 (new)"]["All train"] == "1,234"
    assert table["client 1 (new)"]["cat"] == "–"


def test_diagnostics_and_newcomers_are_those_of_the_records(page):
    ways = page.table("s1-ways")
    assert list(ways) == ["feddlp"]
    final = pooled_test("feddlp", 0, 4) + 0.05
    assert ways["feddlp"]["Received"] == f"{final - 2:.2f} ± 0.07"
    assert "Ensemble" not in ways["feddlp"]
    assert page.table("s1-newcomers")["flora"] == {
        "New clients": "2", "Zero-shot": "60.50 ± 0.71", "As received": "70.50 ± 0.71",
        "After epoch 1": "80.50 ± 0.71", "After epoch 2": "85.50 ± 0.71",
    }  # fmt: skip


def test_the_page_tells_how_to_run_it_again(page, runs):
    code = page.text("pre")
    assert f"feddlp run {runs[0].path}/config.toml feddlp run {runs[1].path}/config.toml" in code[0]
    assert 'methods = "zero_shot, local, flora, feddlp"' in code[1]
    environment = page.table("s1-environment")
    assert environment["torch"]["Value"] == "2.13.0"
    assert environment["data"]["Value"] == "da7a"
    assert environment["configuration"]["Value"] == f"c0ffee0 ({runs[0].path}); c0ffee1 ({runs[1].path})"


def test_a_command_with_spaces_is_quoted(tmp_path):
    run = make_run(tmp_path / "my runs", "a", methods=["flora"], rounds=1)
    assert f"feddlp run '{run.path}/config.toml'" in Page(render([run])).text("pre")[0]


def test_settings_stand_apart_and_are_compared(tmp_path):
    runs = [make_run(tmp_path, f"b{beta}", overrides={"data.dirichlet_beta": beta}, rounds=2) for beta in (0.1, 1.0)]
    page = check(render(runs))
    assert page.text("h2") == [
        "Key findings",
        "What this is about",
        "data.dirichlet_beta = 0.1",
        "data.dirichlet_beta = 1.0",
    ]
    assert page.table("overview")["data.dirichlet_beta = 1.0"]["flora"] == f"{pooled_test('flora', 0, 2):.2f}"
    assert page.table("s2-accuracy-table")


def test_the_order_of_the_folders_changes_nothing(runs, source, tmp_path):
    other = make_run(tmp_path, "other", overrides={"model.adapt": "text"}, methods=["flora"], rounds=1)
    assert render(runs[::-1]) == source
    assert render([*runs, other]) == render([other, *runs[::-1]])


def test_the_same_records_give_the_same_bytes(runs, source, tmp_path):
    assert render(runs) == source
    write_report(runs, tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == source
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_hostile_text_stays_text(tmp_path):
    names = (HOSTILE, "'\"><img src=x onerror=y>", "\x00$\\frac$ 猫")
    overrides = {"data.dataset": f"folder:/x/{HOSTILE}", "model.checkpoint": HOSTILE}
    methods, sites = (HOSTILE, "feddlp"), (HOSTILE, "a.b")
    run = make_run(tmp_path, 'a"<b>&', methods=methods, class_names=names, sites=sites, overrides=overrides)
    edit_rows(run, lambda row: row.update(diagnostics={HOSTILE: 1.0}, train_loss={HOSTILE: 1.0}))
    source = render([run])
    page = check(source)
    assert "<script" not in source
    assert "<img" not in source
    assert "\x00" not in source
    assert HOSTILE in page.table("s1-accuracy-table")
    assert HOSTILE in next(iter(page.table("s1-partition-map-data").values()))
    assert HOSTILE in page.table("s1-ranks-1-data")


def without(*names: str) -> Callable[[RunFolder], None]:
    def remove(run: RunFolder) -> None:
        for name in names:
            (run.path / name).unlink(missing_ok=True)

    return remove


def old_schema(run: RunFolder) -> None:
    """As versions before schema 2 wrote it."""
    without("partition.json", "ranks.jsonl", "newcomers.jsonl")(run)

    def change(row):
        for key in ("diagnostics", "clients", "participants", "reported", "peak_mib", "parameters_sent"):
            row.pop(key)
        row["shared"] = [
            name for name in ("adapter", "global") if row["method"] != "local" and name in row["parameters"]
        ]

    edit_rows(run, change)


def bare_rows(run: RunFolder) -> None:
    keep = ("method", "seed", "round")
    edit_rows(run, lambda row: [row.pop(key) for key in list(row) if key not in keep] and None)


def no_gates(run: RunFolder) -> None:
    (run.path / "ranks.jsonl").unlink()
    edit_rows(run, lambda row: row.update(active_ranks=None, gates=0))


def empty_newcomers(run: RunFolder) -> None:
    lines(
        run.path / "newcomers.jsonl", [newcomers_row("flora", 0) | {"tuned": [], "zero_shot": None, "received": None}]
    )


def no_configuration(run: RunFolder) -> None:
    run.config.write_text("")


def updated(**values: Any) -> Callable[[RunFolder], None]:
    """Every row with these values."""
    return lambda run: edit_rows(run, lambda row: row.update(values))


DEFECTS: dict[str, tuple[Callable[[RunFolder], None], list[str]]] = {
    "old schema": (
        old_schema,
        ["partition is not recorded", "by layer are not recorded", "No other ways to predict"],
    ),
    "no partition": (without("partition.json"), ["The partition is not recorded in these runs"]),
    "no ranks": (without("ranks.jsonl"), ["feddlp: active ranks by layer are not recorded (no ranks.jsonl)"]),
    "no clients": (without("clients.csv"), ["No accuracies of single clients are recorded"]),
    "no environment": (without("environment.json"), ["The environment is not recorded"]),
    "no validation": (updated(validation=None), []),
    "no test": (updated(test=None), ["no client had test samples", "no accuracy to compare"]),
    "no gates": (no_gates, ["No method in this setting has gates"]),
    "no losses": (updated(train_loss={}), ["No training losses are recorded"]),
    "no traffic": (updated(bytes_up=0, bytes_down=0), ["is recorded to send anything"]),
    "diverged": (updated(train_loss={"a": float("nan")}), ["nan"]),
    "only method and round": (bare_rows, ["no accuracy to compare", "No method in this setting has gates"]),
    "newcomers half done": (empty_newcomers, []),
    "empty configuration": (no_configuration, ["not recorded"]),
    "not all take part": (updated(participants=2), ["4 (2 take part in a round)"]),
    "fractional bytes": (updated(bytes_up=0.5), []),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_is_missing_is_said_in_a_line(tmp_path, defect):
    damage, expected = DEFECTS[defect]
    run = make_run(tmp_path, rounds=2)
    damage(run)
    source = render([run])
    check(source)
    text = " ".join(Page(source).texts[0].split())
    assert [line for line in expected if line not in text] == []
    assert "None" not in Page(source).texts[0].replace("none", "")


@pytest.mark.parametrize(
    "shape",
    [
        {"rounds": 1},
        {"clients": 1},
        {"rounds": 1, "clients": 1, "methods": ["flora"], "class_names": ["a"]},
        {"finished": {"flora": 1, "feddlp": 0}},
        {"methods": ["zero_shot"]},
    ],
)
def test_small_and_unfinished_runs_have_a_page(tmp_path, shape):
    page = check(render([make_run(tmp_path, **shape)]))
    assert page.table("s1-accuracy-table")
    if "finished" in shape:
        assert "flora, seed 0: 1 of 4 rounds are finished" in " ".join(page.text("li"))


def test_a_large_federation_is_cut_and_says_so(tmp_path):
    names = [f"class {number}" for number in range(103)]
    run = make_run(tmp_path, clients=105, class_names=names, methods=["feddlp"], rounds=1)
    page = check(render([run]))
    table = page.table("s1-partition-map-data")
    assert len(table) == 100
    assert "class 99" in table["client 99"]
    assert "class 100" not in table["client 99"]
    captions = " ".join(page.text("figcaption"))
    assert "Only the first 100 of 105 clients are shown. Only the first 100 of 103 classes are shown." in captions
    assert "seed 0. Only the first 100 of 105 clients are shown." in captions


def test_no_finished_round_is_the_users_to_put_right(tmp_path, runs):
    run = make_run(tmp_path, "stopped")
    run.rounds.write_text("")
    target = tmp_path / "report.html"
    with pytest.raises(UserError, match=r"stopped has no finished round.*feddlp resume"):
        write_report([*runs, run], target)
    assert not target.exists()
    with pytest.raises(UserError, match="no run to report on"):
        render([])


def test_a_target_that_cannot_be_written_is_named(tmp_path, runs):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(runs[:1], tmp_path / "file" / "report.html")


def test_moving_a_run_changes_only_its_name_on_the_page(tmp_path):
    run = make_run(tmp_path, "OLD", methods=["flora"], rounds=2)
    before = render([run])
    moved = RunFolder(Path(shutil.move(run.path, tmp_path / "NEW")))
    assert render([moved]).replace("NEW", "OLD") == before


# Clients by number and name


def renamed(run, names, order):
    """The run's records under other client numbers, with names."""
    table = list(csv.DictReader(run.clients.read_text().splitlines()))
    for row in table:
        row["client"] = str(order[int(row["client"])])
        row["name"] = names.get(int(row["client"]), "")
    table.sort(key=lambda row: (int(row["round"]), int(row["client"])))
    with run.clients.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    rows = run.read_ranks()
    lines(run.ranks, [{**row, "clients": [order[client] for client in row["clients"]]} for row in rows])
    return run


def test_permuted_and_absent_clients_keep_their_labels_and_their_names(tmp_path):
    """Of six clients two never came: 5, 1, 3 and 0 have what 0, 1, 2 and 3 have in another run."""
    order, names = {0: 5, 1: 1, 2: 3, 3: 0}, {5: "ward <5>", 1: "ward 1"}
    runs = make_run(tmp_path, "plain"), renamed(make_run(tmp_path, "other"), names, order)
    plain, other = (Page(render([run])) for run in runs)
    labels = {str(old): f"{new} ({names[new]})" if new in names else str(new) for old, new in order.items()}
    for name in ("s1-ranks-3-data", "s1-client-dots-data"):
        before, after = plain.table(name), other.table(name)
        assert after == {
            labels.get(row, row): {labels.get(key, key): cell for key, cell in cells.items()}
            for row, cells in before.items()
        }
    partition = other.table("s1-partition-map-data")
    assert list(partition) == ["client 0", "client 1 (ward 1)", "client 2", "client 3"]
