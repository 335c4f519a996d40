"""The paper's tables from runs of our own: what is planned, what is shared, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from feddlp.config import Config, DataConfig
from feddlp.errors import UserError
from feddlp.progress import PlainReporter
from feddlp.records import RunFolder
from feddlp.report.paper import TABLES, needs
from feddlp.report.paper_forms import PaperTable
from feddlp.report.paper_numbers import Key
from feddlp.reproduce import (
    Request,
    check_tables,
    check_which,
    is_papers_model,
    make,
    places,
    plan,
    reproduce,
    split_data,
)

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
    assert (made.csv, made.page) == (made.folders[0] / "table5.csv", made.folders[0] / "report.html")
    assert made.page is not None
    page = made.page.read_text()
    assert "Table V: MiB per client" in page
    assert 'id="s2-accuracy"' in page, "two beta are two settings"


def shown_paper(made: PaperTable) -> tuple[bool, list[str]]:
    return made.has_paper, [note for note in made.notes if "left out" in note]


def recorded(folder: Path, **data: Any) -> RunFolder:
    """A folder with nothing but its complete configuration."""
    folder.mkdir()
    (folder / "config.toml").write_text(Config(data=DataConfig(**data)).to_toml())
    return RunFolder(folder)


def test_the_papers_numbers_need_its_model_its_data_and_its_partition(tmp_path, monkeypatch):
    like, unlike = recorded(tmp_path / "a"), recorded(tmp_path / "b", clients=2)
    row = {"round": 1, "seed": 0, "test": {"pooled": 50.0}, "validation": None, "parameters_sent": 1}
    pets, digits = ({Key("feddlp", "image", name, 0.1): [[row]]} for name in ("pets", "digits"))
    request = Request(("table7",), model="papers")
    monkeypatch.setattr("feddlp.reproduce.is_papers_model", lambda model: model == "papers")
    assert shown_paper(make(request, "table7", pets, [like, like])) == (True, [])
    beside, (why,) = shown_paper(make(request, "table7", pets, [like, unlike]))
    assert (beside, "data.clients = 2 (the paper: 10)" in why) == (False, True)
    beside, (why,) = shown_paper(make(request._replace(model="other"), "table7", pets, [unlike]))
    assert (beside, "ViT-B/32" in why) == (False, True)
    assert make(request, "table7", digits, [unlike]).name == "table7"


def test_other_data_and_models_never_overwrite_each_other(tmp_path):
    folders = {data: [plan(Request(("table1",)), "table1", data).folder] for data in ("digits", "pets=folder:x")}
    both = [folder for found in folders.values() for folder in found]
    asked = [
        (Request(("table1",), data=("digits",)), folders["digits"]),
        (Request(("table1",), data=("pets=folder:x",)), folders["pets=folder:x"]),
        (Request(("table1",), data=tuple(folders)), both),
        (Request(("table1",), data=tuple(folders), model="other"), both),
        (Request(("table1",), data=("digits", "dtd=folder:y")), both),
    ]
    written = [path for request, found in asked for path in places(request, found)]
    assert len(set(written)) == len(written)
    assert written[0].parent == folders["digits"][0]
    assert written[4].parent == folders["digits"][0].parent
    assert all(label in written[4].name for label in ("digits", "pets", "tiny-clip", "table1"))
    assert places(Request(("table3",)), folders["digits"])[0] != written[0]


def test_the_papers_names_bring_their_prompts_and_rates():
    sweep = plan(Request(("table1",), model="tiny-clip"), "table1", "pets=folder:photos")
    assert sweep.config["data"]["known_as"] == "pets"
    assert sweep.config["data"]["dataset"].endswith("photos")
    assert split_data("digits") == ("digits", "digits")


def test_only_a_clip_of_its_shape_is_the_papers_model(tmp_path):
    assert not is_papers_model("tiny-clip")
    shape = {"patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12}
    for kind in ("clip", "siglip"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": shape}))
        assert is_papers_model(str(tmp_path)) == (kind == "clip")


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
