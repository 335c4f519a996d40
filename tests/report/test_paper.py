"""The paper's tables: every printed number in its cell, ours beside it, and costs to a target."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from feddlp.report.paper import TABLES, build, needs
from feddlp.report.paper_forms import COLUMNS, Cell, PaperTable, csv_text, text
from feddlp.report.paper_numbers import Key, common_target, to_target
from feddlp.report.readings import Measure

PAPER = json.loads(files("feddlp").joinpath("assets/paper.json").read_text("utf-8"))
FOUR = ("pets", "flowers", "aircraft", "dtd")
OURS = {
    "Local": "local", "FedCLIP": "fedclip", "FLoRA": "flora", "FedDAT": "feddat", "FEDDLP": "feddlp",
    "Combined": "combined_published",
}  # fmt: skip
MIB = 2**20
Address = tuple[str, str, str, float, str]


def part(pooled: float) -> dict[str, float]:
    """Accuracies of which each can be told from the others."""
    std, lowest = pooled / 10 + 0.01, pooled / 2
    return {"pooled": pooled, "client_mean": 1.0, "client_std": std, "client_lowest": lowest, "client_p10": 2.0}


def row(number: int, test: float, validation: float | None, seed: int = 0, **other: Any) -> dict[str, Any]:
    found = {
        "seed": seed,
        "round": number,
        "test": part(test),
        "validation": None if validation is None else part(validation),
        "bytes_down": MIB // 2,
        "bytes_up": MIB // 4,
        "parameters_sent": 250_000,
    }
    return {**found, **other}


def run(*accuracies: float | tuple[float, float | None], seed: int = 0, **other: Any) -> list[dict[str, Any]]:
    """One seed's rounds; one number is both accuracies, a pair is test and validation."""
    pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in accuracies]
    return [row(number, *pair, seed=seed, **other) for number, pair in enumerate(pairs, 1)]


def everything(table: str, datasets: Sequence[str] = FOUR, seeds: int = 3) -> dict[Key, list[list[dict[str, Any]]]]:
    """All runs of a table; every accuracy tells method, tower, data set, β and seed."""
    keys = [Key(method, tower, dataset, beta) for method, tower, beta in needs(table) for dataset in datasets]
    starts = {key: 10 + 80 * index / len(keys) for index, key in enumerate(keys)}
    return {
        key: [run((start, 2.0), (start + 5, 9.0), (start + 3, 1.0), seed=seed) for seed in range(seeds)]
        for key, start in starts.items()
    }


def printed(table: PaperTable, **options: Any) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(*text(table, **options))
    return capture.get()


def records(*tables: PaperTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(tables))))


def cell(table: PaperTable, method: str, dataset: str, metric: str = "pooled_accuracy", **address: Any) -> Cell:
    """The one cell with this address."""
    address = {"method": method, "dataset": dataset, "metric": metric, **address}
    (found,) = [one for one in table.cells if all(getattr(one, name) == value for name, value in address.items())]
    return found


def entries(table: str) -> Iterator[tuple[Address, tuple[float, float | None]]]:
    """The paper's numbers of a table by address, walked without the code under test."""
    metrics = {"std_over_clients": "client_std", "lowest": "client_lowest"}
    source = PAPER[table]
    for line in source["rows"]:
        if "mebibytes" in line:
            for column, metric in (("mebibytes", "mib_to_target"), ("rounds", "rounds_to_target")):
                for name, number in line[column].items():
                    yield (source["tower"], OURS[name], line["dataset"], line["beta"], metric), (number, None)
            continue
        where = (line["tower"], OURS[line["method"]])
        if line.get("params_millions"):
            yield (*where, "", source["beta"], "parameters_sent_millions"), (line["params_millions"], None)
        for dataset in (*FOUR, "average"):
            entry = line.get(dataset)
            if isinstance(entry, float):
                yield (*where, dataset, source["beta"], "pooled_accuracy"), (entry, None)
            elif entry and "mean" in entry:
                yield (*where, dataset, source["beta"], "pooled_accuracy"), (entry["mean"], entry["std"])
            elif entry:
                yield from (((*where, dataset, source["beta"], metrics[name]), (entry[name], None)) for name in metrics)


# --- the paper's own numbers ---


@pytest.mark.parametrize(
    ("table", "where", "number"),
    [
        ("table1", {"tower": "image", "method": "FEDDLP"}, ("dtd", {"mean": 81.23, "std": 0.29})),
        ("table2", {"tower": "text", "method": "FedDAT"}, ("aircraft", {"mean": 50.01, "std": 3.08})),
        ("table3", {"tower": "text", "method": "Local"}, ("flowers", {"std_over_clients": 10.29, "lowest": 50.5})),
        ("table4", {"tower": "image", "method": "FEDDLP"}, ("pets", {"std_over_clients": 16.13, "lowest": 44.66})),
        ("table5", {"dataset": "aircraft", "beta": 0.01}, ("mebibytes", {"FedDAT": 132.91, "FEDDLP": 34.08})),
        ("table6", {"dataset": "dtd", "beta": 0.1}, ("target_percent", 70.0)),
        ("table7", {"tower": "text", "method": "Combined"}, ("dtd", 71.21)),
        ("table8", {"tower": "image", "method": "FEDDLP"}, ("flowers", 97.51)),
    ],
)
def test_numbers_read_off_the_paper(table, where, number):
    (line,) = [row for row in PAPER[table]["rows"] if where.items() <= row.items()]
    assert line[number[0]] == number[1]


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_the_papers_average_is_the_mean_of_means_and_the_mean_of_deviations(table):
    for line in PAPER[table]["rows"]:
        for name, slack in (("mean", 0.0051), ("std", 0.0151)):
            assert fmean(line[dataset][name] for dataset in FOUR) == pytest.approx(line["average"][name], abs=slack)


def test_the_papers_mebibytes_are_whole_rounds_of_its_adapters():
    odd = []
    for table, parameters, used in (("table5", 223_232, 1.704), ("table6", 334_336, 2.55)):
        assert PAPER[table]["mebibytes_per_round"] == parameters * 4 * 2 / MIB == pytest.approx(used, abs=1e-3)
        for line in PAPER[table]["rows"]:
            for method, mib in line["mebibytes"].items():
                assert round(mib / PAPER[table]["mebibytes_per_round"]) == line["rounds"][method]
                if abs(line["rounds"][method] * used - mib) > 0.005001:  # the paper rounded before it multiplied
                    odd.append((line["dataset"], line["beta"], method, mib))
    assert odd == [("pets", 0.01, "FedDAT", 20.48)]
    assert "Pets 0.01, FedDAT: 20.48" in PAPER["errata"]["table5"][0]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("ran", [True, False])
def test_every_number_of_the_paper_stands_in_its_cell_and_nowhere_else(table, ran):
    built = build(table, everything(table) if ran else {}, comparable=True)
    found = {
        (line["tower"], line["method"], line["dataset"], float(line["beta"]), line["metric"]): (
            float(line["paper_mean"]),
            float(line["paper_std"]) if line["paper_std"] else None,
        )
        for line in records(built)
        if line["paper_mean"] and "ratio" not in line["metric"]
    }
    assert found == (dict(entries(table)) if table in PAPER else {})


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4", "table7", "table8"])
def test_the_papers_lines_are_printed_in_its_order(table):
    lines = [line for line in printed(build(table, {}, comparable=True)).splitlines() if " paper * " in line]
    shown = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]
    expected: dict[tuple[str, str], list[float]] = {}
    for address, (mean, std) in entries(table):
        numbers = expected.setdefault(address[:2], [])
        if address[4] == "parameters_sent_millions":
            continue
        numbers += [mean] if std is None else [mean, std]
    sent = {address[:2]: mean for address, (mean, _) in entries(table) if address[4] == "parameters_sent_millions"}
    assert shown == [[*numbers, sent[key]] if key in sent else numbers for key, numbers in expected.items()]


@pytest.mark.parametrize("table", ["table5", "table6"])
def test_the_papers_traffic_is_printed_in_its_order(table):
    output = printed(build(table, {}, comparable=True))
    shown = [line.split("paper *")[1].split()[:3] for line in output.splitlines() if " paper * " in line]
    columns = ("FLoRA", "FedDAT", "FEDDLP")
    rows = [line["mebibytes"] for line in PAPER[table]["rows"]]
    assert shown == [[f"{row[name]:.2f}" if name in row else "-" for name in columns] for row in rows]
    labels = re.findall(r"(\w+), β (\S+) .*\n.*to (\d+) %", output)
    goals = [(line["dataset"], f"{line['beta']:g}", f"{line['target_percent']:g}") for line in PAPER[table]["rows"]]
    assert labels == goals


def test_the_papers_traffic_is_printed_with_the_target_and_the_ratio_that_follows():
    output = printed(build("table5", {}, comparable=True))
    block = re.search(r"aircraft, β 0\.1 .*?to 52 %.*?paper \*([^\n]*)", output, re.DOTALL)
    assert block
    assert block[1].split() == ["-", "97.13", "27.26", "-", "0.28"]
    assert "printed 0.46" in output


@pytest.mark.parametrize("table", TABLES)
def test_another_model_never_stands_beside_the_papers_numbers(table):
    built = build(table, everything(table), comparable=False)
    assert not built.has_paper
    assert all(line["paper_mean"] == line["paper_std"] == "" for line in records(built))
    assert "paper *" not in printed(built)
    assert not any("Erratum" in note for note in built.notes)
    if table != "fig2":
        assert any("left out" in note for note in built.notes)


def test_other_data_has_no_number_of_the_paper():
    built = build("table1", everything("table1", (*FOUR, "digits")), comparable=True)
    assert [cell.paper for cell in built.cells if cell.dataset == "digits"] == [None] * 12


# --- what is compared ---


def test_needs():
    compared = {"zero_shot", "local", "fedclip", "flora", "feddat", "feddlp"}
    ablation = {"combined", "combined_published", "feddlp"}
    expected = {
        "table1": (compared, {"text", "image"}, {0.1}),
        "table2": (compared, {"text", "image"}, {0.01}),
        "table3": (compared, {"text", "image"}, {0.1}),
        "table4": (compared, {"text", "image"}, {0.01}),
        "table5": ({"flora", "feddat", "feddlp"}, {"text"}, {0.1, 0.01}),
        "table6": ({"flora", "feddat", "feddlp"}, {"image"}, {0.1, 0.01}),
        "table7": (ablation, {"text", "image"}, {0.1}),
        "table8": (ablation, {"text", "image"}, {0.01}),
        "fig2": ({"local", "sora_local"}, {"image"}, {0.1}),
    }
    assert set(TABLES) == set(expected)
    for table, (methods, towers, betas) in expected.items():
        found = needs(table)
        assert len(found) == len(set(found)) == len(methods) * len(towers) * len(betas)
        assert [{need[index] for need in found} for index in range(3)] == [methods, towers, betas]


@pytest.mark.parametrize("table", TABLES)
def test_other_runs_change_nothing(table):
    results = everything(table)
    other = {key._replace(beta=0.5): found for key, found in results.items()}
    other |= {key._replace(method="feddlp_variant"): found for key, found in results.items()}
    assert build(table, results | other, comparable=True) == build(table, results, comparable=True)


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4", "table7", "table8"])
def test_our_numbers_stand_in_their_cells(table):
    results = everything(table)
    measures = {"pooled_accuracy": "pooled", "client_std": "client_std", "client_lowest": "client_lowest"}
    seen = set()
    for one in build(table, results, comparable=True).cells:
        if one.metric in measures and one.dataset != "average":
            rows = results[Key(one.method, one.tower, one.dataset, one.beta)][0]
            third, second = (rows[index]["test"][measures[one.metric]] for index in (2, 1))
            assert {name: value.mean for name, value in one.ours.items()} == pytest.approx(
                {"final": third, "validation_chosen": second, "best_test": second}
            )
            seen.add((one.method, one.tower, one.dataset, one.beta, one.metric))
    metrics = 2 if table in ("table3", "table4") else 1
    assert len(seen) == len(results) * metrics


def test_the_three_readings_by_hand():
    runs = [run((50, 10), (70, 20), (80, 19), (60, 20), seed=0), run((52, 30), (90, 1), (40, 2), (64, 3), seed=1)]
    one = cell(
        build("table7", {Key("feddlp", "text", "pets", 0.1): runs}, comparable=True), "feddlp", "pets", tower="text"
    )
    assert one.ours == {
        "final": Measure(62.0, pytest.approx(stdev([60, 64])), 2, 2),
        "validation_chosen": Measure(61.0, pytest.approx(stdev([70, 52])), 2, 2),
        "best_test": Measure(85.0, pytest.approx(stdev([80, 90])), 2, 2),
    }
    assert one.paper == Measure(91.63)


def test_the_spread_is_that_of_the_reading_s_round():
    built = build("table3", {Key("flora", "image", "dtd", 0.1): [run((50, 9), (90, 1), (70, 2))]}, comparable=True)
    spread = cell(built, "flora", "dtd", "client_std", tower="image")
    assert [value.mean for value in spread.ours.values()] == pytest.approx([7.01, 5.01, 9.01])
    assert spread.paper == Measure(7.45)
    lowest = cell(built, "flora", "dtd", "client_lowest", tower="image")
    assert [value.mean for value in lowest.ours.values()] == [35, 25, 45]
    assert lowest.paper == Measure(62.32)


def test_the_average_needs_all_four_and_is_of_means_and_deviations():
    runs = {
        dataset: [run(mean - 1, seed=0), run(mean + 1, seed=1)]
        for dataset, mean in zip(FOUR, (10, 20, 30, 80), strict=True)
    }
    runs["pets"] = [run(5, seed=0), run(15, seed=1)]
    results = {Key("feddlp", "image", dataset, 0.1): found for dataset, found in runs.items()}
    average = cell(build("table1", results, comparable=True), "feddlp", "average", tower="image").ours["final"]
    assert average == Measure(35.0, pytest.approx((math.sqrt(50) + 3 * math.sqrt(2)) / 4), 2, 2)
    for key in results:
        fewer = {other: found for other, found in results.items() if other != key}
        assert cell(build("table1", fewer, comparable=True), "feddlp", "average", tower="image").ours == {}


def test_without_validation_samples_only_that_reading_is_missing():
    results = {Key("feddlp", "text", "pets", 0.1): [run((50, None), (40, None))]}
    one = cell(build("table1", results, comparable=True), "feddlp", "pets", tower="text")
    assert {name: value.mean for name, value in one.ours.items()} == {"final": 40, "best_test": 50}


def test_parameters_sent():
    results = everything("table1")
    results[Key("fedclip", "text", "pets", 0.1)] = [run(1.0, parameters_sent=525_312)]
    results |= {key: [run(1.0, parameters_sent=525_312)] for key in results if key.method == "fedclip"}
    built = build("table1", results, comparable=True)
    sent = {(one.method, one.tower): one for one in built.cells if one.metric == "parameters_sent_millions"}
    assert sent["fedclip", "text"].ours["final"].mean == pytest.approx(0.525312)
    assert sent["feddat", "text"].ours["best_test"].mean == 0.25
    assert sent["fedclip", "image"].paper == Measure(0.525)
    assert re.search(r"chosen .* 0\.525 ", printed(built))


# --- costs to a target ---


def test_to_target_by_hand():
    rows = run((50, 10), (70, 70), (60, 80), (90, 90))
    assert to_target(rows, 50) == (0.75, 1)
    assert to_target(rows, 50.01) == (1.5, 2)
    assert to_target(rows, 70.5) == (3.0, 4)
    assert to_target(rows, 90.1) is None
    assert to_target(rows, 75, "validation") == (2.25, 3)
    assert to_target(run((50, None)), 10, "validation") is None


percents = st.floats(0, 100).map(lambda value: round(value, 2))
histories = st.lists(st.tuples(percents, percents), min_size=1, max_size=8)


@given(histories, percents, percents)
def test_a_higher_target_is_never_cheaper(history, low, high):
    rows = run(*history)
    for row in rows:
        row["bytes_up"] = row["round"] * MIB  # traffic differs by round
    low, high = sorted((low, high))
    cheap, dear = to_target(rows, low), to_target(rows, high)
    assert dear is None or (cheap is not None and cheap <= dear)
    reached = [number for number, (test, _) in enumerate(history, 1) if test >= low]
    assert cheap == ((sum(range(1, reached[0] + 1)) + reached[0] / 2, reached[0]) if reached else None)


@given(
    st.lists(st.lists(percents, min_size=1, max_size=5), min_size=2, max_size=4),
    st.randoms(),
    st.sampled_from(sorted(TABLES)),
)
def test_the_order_of_the_seeds_changes_nothing(accuracies, random, table):
    method, tower, beta = needs(table)[-1]
    runs = [run(*values, seed=seed) for seed, values in enumerate(accuracies)]
    shuffled = random.sample(runs, len(runs))
    key = Key(method, tower, "pets", beta)
    assert build(table, {key: runs}, comparable=True) == build(table, {key: shuffled}, comparable=True)


@given(st.lists(histories, min_size=1, max_size=4))
def test_the_default_target_is_the_highest_whole_percent_that_all_reach(accuracies):
    runs = [run(*history) for history in accuracies]
    target = common_target(runs)
    assert target is not None
    assert target == int(target)
    assert all(to_target(rows, target) for rows in runs)
    assert not all(to_target(rows, target + 1) for rows in runs)


def test_traffic_value_of_by_hand():
    runs = [run((60, 60), (72, 60), seed=0), run((71, 71), seed=1), run((69.9, 70), (60, 60), seed=2)]
    results = {Key("feddlp", "image", "dtd", 0.1): runs, Key("flora", "image", "dtd", 0.1): [run(1, 2, 3, 80)] * 3}
    built = build("table6", results, comparable=True)
    mib = cell(built, "feddlp", "dtd", "mib_to_target", beta=0.1)
    assert mib.target == 70
    assert mib.ours == {
        "validation": Measure(0.75, 0.0, 2, 3),
        "test": Measure(1.125, pytest.approx(stdev([1.5, 0.75])), 2, 3),
    }
    assert mib.paper == Measure(25.5)
    assert cell(built, "feddlp", "dtd", "rounds_to_target", beta=0.1).ours["test"].mean == 1.5
    assert cell(built, "feddlp", "dtd", "mib_ratio_to_flora", beta=0.1).ours == {}, "one seed did not reach it"
    results[Key("feddlp", "image", "dtd", 0.1)] = runs[:2]
    ratio = cell(build("table6", results, comparable=True), "feddlp", "dtd", "mib_ratio_to_flora", beta=0.1)
    assert ratio.ours["test"].mean == pytest.approx(1.125 / 3)
    assert ratio.paper is not None
    assert ratio.paper.mean == pytest.approx(25.5 / 68.85)


def test_not_reached_is_not_the_same_as_not_run():
    key = Key("feddlp", "text", "pets", 0.1)
    built = build("table5", {key: [run((60, None)), run((60, None), seed=1)]}, comparable=True)
    assert cell(built, "feddlp", "pets", "mib_to_target", beta=0.1).ours == {"test": Measure(math.inf, None, 0, 2)}
    lines = printed(built).splitlines()
    first = next(index for index, line in enumerate(lines) if "pets, β 0.1 " in line)
    assert lines[first].split()[-5:] == ["-"] * 5, "no validation samples"
    assert lines[first + 1].split()[-6:] == ["-", "-", "not", "reached", "-", "-"]
    (record,) = [line for line in records(built) if line["metric"] == "mib_to_target" and line["runs"] == "2"]
    assert (record["ours_mean"], record["seeds"], record["target"]) == ("", "0", "88.0")


def targets(table: PaperTable) -> set[tuple[str, float, float | None]]:
    return {(one.dataset, one.beta, one.target) for one in table.cells}


def test_targets_of_other_data_and_of_other_models():
    results = {
        Key("flora", "image", "digits", 0.1): [run(50, 91.7, 60), run(95)],
        Key("feddlp", "image", "digits", 0.1): [run(50, 93, 92.2), run(92.9)],
        Key("feddat", "image", "pets", 0.01): [run(33.0, 20)],
        Key("local", "image", "digits", 0.1): [run(1)],
    }
    found = build("table6", results, comparable=True)
    assert ("digits", 0.1, 91.0) in targets(found)
    assert ("digits", 0.01, None) in targets(found), "nothing was run"
    assert ("pets", 0.01, 88.0) in targets(found)
    assert any("highest whole percent" in note for note in found.notes)
    asked = build("table6", results, comparable=True, target=80.5)
    assert {("digits", 0.1, 80.5), ("pets", 0.01, 88.0)} < targets(asked)
    assert any("80.5 %, as asked for" in note for note in asked.notes)
    assert ("pets", 0.01, 33.0) in targets(build("table6", results, comparable=False))
    assert not any("target is" in note for note in build("table6", {}, comparable=True).notes)


# --- the curve ---


def test_the_curve_shows_shares_of_the_rounds_and_records_all():
    rounds = [float(number) for number in range(1, 71)]
    results = {
        Key("local", "image", "flowers", 0.1): [
            run(*rounds, seed=0),
            run(*(value + 1 for value in rounds[:40]), seed=1),
        ],
        Key("sora_local", "image", "flowers", 0.1): [run(*rounds[::-1])],
    }
    built = build("fig2", results, comparable=True)
    local, sora = built.lines
    assert [one.round for one in local.cells] == [1, 7, 18, 35, 53, 70]
    assert [value.mean for one in local.cells for value in one.ours.values()] == [1.5, 7.5, 18.5, 35.5, 53, 70]
    assert [one.ours["round"].count for one in local.cells] == [2, 2, 2, 2, 1, 1]
    assert [value.mean for one in sora.cells for value in one.ours.values()] == [70, 64, 53, 36, 18, 1]
    lines = records(built)
    assert [(line["method"], line["round"]) for line in lines] == [
        (method, str(number)) for method in ("local", "sora_local") for number in range(1, 71)
    ]
    assert "Runs of different length (40, 70 rounds)" in printed(built)


# --- forms ---


def extremes(table: str, datasets: Sequence[str]) -> dict[Key, list[list[dict[str, Any]]]]:
    """Numbers as wide as they get: 100.00±57.74, hundreds of MiB, and reached by some seeds alone."""
    results = everything(table, datasets)
    for found in results.values():
        wide = {"bytes_up": 500 * MIB, "parameters_sent": 123_456_789}
        found[:] = [run(100, 100, **wide), run((0, 0), 100, seed=1, **wide), run((0, None), 0.004, seed=2, **wide)]
    return results


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("which", [None, "final"])
@pytest.mark.parametrize("datasets", [FOUR, (*FOUR, "digits"), ("my-own-pictures-of-flowers",)])
def test_text_fits_100_columns_and_loses_nothing(table, which, datasets):
    for results in (everything(table, datasets), everything(table, datasets, seeds=1), extremes(table, datasets)):
        for comparable in (True, False):
            built = build(table, results, comparable=comparable)
            output = printed(built, which=which)
            assert "…" not in output
            assert max(map(len, output.splitlines())) <= 100
            words = {word for line in built.lines for word in line.label.split()}
            words |= {word for heading in built.headings for word in heading.split()}
            assert words <= set(output.split())
            texts = [part for part in text(built, which=which) if not hasattr(part, "columns")]
            assert len(texts) == 1, "one block of notes"


@pytest.mark.parametrize(
    ("which", "alone", "compared"),
    [
        (None, ["final", "chosen", "best *"], ["final", "chosen", "best *"]),
        ("final", ["final"], ["final", "best *"]),
        ("validation_chosen", ["chosen"], ["chosen", "best *"]),
        ("best_test", ["best *"], ["best *"]),
    ],
)
def test_the_papers_number_stands_below_the_best_test_round_and_no_other(which, alone, compared):
    pattern = re.compile(r"^ .*?(final|chosen|best \*|paper \*) +[-\d]", re.MULTILINE)
    results = everything("table1")
    beside = pattern.findall(printed(build("table1", results, comparable=True), which=which))
    assert beside == (compared + [*compared, "paper *"] * 5) * 2, "zero-shot is not in the paper"
    assert pattern.findall(printed(build("table1", results, comparable=False), which=which)) == alone * 12


def test_the_csv_has_three_readings_and_full_precision():
    results = {Key("feddlp", "image", "pets", 0.1): [run((10 / 3, 1), (20 / 3, 9), (1, 8)), run(5, seed=1)]}
    built = [build(table, results, comparable=True) for table in TABLES]
    lines = records(*built)
    assert list(lines[0]) == list(COLUMNS)
    mine = [
        line for line in lines
        if line["table"] == "table1" and line["seeds"] != "0" and line["metric"] == "pooled_accuracy"
    ]  # fmt: skip
    assert [line["which"] for line in mine] == ["final", "validation_chosen", "best_test"]
    assert [float(line["ours_mean"]) for line in mine] == [3.0, fmean([20 / 3, 5]), fmean([20 / 3, 5])]
    assert float(mine[2]["ours_std"]) == pytest.approx(stdev([20 / 3, 5]), rel=1e-14)
    assert [(line["paper_mean"], line["paper_std"]) for line in mine] == [("", ""), ("", ""), ("94.67", "0.16")]
    assert {line["table"] for line in lines} == set(TABLES) - {"fig2"}


# --- notes ---


@pytest.mark.parametrize("table", TABLES)
def test_the_protocols_are_told_apart_wherever_the_papers_numbers_stand(table):
    told = [note for note in build(table, everything(table), comparable=True).notes if "preset=authors" in note]
    assert len(told) == (table != "fig2")
    assert all(word in told[0] for word in ("class_ce", "in_batch", "101 rounds", "validation")) if told else True
    assert not any("preset=authors" in note for note in build(table, everything(table), comparable=False).notes)


def test_why_the_papers_numbers_are_left_out():
    results = everything("table1")
    model = build("table1", results, comparable=False).notes
    assert any("left out" in note and "ViT-B/32" in note for note in model)
    partition = build("table1", results, comparable=False, deviations=("data.clients = 2 (the paper: 10)",)).notes
    (told,) = [note for note in partition if "left out" in note]
    assert "do not follow its partition. data.clients = 2 (the paper: 10)." in told
    assert not any("left out" in note for note in build("table1", results, comparable=True).notes)


def test_nothing_is_said_to_be_tuned():
    assert not any("grid" in note for table in TABLES for note in build(table, {}, comparable=True).notes)


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4", "fig2"])
def test_notes_say_what_cannot_be_compared(table):
    told = " ".join(build(table, {}, comparable=True).notes)
    assert "client 0's test set" in told
    assert "not comparable" in told
    assert "picked on the test set" in told
    assert all(erratum in told for erratum in PAPER["errata"].get(table, ()))


def seed_words(results: dict[Key, list[list[dict[str, Any]]]]) -> str:
    return " ".join(note for note in build("table7", results, comparable=True).notes if "seed" in note.lower())


def test_missing_and_repeated_seeds_are_said():
    results = everything("table7", ("pets",))
    key = Key("combined", "text", "pets", 0.1)
    assert "Fewer" not in seed_words(results)
    assert "more than once" not in seed_words(results)
    assert "Fewer than the 3 seeds of the others: combined text pets 0.1 (2)." in seed_words(
        results | {key: results[key][:2]}
    )
    assert "more than once, so ± is too small: combined text pets 0.1." in seed_words(
        results | {key: [*results[key][:2], results[key][0]]}
    )
    assert "One seed: no standard deviation" in seed_words(everything("table7", seeds=1))


def test_zero_shot_needs_no_seeds_and_no_rounds():
    results = everything("table1")
    zero = {key: [run(50.0)] for key in results if key.method == "zero_shot"}
    told = " ".join(build("table1", results | zero, comparable=True).notes)
    assert "Fewer" not in told
    assert "different length" not in told
    other = Key("local", "text", "dtd", 0.1)
    told = " ".join(build("table1", results | zero | {other: [run(50.0)] * 3}, comparable=True).notes)
    assert "Runs of different length (1, 3 rounds)" in told


def test_nothing_run_prints_dashes():
    for table in TABLES:
        for comparable in (True, False):
            built = build(table, {Key(*needs(table)[0][:2], "pets", 0.1): [[]]}, comparable=comparable)
            assert all(not one.ours for one in built.cells)
            assert " - " in printed(built)
