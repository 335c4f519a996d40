"""Real processes on the loopback interface, killed at the worst moments; each run ends as an undisturbed one."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from safetensors.torch import load_file

from feddlp import experiment
from feddlp.config import load_config
from feddlp.errors import UserError
from feddlp.federation.flower.local import LocalFederation, federation
from feddlp.federation.flower.serving import new_run
from feddlp.progress import PlainReporter
from feddlp.records import RunFolder

pytestmark = pytest.mark.faults
WORDS = [
    *("data.clients=2", "data.partition=few_shot_iid", "data.shots=20"),
    *("training.rounds=3", "training.local_epochs=2", "methods=feddlp", "deployment.wait=90"),
    "model.dtype=float64",  # in which Adam cannot blow rounding up
]
WITHIN = 120.0  # seconds in which anything must have happened


class Listener(PlainReporter):
    """Remembers all lines, and interferes when a round is over."""

    def __init__(self):
        super().__init__(Console(quiet=True))
        self.lines, self.on_round = [], {}

    def line(self, text):
        self.lines.append(text)

    def round_finished(self, row):
        super().round_finished(row)
        self.on_round.pop(row["round"], lambda: None)()


@pytest.fixture(scope="module")
def model_loaded_once():
    """Here every process loads its own."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run in one process."""
    config = load_config(None, [*WORDS, f"runs_dir={tmp_path_factory.mktemp('undisturbed')}"])
    return experiment.run(config, PlainReporter(Console(quiet=True)))


@pytest.fixture
def folder(tmp_path):
    return new_run(load_config(None, [*WORDS, f"runs_dir={tmp_path}"]))


def assert_same(found: RunFolder, expected: RunFolder) -> None:
    for method in load_config(expected.config).methods:
        (round, state), (last, wanted) = found.load_checkpoint(method), expected.load_checkpoint(method)
        assert round == last
        for name, value in wanted.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-9)
    rows, wanted = (list(csv.DictReader(run.clients.read_text().splitlines())) for run in (found, expected))
    counts = ("method", "round", "client", "train_samples", "test_correct", "validation_correct", "active_ranks")
    assert [[row[key] for key in counts] for row in rows] == [[row[key] for key in counts] for row in wanted]


def processes(*words: str) -> list[int]:
    """Those whose command line has all the words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(place.name))
    return found


def wait_for(happened, what: str):
    end = time.monotonic() + WITHIN
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.1)
    pytest.fail(f"no {what} within {WITHIN:g} s")


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def resident_of(local: LocalFederation, node: int) -> list[int]:
    """The process that holds a node's model, found by its owner: a child of the SuperNode."""
    parent = local.running[f"node-{node}"].process.pid
    owners = processes("flower-superexec", f"--parent-pid {parent}")
    return [process for owner in owners for process in processes("feddlp.federation.flower.resident", f" {owner} ")]


def at_work(local: LocalFederation, node: int) -> list[int]:
    """The process of the message that a node is answering."""
    words = local.running[f"node-{node}"].process.args
    port = words[words.index("--port") + 1]
    return processes("flwr-clientapp", f"127.0.0.1:{port}")


@contextmanager
def bounded(seconds: float):
    """Nothing may hang."""

    def too_late(*_):
        raise AssertionError(f"not over after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(int(seconds))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def in_the_middle(local: LocalFederation, node: int) -> int:
    """Wait until a node trains; the process of the message."""

    def trains() -> bool:
        for lock in (local.place / f"node-{node}").glob("*/*/.lock"):
            try:
                with FileLock(lock, timeout=0):
                    pass
            except Timeout:
                return True
        return False

    wait_for(trains, "message at work")
    return at_work(local, node)[-1]


def test_processes_of_a_node_are_killed_in_training(folder, undisturbed):
    """First the one that Flower started for the message, then the one that holds the model."""
    listener = Listener()
    with bounded(300), federation(folder, 2, listener) as local:

        def kill_message():
            kill(in_the_middle(local, 0))

        def kill_resident():
            in_the_middle(local, 1)
            kill(resident_of(local, 1)[0])

        listener.on_round = {1: kill_message, 2: kill_resident}
        local.play()
    assert_same(folder, undisturbed)
    assert sum("its process died; asked again" in line for line in listener.lines) == 1
    assert not processes(str(folder.path)), "something of ours is left"


POISONED = """
import sys
if "feddlp.federation.flower.resident" in sys.orig_argv:
    import torch
    from feddlp.federation.flower import node
    from feddlp.federation.flower.parcels import Parcel
    honest = node.ANSWERS["train"]

    def poisoned(one, order):
        said = honest(one, order)
        if one.settings.name != "node-1" or order.facts["round"]:
            return said
        (name, theta), = said.adapters.items()
        return Parcel(said.facts, {{name: {{leaf: torch.full_like(v, {size}) for leaf, v in theta.items()}}}})

    node.ANSWERS["train"] = poisoned
"""


@pytest.mark.parametrize("size", [1e4, pytest.param(1e30, marks=pytest.mark.slow)])
def test_a_node_that_uploads_poison_is_left_out_and_the_run_ends_well(size, folder, tmp_path, monkeypatch):
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "sitecustomize.py").write_text(POISONED.format(size=size))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "poison"))
    listener = Listener()
    with bounded(300), federation(folder, 2, listener) as local:
        local.play()
    (line,) = [line for line in listener.lines if "left out" in line]
    assert re.search(r"feddlp round 1: client 1: left out: its upload has the norm \S+, out of all proportion", line)
    assert len(folder.read_rounds()) == 3
    kept = list(folder.path.rglob("*.safetensors"))
    assert {path.relative_to(folder.path).parts[0] for path in kept} == {"checkpoint", "federation"}
    for path in kept:
        assert all(value.isfinite().all() and value.abs().max() < 1e3 for value in load_file(path).values()), path


def test_a_supernode_is_killed_and_started_again(folder, undisturbed):
    listener = Listener()
    with bounded(300), federation(folder, 2, listener) as local:

        def kill_node():
            in_the_middle(local, 0)
            kill(local.running["node-0"].process.pid)
            local.start_node(0)  # with the state folder of the one before

        listener.on_round = {1: kill_node}
        local.play()
    assert_same(folder, undisturbed)
    assert any("node 'node-0' (clients 0) went away" in line for line in listener.lines)


@pytest.mark.parametrize("moment", [pytest.param("between", marks=pytest.mark.slow), "within"])
def test_the_superlink_and_the_server_are_killed_and_the_run_resumed(moment, folder, undisturbed):
    first, second = Listener(), Listener()
    with bounded(400):
        with federation(folder, 2, first) as local:

            def kill_link():
                if moment == "within":
                    in_the_middle(local, 0)
                for process in processes("flwr-serverapp", f"127.0.0.1:{local.port}"):
                    kill(process)
                kill(local.running["link"].process.pid)

            first.on_round = {1: kill_link}
            with pytest.raises(UserError, match=r"died.*feddlp federate resume"):
                local.play()
        assert len(folder.read_rounds()) < 3
        with federation(folder, 2, second) as local:
            local.play()
    assert_same(folder, undisturbed)
    assert any("goes on after round" in line for line in second.lines)
