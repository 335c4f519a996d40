"""The process that a SuperNode starts for a message."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from feddlp.federation.flower import machines

SLOW = """
import sys, time
from pathlib import Path
here = Path(__file__).parent
(here / "imported").open("a").write("x")
while not (here / "go").exists():
    time.sleep(0.02)
def flwr_clientapp():
    (here / "token").open("a").write(sys.argv[sys.argv.index("--token") + 1] + " ")
"""


@pytest.fixture
def node(tmp_path):
    """What a SuperNode finds as its `flwr-clientapp`, where Flower's own imports take long."""
    package = tmp_path / "site" / "flwr" / "supernode" / "cli"
    package.mkdir(parents=True)
    for folder in (package.parent.parent, package.parent):
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(SLOW)
    settings = {"clients": "0", "state-dir": str(tmp_path / "state")}
    _, variables = machines.node("127.0.0.1:8000", 9094, settings, machines.Trust(None), tmp_path / "a place")
    variables["PYTHONPATH"] = str(tmp_path / "site")

    def start(token, address="127.0.0.1:9094"):
        command = ["flwr-clientapp", "--runtime-api-address", address, "--token", token, "--insecure"]
        with (package / "said").open("w") as said:
            return subprocess.Popen(command, env=variables, stderr=said, executable=found(variables))

    return start, package


def found(variables):
    return next(
        path for folder in variables["PATH"].split(os.pathsep) if os.access(path := f"{folder}/flwr-clientapp", os.X_OK)
    )


def wait_for(path, content):
    end = time.monotonic() + 20
    while not path.exists() or path.read_text() != content:
        assert time.monotonic() < end, path
        time.sleep(0.02)


def test_of_several_processes_for_a_message_one_goes_on_with_the_newest_token(node):
    start, place = node
    first = start("a")
    wait_for(place / "imported", "x")
    for token in ("b", "c"):
        assert start(token).wait(20) == 1
        assert (place / "said").read_text() == "feddlp: another process is about to answer this message\n"
    (place / "go").touch()
    assert first.wait(20) == 0
    assert (place / "imported").read_text() == "x"
    assert (place / "token").read_text() == "c "
    start("d").wait(20)
    assert (place / "token").read_text() == "c d "


def test_another_node_on_the_machine_is_not_held_up(node):
    start, place = node
    first = start("a")
    wait_for(place / "imported", "x")
    second = start("b", "127.0.0.1:9095")
    wait_for(place / "imported", "xx")
    (place / "go").touch()
    assert [first.wait(20), second.wait(20)] == [0, 0]
    assert sorted((place / "token").read_text().split()) == ["a", "b"]


def test_one_that_is_killed_leaves_the_way_free(node):
    start, place = node
    first = start("a")
    wait_for(place / "imported", "x")
    first.kill()
    first.wait()
    (place / "go").touch()
    assert start("b").wait(20) == 0
    assert (place / "token").read_text() == "b "


def test_what_comes_before_the_lock_is_light():
    heavy = "import sys, feddlp.federation.flower.once; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.split()
    assert not {"flwr", "torch", "numpy", "httpx", "pydantic", "cryptography"} & {*modules}
