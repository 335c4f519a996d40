"""The table of a run: three accuracies that are never mixed up."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from feddlp.hyperparameters import variants
from feddlp.methods import registry
from feddlp.report.tables import Summary, comparison, summarise, summarise_method


def part(pooled: float) -> dict[str, float]:
    """Accuracies that can be told apart: every number of this part has its own distance from the pooled one."""
    return {
        "pooled": pooled,
        "client_mean": pooled + 0.1,
        "client_std": pooled / 10,
        "client_lowest": pooled - 5,
        "client_p10": pooled - 4,
    }


def row(round: int, test: float, validation: float | None, method: str = "feddlp", **other: Any) -> dict[str, Any]:
    """One line of rounds.jsonl."""
    return {
        "method": method,
        "seed": 0,
        "round": round,
        "test": part(test),
        "validation": None if validation is None else part(validation),
        "train_loss": {"local": 0.1},
        "parameters": {"local": 300, "global": 200},
        "parameters_sent": 200,
        "bytes_down": 2**19,
        "bytes_up": 2**20,
        "active_ranks": 20.0 - round,
        "gates": 20,
        "export_bytes": 1000.0,
        "lanes": 1,
        "seconds": float(round),
        **other,
    }


def rows(*accuracies: tuple[float, float | None]) -> list[dict[str, Any]]:
    return [row(number, *pair) for number, pair in enumerate(accuracies, 1)]


def shown(lines: list[Summary], title: str = "runs/demo") -> str:
    """What a terminal of 80 columns shows."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(*comparison(lines, title))
    return capture.get()


percent = st.sampled_from([0.0, 10.0, 20.0, 30.0, 99.5])  # few values, so that ties are frequent


@given(st.lists(st.tuples(percent, percent), min_size=1, max_size=8))
def test_final_chosen_and_best_are_what_they_say(accuracies):
    tests, validations = zip(*accuracies, strict=True)
    line = summarise_method(rows(*accuracies))
    chosen = validations.index(max(validations))
    best = tests.index(max(tests))
    assert (line.final, line.rounds) == (tests[-1], len(tests))
    assert (line.chosen, line.chosen_round) == (tests[chosen], chosen + 1)
    assert (line.best, line.best_round) == (tests[best], best + 1)


def test_the_three_accuracies_come_from_three_rounds():
    line = summarise_method(rows((50, 60), (40, 90), (70, 80), (30, 70)))
    assert (line.final, line.chosen, line.best) == (30, 40, 70)
    assert (line.chosen_round, line.best_round) == (2, 3)


def test_a_tie_goes_to_the_earliest_round():
    line = summarise_method(rows((10, 5), (70, 80), (60, 80), (70, 20)))
    assert (line.chosen_round, line.chosen) == (2, 70)
    assert line.best_round == 2


@given(st.lists(percent, min_size=1, max_size=5))
def test_without_validation_samples_no_round_is_chosen(tests):
    line = summarise_method(rows(*[(test, None) for test in tests]))
    assert line.chosen is None
    assert line.chosen_round is None
    assert line.best == max(tests)
    assert " - " in shown([line])


def test_the_spread_is_that_of_the_final_round():
    line = summarise_method(rows((90, 90), (50, 10)))
    assert (line.client_mean, line.client_std, line.client_lowest) == (50.1, 5.0, 45)


def test_costs_are_of_one_client_over_the_whole_run():
    line = summarise_method(rows((1, 1), (2, 2), (3, 3)))
    assert line.mib == 3 * 1.5
    assert line.parameters == 500
    assert line.parameters_sent == 200
    assert line.seconds == 2.0


def test_active_ranks_are_those_left_at_the_end():
    line = summarise_method(rows((1, 1), (2, 2)))
    assert (line.active_ranks, line.gates) == (18.0, 20)
    assert "18.0 of 20" in shown([line])


def test_a_method_without_gates_or_parameters():
    plain = row(
        1,
        60,
        50,
        active_ranks=None,
        export_bytes=None,
        gates=0,
        parameters={},
        parameters_sent=0,
        bytes_up=0,
        bytes_down=0,
    )
    line = summarise_method([plain])
    assert (line.parameters, line.parameters_sent, line.mib) == (0, 0, 0)
    assert " - " in shown([line])


def test_methods_keep_the_order_in_which_they_ran():
    played = [row(1, 10, 10, "zero_shot"), *(row(n, n, n, "flora") for n in (1, 2)), row(1, 5, 5, "feddlp")]
    lines = summarise(played)
    assert [line.method for line in lines] == ["zero_shot", "flora", "feddlp"]
    assert [line.rounds for line in lines] == [1, 2, 1]
    assert [line.final for line in lines] == [10, 2, 5]


def test_no_rows_no_lines():
    assert summarise([]) == []


def test_the_tables_show_every_number_and_own_up_to_the_peeking():
    text = shown(summarise(rows((50, 60), (40, 90), (70, 80), (30, 70))))
    for cell in ("feddlp", "30.00", "40.00 (r2)", "70.00 (r3)", "30.10", "3.00", "25.00", "500", "200", "6.00", "2.50"):
        assert cell in text
    assert "runs/demo" in text
    assert "best test" in text
    assert "* optimistic: picked on test data" in " ".join(text.split())


def test_the_tables_fit_a_terminal_without_a_cut():
    longest = max([*registry(), *variants()], key=len)
    text = shown(summarise([row(100, 99.99, 99.99, longest, parameters={"global": 12_345_678})]))
    assert "…" not in text
    assert "12,345,678" in text
    assert "99.99 (r100)" in text


def test_every_method_has_its_line():
    names = ["zero_shot", "local", "flora", "feddlp"]
    text = shown(summarise([row(1, 10, None, name) for name in names]))
    first_words = [line.split()[0] for line in text.splitlines() if line.split()]
    assert [word for word in first_words if word in names] == names * 3


def test_a_title_with_brackets_is_shown_as_it_is():
    assert "runs/my[red]run" in shown(summarise(rows((1, 1))), "runs/my[red]run")
