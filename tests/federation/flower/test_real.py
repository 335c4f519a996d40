"""The commands of real machines, with certificates, and Flower's simulation engine; both on the loopback interface."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from feddlp.federation.flower.processes import free_ports

pytestmark = pytest.mark.faults
SHORT = ["data.clients=2", "training.rounds=1", "methods=flora", "name=run"]


def feddlp(*words, folder, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "feddlp", *map(str, words)], cwd=folder, env=environment, **options)


def done(*words, folder):
    """What a command that ends by itself said."""
    process = feddlp(*words, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, (words, said)
    return said


def accuracy(folder):
    """After the last round."""
    return json.loads((folder / "runs/run/rounds.jsonl").read_text().splitlines()[-1])["test"]["pooled"]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_process")
    done("run", *SHORT, folder=folder)
    return accuracy(folder)


@contextmanager
def two_sites(folder):
    """A SuperLink and two nodes that it knows; gives the options that say where, and each site's process."""
    link, *ports = free_ports(3)
    to = ["--link", f"localhost:{link}", "--keys", "keys"]
    done("keys", "server", "--host", "localhost", folder=folder)
    with ExitStack() as stack, (folder / "log").open("wb") as log:

        def begin(*words):
            process = feddlp(*words, folder=folder, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait, 30)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
            return process

        begin("federate", "link", "--port", link, "--keys", "keys")
        sites = []
        for client, port in enumerate(ports):
            name = f"site-{client}"
            done("keys", "node", name, folder=folder)
            own = ["--name", name, "--clients", client, "--state-dir", f"state-{client}", "--port", port]
            sites.append(begin("federate", "node", *to, *own))  # it is let in later
            registered(name, client, to, folder)
        yield to, sites


def registered(name, client, to, folder):
    """A SuperLink takes some seconds to come up."""
    for _ in range(30):
        words = ["federate", "register", f"keys/{name}.pub", "--clients", client, *to]
        register = feddlp(*words, folder=folder, stdout=subprocess.PIPE, text=True)
        said, _ = register.communicate()
        if f"{name} may join with clients {client}" in said:
            return
        time.sleep(1)
    pytest.fail((folder / "log").read_text())


def test_two_sites_with_certificates_and_keys(tmp_path, in_process):
    with two_sites(tmp_path) as (to, _):
        said = done("federate", "run", *SHORT, *to, folder=tmp_path)
        mistake = feddlp(
            "federate", "run", *SHORT, "data.clients=3", "deployment.wait=1", "deployment.quorum=1", *to,
            folder=tmp_path, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        _, error = mistake.communicate(timeout=180)
        assert done("federate", "stop", *to, folder=tmp_path) == "nothing is under way\n"
    assert "node 'site-0' (clients 0)" in said
    assert "Test accuracy in %" in said
    assert "runs/run/report.html" in said
    assert accuracy(tmp_path) == in_process
    assert mistake.returncode == 2
    assert re.match(r"feddlp: error: \d of 3 clients came within deployment.wait=1 s", error)
    assert error.count("\n") == 1
    for client in (0, 1):
        assert "feddlp export" in done(
            "federate", "take", f"state-{client}", "--to", f"runs/site-{client}", folder=tmp_path
        )
        done("export", f"runs/site-{client}", "--client", client, "--to", f"client{client}", folder=tmp_path)


@pytest.mark.slow
def test_a_killed_node_with_a_key_comes_back_by_itself(tmp_path):
    """The SuperLink takes a minute to see that it is gone, and refuses the new one until then."""
    words = [*SHORT, "training.rounds=3"]
    killed = 0
    with two_sites(tmp_path) as (to, sites):
        with feddlp("federate", "run", *words, *to, folder=tmp_path, stdout=subprocess.PIPE, text=True) as run:
            for line in run.stdout:
                if "round 1/3" in line:
                    killed += kill_children(sites[1].pid, b"flower-supernode")
        assert run.returncode == 0
    found = accuracy(tmp_path)
    assert killed == 1
    assert "ended with code -9; it is started again" in (tmp_path / "log").read_text()
    done("run", *words, "name=alone", folder=tmp_path)
    last = (tmp_path / "runs/alone/rounds.jsonl").read_text().splitlines()[-1]
    assert found == json.loads(last)["test"]["pooled"]


def kill_children(parent, name):
    """Kill those of a process that have this name; how many there were."""
    killed = 0
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended by now
            if name in (place / "cmdline").read_bytes() and f"PPid:\t{parent}\n" in (place / "status").read_text():
                os.kill(int(place.name), signal.SIGKILL)
                killed += 1
    return killed


def test_the_simulation_engine(tmp_path, in_process):
    pytest.importorskip("ray", reason="needs the extra flower-sim")
    done("federate", "up", "--nodes", "2", "--simulation", *SHORT, folder=tmp_path)
    assert accuracy(tmp_path) == in_process
