"""The paper's tables from runs of our own: what is planned, what is shared, what is refused."""

from __future__ import annotations

import csv

import pytest

from feddlp.errors import UserError
from feddlp.progress import PlainReporter
from feddlp.report.paper import TABLES, needs
from feddlp.reproduce import Request, check_tables, check_which, is_papers_model, plan, reproduce, split_data

SMALL = ("data.partition=iid", "data.clients=2", "training.rounds=1", "training.diagnostics=false")


class Silent(PlainReporter):
    """Counts the rounds that were really played."""

    def __init__(self) -> None:
        self.folder, self.rounds, self.played = None, 0, 0

    def line(self, text: str) -> None:
        pass

    def round_finished(self, row: object) -> None:
        self.played += 1


@pytest.mark.parametrize("table", TABLES)
def test_a_plan_covers_exactly_what_a_table_needs(table):
    sweep = plan(Request((table,)), table, "digits")
    planned = {
        (method, setting["model.adapt"], setting["data.dirichlet_beta"])
        for setting in sweep.settings()
        for method in sweep.methods
    }
    assert planned == set(needs(table))


def test_tables_share_their_runs_and_nothing_is_played_twice(tmp_path):
    overrides = (*SMALL, f"runs_dir={tmp_path}")
    first = Silent()
    made = reproduce(Request(("table5",), seeds=(0,), target=1.0, overrides=overrides), first)
    assert first.played == 2 * 3  # two beta, three methods; a round of one lane each
    again = Silent()
    reproduce(Request(("table5",), seeds=(0,), target=1.0, overrides=overrides), again)
    assert again.played == 0
    rows = list(csv.DictReader(made.csv.read_text().splitlines()))
    assert {row["method"] for row in rows} >= {"flora", "feddat", "feddlp"}
    assert not any(row["paper_mean"] for row in rows)  # neither the paper's data nor its model
    assert made.failed == {}


def test_the_papers_names_bring_their_prompts_and_rates():
    sweep = plan(Request(("table1",), model="tiny-clip"), "table1", "pets=folder:photos")
    assert sweep.config["data"]["known_as"] == "pets"
    assert sweep.config["data"]["dataset"].endswith("photos")
    assert split_data("digits") == ("digits", "digits")


def test_the_embedded_model_is_not_the_papers():
    assert not is_papers_model("tiny-clip")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: check_tables(["table9"]), "table9"),
        (lambda: check_tables([]), "name a table"),
        (lambda: check_which("finale"), "did you mean final"),
        (lambda: split_data("cats=folder:x"), "'cats' is not one of the paper's data sets"),
        (lambda: plan(Request(("fig2",), overrides=("training.round=3",)), "fig2", "digits"), "training.round"),
        (lambda: plan(Request(("fig2",), seeds=(-1,)), "fig2", "digits"), "seed"),
    ],
)
def test_mistakes_are_one_line(mistake, said):
    with pytest.raises(UserError, match=said) as caught:
        mistake()
    assert "\n" not in str(caught.value)


def test_all_means_all():
    assert check_tables(["all", "table1"]) == tuple(TABLES)
