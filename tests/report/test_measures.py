"""Numbers over seeds, and the finding in words."""

from __future__ import annotations

from typing import Any

import pytest
from records_factory import edit_rows, make_run, pooled_test

from feddlp.report.measures import (
    accuracy_curves,
    client_accuracies,
    finding,
    loss_curves,
    rank_curves,
    sent_mib,
    traffic_curves,
)
from feddlp.report.series import Setting, group


def setting_of(tmp_path, finals: dict[str, list[float]], **changes: Any) -> Setting:
    """Methods with these final accuracies, one a seed; validation favours the last round unless changed."""
    runs = []
    for seed in range(max(map(len, finals.values()))):
        methods = [method for method, values in finals.items() if seed < len(values)]
        run = make_run(tmp_path, f"s{seed}", seed=seed, methods=methods, rounds=2)

        def change(row: dict[str, Any], seed: int = seed) -> None:
            row["test"]["pooled"] = finals[row["method"]][seed] - (2 - row["round"]) * changes.get("gain", 1)
            row["validation"] = {"pooled": row["round"]} if changes.get("validated", True) else None

        edit_rows(run, change)
        runs.append(run)
    return group(runs)[0]


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ({"a": [90], "b": [95]}, ["b has the highest final accuracy: 95.00 % (one seed)", "a follows with 90.00 %",
                                  "5.00 percentage points behind", "how much of that is chance"]),
        ({"a": [90, 92], "b": [95, 97]}, ["b has the highest", "96.00 ± 1.41 %", "5.00 percentage points behind",
                                          "more than one standard deviation", "is 1.41"]),
        ({"a": [90, 96], "b": [94, 95]}, ["b has the highest", "1.50 percentage points behind",
                                          "within one standard deviation", "is 4.24", "do not separate"]),
        ({"a": [95], "b": [95], "c": [9]}, ["a and b share the highest final accuracy: 95.00 % (one seed); none"]),
        ({"a": [90, 96], "b": [94, 95], "c": [90, 95], "d": [1, 2]}, ["b has the highest", "a follows",
                                                                    "The same holds for c."]),
        ({"a": [95, 96], "b": [90]}, ["a has the highest", "one seed for a method"]),
        ({"a": [90]}, ["a ends at 90.00 % (one seed)", "No other method"]),
    ],
)  # fmt: skip
def test_the_finding_says_who_is_ahead_and_by_how_much(tmp_path, finals, expected):
    text = " ".join(finding(setting_of(tmp_path, finals)))
    assert [part for part in expected if part not in text] == []
    assert "None" not in text


def test_the_finding_owns_up_when_the_choice_of_round_changes_it(tmp_path):
    setting = setting_of(tmp_path, {"a": [90], "b": [95]})
    assert len(finding(setting)) == 2

    rows = setting.runs[0].rows["b", 0]
    rows[0]["validation"]["pooled"], rows[0]["test"]["pooled"] = 99, 10.0  # type: ignore[index]
    assert finding(setting)[2] == "In the round chosen on validation data a is ahead instead, with 90.00 %."


def test_without_test_samples_nothing_is_claimed(tmp_path):
    run = make_run(tmp_path, methods=["flora"], rounds=2)
    edit_rows(run, lambda row: row.update(test=None, validation=None))
    (setting,) = group([run])
    assert finding(setting) == ["No client had test samples, so there is no accuracy to compare."]


@pytest.fixture
def two_seeds(tmp_path) -> Setting:
    return group([make_run(tmp_path, f"s{seed}", seed=seed, rounds=3) for seed in (0, 1)])[0]


def test_curves_are_means_over_seeds_round_by_round(two_seeds):
    flora = next(curve for curve in accuracy_curves(two_seeds) if curve.method == "flora")
    assert flora.x == (1, 2, 3)
    assert [value.mean for value in flora.y] == [pytest.approx(pooled_test("flora", 0, n) + 0.05) for n in (1, 2, 3)]
    assert [value.std for value in flora.y] == [pytest.approx(0.1 / 2**0.5)] * 3
    assert [curve.method for curve in accuracy_curves(two_seeds) if curve.level] == ["zero_shot"]


def test_traffic_adds_up_and_what_sends_nothing_is_a_level(two_seeds):
    curves = {curve.method: curve for curve in traffic_curves(two_seeds)}
    assert curves["feddlp"].x == (1.5, 3.0, 4.5)
    assert [method for method, curve in curves.items() if curve.level] == ["zero_shot", "local"]
    assert curves["local"].y[0].mean == pytest.approx(pooled_test("local", 0, 3) + 0.05)
    assert sent_mib(two_seeds.tracks["flora"][0].rows) == 4.5


def test_a_seed_that_stopped_early_does_not_pull_later_traffic_down(tmp_path):
    runs = [
        make_run(tmp_path, "a", methods=["flora"]),
        make_run(tmp_path, "b", seed=1, methods=["flora"], finished={"flora": 1}),
    ]
    (curve,) = traffic_curves(group(runs)[0])
    assert curve.x == (1.5, 3.0, 4.5, 6.0)
    assert [value.count for value in curve.y] == [2, 1, 1, 1]


def test_losses_are_a_curve_an_adapter(two_seeds):
    curves = {curve.label: [value.mean for value in curve.y] for curve in loss_curves(two_seeds)}
    assert set(curves) == {"local: adapter", "flora: adapter", "feddlp: local", "feddlp: global"}
    assert curves["feddlp: local"] == [1, 1 / 2, pytest.approx(1 / 3)]
    assert curves["feddlp: global"] == [2, 3 / 2, pytest.approx(4 / 3)]


def test_open_gates_are_a_share_of_all(two_seeds):
    (curve,) = rank_curves(two_seeds)
    assert curve.method == "feddlp"
    assert [value.mean for value in curve.y] == [pytest.approx(100 - n / 2) for n in (1, 2, 3)]


def test_a_clients_accuracy_is_its_mean_over_seeds(two_seeds):
    two_seeds.runs[1].clients["flora", 1][2]["test_accuracy"] = "15"  # type: ignore[index]
    two_seeds.runs[1].clients["flora", 1][3]["test_accuracy"] = ""  # type: ignore[index]
    two_seeds.runs[0].clients["flora", 0][3]["test_accuracy"] = ""  # type: ignore[index]
    found = client_accuracies(two_seeds.tracks["flora"])
    assert {client: value.mean for client, value in found.items()} == {0: 55, 1: 60, 2: 40}
