"""Killed at any point, a run goes on and ends as if nothing had happened, to the bit."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from feddlp import cli, experiment, files, states
from feddlp.config import load_config
from feddlp.federation.clients import Block, ClientStore
from feddlp.progress import PlainReporter
from feddlp.record_types import Environment
from feddlp.records import RunFolder
from terminal import Begun, assert_mistake, forked

METHODS = ("flora", "feddlp")
CLIENTS = 3


def deadly(function, count, when):
    """The same function, which kills the process, without any clean-up, before or after its count-th call."""
    calls = itertools.count(1)

    def replacement(*args, **kwargs):
        due = next(calls) == count
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return replacement


def run_and_die(point, count, when):
    """The command, until a function of this name is called for the count-th time."""
    owner = next(owner for owner in (files, RunFolder, ClientStore, Block) if hasattr(owner, point))
    setattr(owner, point, deadly(getattr(owner, point), count, when))
    cli.main()


def feddlp(*words):
    return forked(*words, cwd=Path.cwd())


def assert_killed(point, count, when, *words):
    """Play a run up to this point."""
    ended = forked("run", *words, cwd=Path.cwd(), do=partial(run_and_die, point, count, when))
    assert ended.code == -signal.SIGKILL, ended.err


def play(*words):
    """A whole run in this process, which spares the time in which one gets going."""
    return experiment.run(load_config(None, words), PlainReporter(Console(quiet=True))).path


def carry_on(folder):
    experiment.resume(folder, PlainReporter(Console(quiet=True)))


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A short run on a folder of forty small pictures."""
    photos, digits = tmp_path_factory.mktemp("photos"), load_digits()
    for index in range(40):
        kind = photos / f"digit_{digits.target[index]}"
        kind.mkdir(exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype("uint8")).save(kind / f"{index}.png")
    return (
        "methods=" + ",".join(METHODS),
        f"data.dataset=folder:{photos}",
        f"data.clients={CLIENTS}",
        "data.dirichlet_beta=1.0",
        "training.rounds=3",
        "method.gate_threshold=0.05",
    )


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = feddlp("run", *options, f"runs_dir={folder}")
    assert done.code == 0, done.err
    return folder / "demo"


def rounds(folder: Path):
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "peak_mib")} for row in rows]


def tensors(folder: Path):
    """Every tensor of every file of a checkpoint."""
    files = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    return {(file, name): value for file, content in files.items() for name, value in content.items()}


def assert_same_end(found: Path, expected: Path):
    assert rounds(found) == rounds(expected)
    assert (found / "clients.csv").read_text() == (expected / "clients.csv").read_text()
    for method in METHODS:
        states = [tensors(folder / "checkpoint" / method) for folder in (found, expected)]
        assert states[0].keys() == states[1].keys()
        assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert not list(found.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("point", "count", "when"),
    [
        ("record_round", 1, "before"),  # before anything of the first round is written
        pytest.param("record_round", 2, "after", marks=pytest.mark.slow),  # records written, no checkpoint
        ("append", 3, "after"),  # clients.csv written, rounds.jsonl not
        ("write_atomically", 4, "after"),  # the method has begun, nothing else
        ("write_atomically", 5, "before"),  # tensors of the first checkpoint written, state.json not
        ("save_checkpoint", 3, "after"),  # the first method has just finished
        pytest.param("save_checkpoint", 5, "after", marks=pytest.mark.slow),  # in the middle of the second
    ],
)
def test_killed_and_resumed_equals_undisturbed(point, count, when, undisturbed, options, tmp_path):
    assert_killed(point, count, when, *options, f"runs_dir={tmp_path}")
    carry_on(tmp_path / "demo")
    assert_same_end(tmp_path / "demo", undisturbed)


# Two of three clients in a round, one after the other: six blocks in two methods, and the server's file after each two
WAVES = ("training.participation=0.7", "training.wave=1")


@pytest.fixture(scope="module", params=["disk", "memory"])
def in_waves(request, options, tmp_path_factory):
    """The options of a run in waves, and its end."""
    words = (*options, *WAVES, f"training.client_store={request.param}")
    return words, play(*words, f"runs_dir={tmp_path_factory.mktemp(request.param)}")


@pytest.mark.parametrize(
    ("point", "count", "when"),
    [
        pytest.param(
            "record_clients", 1, "after", marks=pytest.mark.slow
        ),  # everybody scored as they begin, nothing else
        pytest.param("put", 3, "after", marks=pytest.mark.slow),  # between the waves of the second round
        ("put", 4, "after"),  # all waves played, nothing recorded
        ("write", 3, "after"),  # one client file of the second round written
        pytest.param("write_whole", 11, "before", marks=pytest.mark.slow),  # all client files written, the server's not
        ("write_atomically", 6, "before"),  # the server's file written, state.json not
    ],
)
def test_killed_between_waves_and_files_equals_undisturbed(point, count, when, in_waves, tmp_path):
    words, expected = in_waves
    assert_killed(point, count, when, *words, f"runs_dir={tmp_path}")
    carry_on(tmp_path / "demo")
    assert_same_end(tmp_path / "demo", expected)


def test_a_damaged_client_file_is_named_before_anybody_trains_on_it(in_waves, tmp_path):
    _, finished = in_waves
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for file in (folder / "checkpoint" / "flora").glob("round-*-*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
    original = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(original.replace("rounds = 3", "rounds = 4"))
    refused = feddlp("resume", str(folder))
    assert_mistake(refused)
    assert re.search(r"flora/round-\d+-\d\.safetensors is damaged \(its checksum differs\)", refused.err)
    assert rounds(folder)[:3] == rounds(finished)[:3]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_cleanly_and_says_how_to_go_on(stop, undisturbed, options, tmp_path):
    process = Begun("run", *options, f"runs_dir={tmp_path}", cwd=tmp_path)
    folder = tmp_path / "demo"
    deadline = time.monotonic() + 120
    while not list((folder / "checkpoint" / "flora").glob("round-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.stop(stop)
    ended = process.end(within=60)
    assert (ended.code, ended.err) == (130, f"feddlp: stopped; go on with: feddlp resume {folder}\n")
    assert feddlp("resume", str(folder)).code == 0
    assert_same_end(folder, undisturbed)


def test_resuming_a_finished_run_changes_nothing(undisturbed):
    before = {path: path.read_bytes() for path in sorted(undisturbed.rglob("*")) if path.is_file()}
    again = feddlp("resume", str(undisturbed))
    assert again.code == 0
    assert "already finished" in again.out
    assert {path: path.read_bytes() for path in sorted(undisturbed.rglob("*")) if path.is_file()} == before


def test_the_records_agree_with_each_other(undisturbed):
    with (undisturbed / "clients.csv").open() as file:
        clients = list(csv.DictReader(file))
    for row in rounds(undisturbed):
        mine = [c for c in clients if c["method"] == row["method"] and int(c["round"]) == row["round"]]
        correct, samples = (sum(int(client[key]) for client in mine) for key in ("test_correct", "test_samples"))
        assert len(mine) == CLIENTS
        assert row["test"]["pooled"] == pytest.approx(100 * correct / samples, abs=1e-5)
        assert row["test"]["client_lowest"] == pytest.approx(min(float(c["test_accuracy"]) for c in mine), abs=1e-5)


def test_show_prints_the_table_again(undisturbed):
    shown = feddlp("show", str(undisturbed))
    assert shown.code == 0
    for method in METHODS:
        assert method in shown.out


def test_other_data_is_refused_on_resume(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    found = states.read(folder / "environment.json", Environment)
    states.write(folder / "environment.json", found.model_copy(update={"data": "0" * 64}))
    refused = feddlp("resume", str(folder))
    assert_mistake(refused, "the data is not the one that the run began with")
    assert rounds(folder) == rounds(undisturbed)


def test_an_edited_configuration_is_refused_on_resume_and_more_rounds_are_not(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    original = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(original.replace("batch_size = 32", "batch_size = 16"))
    refused = feddlp("resume", str(folder))
    assert_mistake(refused, "the configuration is not the one that the run began with")
    (folder / "config.toml").write_text(original.replace("rounds = 3", "rounds = 4"))
    assert "Unfinished (flora 1, feddlp 1 rounds to go)" in feddlp("show", str(folder)).out
    assert feddlp("resume", str(folder)).code == 0
    assert rounds(folder)[:6] == rounds(undisturbed)
    assert [(row["method"], row["round"]) for row in rounds(folder)[6:]] == [("flora", 4), ("feddlp", 4)]


@pytest.mark.parametrize("delay", [0.3, 1.5, 3.0])
def test_an_interrupt_before_anything_is_written_is_no_success(delay, options, tmp_path):
    command = [sys.executable, "-m", "feddlp", "run", *options, f"runs_dir={tmp_path / 'runs'}"]
    hear = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # where tests run in the background, children ignore it
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=hear) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (130, -signal.SIGINT)
