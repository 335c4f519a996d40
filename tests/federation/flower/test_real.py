"""The commands of real machines, with certificates, and Flower's simulation engine; both on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

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
    return json.loads((folder / "runs/run/rounds.jsonl").read_text())["test"]["pooled"]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_process")
    done("run", *SHORT, folder=folder)
    return accuracy(folder)


def test_two_sites_with_certificates_and_keys(tmp_path, in_process):
    link, *ports = free_ports(3)
    to = ["--link", f"localhost:{link}", "--keys", "keys"]
    done("keys", "server", "--host", "localhost", folder=tmp_path)
    with ExitStack() as stack, (tmp_path / "log").open("wb") as log:

        def begin(*words):
            process = feddlp(*words, folder=tmp_path, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait, 30)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)

        begin("federate", "link", "--port", link, "--keys", "keys")
        for client, port in enumerate(ports):
            name = f"site-{client}"
            done("keys", "node", name, folder=tmp_path)
            registered(name, to, tmp_path)
            own = ["--name", name, "--clients", client, "--state-dir", f"state-{client}", "--port", port]
            begin("federate", "node", *to, *own)
        said = done("federate", "run", *SHORT, *to, folder=tmp_path)
    assert "node 'site-0' (clients 0)" in said
    assert accuracy(tmp_path) == in_process
    for client in (0, 1):
        assert "feddlp export" in done(
            "federate", "take", f"state-{client}", "--to", f"runs/site-{client}", folder=tmp_path
        )
        done("export", f"runs/site-{client}", "--client", client, "--to", f"client{client}", folder=tmp_path)


def registered(name, to, folder):
    """A SuperLink takes some seconds to come up."""
    for _ in range(30):
        said = subprocess.run(
            [sys.executable, "-m", "feddlp", "federate", "register", f"keys/{name}.pub", *to],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "registered successfully" in said.stdout:
            return
        time.sleep(1)
    pytest.fail(said.stdout + said.stderr)


@pytest.mark.slow
def test_the_simulation_engine(tmp_path, in_process):
    pytest.importorskip("ray", reason="needs the extra flower-sim")
    done("federate", "up", "--nodes", "2", "--simulation", *SHORT, folder=tmp_path)
    assert accuracy(tmp_path) == in_process
