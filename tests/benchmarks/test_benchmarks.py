"""Every benchmark runs from its command line to its last line, on next to nothing."""

from __future__ import annotations

import importlib
import io
import json
import socket
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from feddlp.federation.rounds import Federation
from feddlp.training.cohort import Cohort

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ["data.clients=2", "data.partition=few_shot_iid", "data.shots=1", "training.batch_size=4", "model.device=cpu"]


@pytest.fixture
def load(monkeypatch) -> Callable[[str], ModuleType]:
    """load(name): a benchmark whose further processes are calls in this one, and which leaves this one as it was."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def begin(name: str) -> ModuleType:
        module = importlib.import_module(name)

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            with redirect_stdout(io.StringIO()) as said:
                module.main(command[2:])
            return subprocess.CompletedProcess(command, 0, said.getvalue())

        if hasattr(module, "subprocess"):
            monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
        if hasattr(module, "keep_freed_memory"):
            monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
        return module

    return begin


def test_this_file_tries_every_benchmark():
    names = {file.stem for file in FOLDER.glob("*.py")}
    assert [name for name in names if f'load("{name}")' not in Path(__file__).read_text()] == []


def test_full_fine_tuning_is_compared_with_flora(load, capsys):
    words = ["--model", "tiny-clip", "--steps", "1", "--rounds", "1", "--batch", "2"]
    load("fedavg_against_flora").main(words)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["fedavg", "flora_released", "flora"]
    trained, sent = ([float(row[place].replace(",", "")) for row in rows] for place in (1, 6))
    assert trained[0] > 10 * trained[2] > 10 * trained[1] > 0
    assert sent == [pytest.approx(2 * 4 * count / 2**20, abs=0.005) for count in trained]


def test_rounds_are_measured_over_the_number_of_clients(load, capsys, tmp_path, monkeypatch):
    module = load("scale")
    for owner, name in ((Cohort, "fit"), (Cohort, "correct"), (Federation, "score_start")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # the benchmark's clock stays no longer than this test
    monkeypatch.setattr(module, "JOINING", 2)
    monkeypatch.setattr(module, "IMAGES", 30)
    module.main(["--clients", "2", "4", "--rounds", "3", "--plot", str(tmp_path / "scale.svg")])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["clients"] for row in rows] == [2, 4]
    assert all(row["train_s"] > 0 and row["evaluate_s"] > 0 for row in rows)
    assert "<svg" in (tmp_path / "scale.svg").read_text()


def test_seeds_train_side_by_side(load, capsys):
    load("seeds_side_by_side").main(["--seeds", "2", "--rounds", "1", *TINY])
    assert capsys.readouterr().out.startswith("feddlp, 2 seeds, data.clients=2")


def test_messages_are_counted_and_compared_with_what_is_shared(load, capsys, monkeypatch):
    """The federation itself is a stand-in: a round is what its relay and its events would tell of it."""
    module = load("flower_messages")

    def start(federation: Any) -> None:
        federation.relay = SimpleNamespace(counts={"up": 0, "down": 0})

    def play(federation: Any) -> None:
        for number in (1, 2, 3):
            federation.relay.counts = {"up": 8 * number, "down": 4 * number}
            said = {"subject": f"feddlp round {number}", "seconds": 0.5}
            with (federation.folder.path / "events.jsonl").open("a") as file:
                file.write(json.dumps({"event": "answered", "said": [said]}) + "\n")
            federation.reporter.round_finished({"seconds": 2.0, "clients": 4, "parameters_sent": 1})

    monkeypatch.setattr(module.Measured, "start", start)
    monkeypatch.setattr(module.Measured, "play", play)
    module.main(["--rounds", "3", "--warm", "--adapt", "image", *TINY])
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = {"round_s": 2.0, "overhead_s": 1.5, "up": 8, "up_theory": 8, "down": 4, "down_theory": 4}
    assert found == {"adapt": "image", "warm": True, **expected}


def test_the_relay_passes_everything_on_and_counts_it(load):
    relay = SimpleNamespace(counts={"up": 0})
    (node, near), (far, link) = socket.socketpair(), socket.socketpair()
    with node, near, far, link:
        node.sendall(b"message")
        node.shutdown(socket.SHUT_WR)
        load("flower_messages").Relay.pass_on(relay, near, far, "up")
        assert (link.recv(100), link.recv(100), relay.counts) == (b"message", b"", {"up": 7})
