"""What the README tells people to type works, and what it says of the code is so."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from feddlp.config import load_config
from feddlp.methods.feddlp import FedDLP
from feddlp.sweepfile import load_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
COMMANDS = [words for line in SHELL if (words := shlex.split(line, comments=True))]


def feddlp(words, folder):
    command = [sys.executable, "-m", "feddlp", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, check=False, env=environment
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photos/, as a newcomer might have."""
    folder = tmp_path_factory.mktemp("home")
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for index in range(9):
            Image.new("RGB", (40, 30), (index * 20, 90, 200)).save(folder / "photos" / kind / f"{index}.jpg")
    return folder


# fmt: off
SHORT = {  # what takes minutes or hours as it stands
    ("run",): ["training.rounds=1", "methods=zero_shot,flora"],
    ("bench", "model=tiny-clip"): ["seconds=1"],
    (
        "run", "data.dataset=glyphs:20000", "data.clients=1000", "data.partition=iid", "training.participation=0.01",
        "name=many",
    ): ["training.rounds=1", "methods=feddlp"],
    ("federate", "up", "methods=feddlp", "training.rounds=3", "name=apart"): ["data.clients=2", "training.rounds=1"],
    ("reproduce", "table7", "--seeds", "0"): ["training.rounds=1", "data.clients=2", "data.partition=iid"],
}
# fmt: on


def test_every_feddlp_command_works_as_written(home):
    """What takes long is shortened, sweeps are only read; the rest is typed as it stands."""
    commands = [words[1:] for words in COMMANDS if words[0] == "feddlp"]
    runs, models = ["run", "run", "show", "resume", "report", "run"], ["data", "export", "predict", "evaluate"]
    rest = ["bench", "run", "methods", "datasets", "sweep", "reproduce", "federate", "keys", "keys"]
    assert [words[0] for words in commands] == [*runs, *models, *rest]
    for words in commands:
        if words[0] == "sweep":
            assert load_sweep(ROOT / words[1]).methods
            continue
        done = feddlp([*words, *SHORT.get(tuple(words), [])], home)
        assert done.returncode == 0, (words, done.stderr)
    assert {folder.name for folder in (home / "runs").iterdir()} == {
        "demo",
        "try",
        "mine",
        "many",
        "reproduce",
        "apart",
    }


def test_a_second_run_of_one_name_goes_beside_the_first(tmp_path):
    for _ in range(2):
        done = feddlp(["run", "training.rounds=1", "methods=zero_shot"], tmp_path)
        assert done.returncode == 0, done.stderr
    assert "runs/demo exists, so this run is demo-2" in done.stdout
    assert "1,797 images, 10 classes, 10 clients; train 1,215, validation 129, test 453" in done.stdout
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"demo", "demo-2"}


@pytest.mark.slow
def test_the_demo_as_it_stands_learns_clearly_more_than_zero_shot(tmp_path):
    """The bare command, minutes long, with the gain that the README speaks of."""
    done = feddlp(["run"], tmp_path)
    assert done.returncode == 0, done.stderr
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
