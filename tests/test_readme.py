"""What the README tells people to type works, and what it says of the code is so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from feddlp.config import load_config
from feddlp.methods.feddlp import FedDLP
from feddlp.sweepfile import load_sweep
from terminal import forked, process

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
COMMANDS = [words for line in SHELL if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photos/, as a newcomer might have."""
    folder = tmp_path_factory.mktemp("home")
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for index in range(9):
            Image.new("RGB", (40, 30), (index * 20, 90, 200)).save(folder / "photos" / kind / f"{index}.jpg")
    return folder


FEW = ["data.partition=few_shot_iid", "data.shots=4"]
# fmt: off
SHORT = {  # what takes minutes or hours as it stands
    ("run",): ["training.rounds=1", "methods=zero_shot,flora"],
    ("run", "methods=feddlp", "training.rounds=2", "name=try"): FEW,
    ("bench", "model=tiny-clip"): ["seconds=0.3", "clients=2", "batch_size=4"],
    (
        "run", "data.dataset=glyphs:20000", "data.clients=1000", "data.partition=iid", "training.participation=0.01",
        "name=many",
    ): ["training.rounds=1", "methods=feddlp"],
    ("federate", "up", "methods=feddlp", "training.rounds=3", "name=apart"): ["data.clients=2", "training.rounds=1"],
    ("reproduce", "table7", "--seeds", "0"): ["training.rounds=1", "data.clients=2", *FEW],
}
# fmt: on


def typed(words, folder):
    """As it stands in the README, but shortened."""
    done = forked(*words, *SHORT.get(tuple(words), []), cwd=folder, COLUMNS="100")
    assert done.code == 0, (words, done.err)


def runs_in(folder):
    return {run.name for run in (folder / "runs").iterdir()}


def test_every_feddlp_command_works_as_written(home):
    """What takes long is shortened, sweeps are only read; the rest is typed as it stands."""
    commands = [words[1:] for words in COMMANDS if words[0] == "feddlp"]
    runs, models = ["run", "run", "show", "resume", "report", "run"], ["data", "export", "predict", "evaluate"]
    rest = ["bench", "run", "methods", "datasets", "sweep", "reproduce", "federate", "keys", "keys"]
    assert [words[0] for words in commands] == [*runs, *models, *rest]
    for words in commands:
        if words[0] == "sweep":
            assert load_sweep(ROOT / words[1]).methods
        elif words[0] != "federate":
            typed(words, home)
    assert runs_in(home) == {"demo", "try", "mine", "many", "reproduce"}


def test_the_cpu_build_is_the_pinned_version():
    (words,) = [words for words in COMMANDS if words[0] == ".venv/bin/pip"]
    assert words[1:] == ["install", words[2], "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert words[2] in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.faults
def test_so_does_the_one_that_starts_a_federation(tmp_path):
    (words,) = (words[1:] for words in COMMANDS if words[1] == "federate")
    typed(words, tmp_path)
    assert runs_in(tmp_path) == {"apart"}
    assert (tmp_path / "runs/apart/report.html").is_file()


def test_a_second_run_of_one_name_goes_beside_the_first(tmp_path):
    for run in (process, forked):
        done = run("run", "training.rounds=1", "methods=zero_shot", cwd=tmp_path)
        assert done.code == 0, done.err
    assert "runs/demo exists, so this run is demo-2" in done.out
    assert "1,797 images, 10 classes, 10 clients; train 1,215, validation 129, test 453" in done.out
    assert runs_in(tmp_path) == {"demo", "demo-2"}


@pytest.mark.slow
def test_the_demo_as_it_stands_learns_clearly_more_than_zero_shot(tmp_path):
    """The bare command, minutes long, with the gain that the README speaks of."""
    done = process("run", cwd=tmp_path)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "runs/demo/rounds.jsonl").read_text().splitlines()]
    final = {row["method"]: row["test"]["pooled"] for row in rows}
    assert final["feddlp"] > final["zero_shot"] + 15


def test_make_knows_every_target_that_is_named():
    named = {words[1] for words in COMMANDS if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)`", README))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named
    assert named <= targets


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_algorithm_is_quoted_from_the_source():
    quoted = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    source = (ROOT / "src/feddlp/methods/feddlp.py").read_text()
    body = [line.strip() for line in quoted.splitlines() if not line.startswith("def ")]
    assert all(line in source for line in body)
    assert FedDLP.shared == ("global",)


def test_the_map_names_what_there_is():
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    for name in re.findall(r"`([a-z_]+(?:\.py|/))`", table):
        assert any((ROOT / place / name).exists() for place in ("", "src/feddlp", "tests")), name


def test_the_demo_is_what_the_readme_says():
    demo = load_config(None)
    assert (demo.data.dataset, demo.data.clients, demo.data.dirichlet_beta) == ("digits", 10, 0.1)
    assert (demo.model.adapt, demo.training.rounds) == ("image", 12)
    assert demo.methods == ("zero_shot", "local", "flora", "feddlp")
    assert "10 clients, Dirichlet 0.1, image tower, 12 rounds" in README


def test_the_configuration_page_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import write_configuration_docs

    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == write_configuration_docs.text()
