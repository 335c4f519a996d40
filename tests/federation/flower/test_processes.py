"""Programs that are kept running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from feddlp.federation.flower import processes

FAILS_TWICE = """
import sys
from pathlib import Path
count = Path(sys.argv[1])
count.write_text(count.read_text() + "x")
sys.exit(len(count.read_text()) < 3)
"""


def test_what_fails_is_started_again_until_it_ends_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PAUSE", 0.0)
    (tmp_path / "count").touch()
    said = []
    processes.keep_running([sys.executable, "-c", FAILS_TWICE, str(tmp_path / "count")], os.environ, said.append)
    assert (tmp_path / "count").read_text() == "xxx"
    assert len(said) == 2
    assert "ended with code 1; it is started again in 0 s" in said[0]


def test_no_second_interface_is_opened_and_no_proxy_of_the_house_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    found = processes.environment(tmp_path)
    assert (found["FLWR_INTERNAL_GRPC_CONTROL_API"], found["FLWR_HOME"]) == ("0", str(tmp_path))
    assert (found["NO_PROXY"], found["no_proxy"]) == (f"example.org,{processes.LOCAL}", processes.LOCAL)


def test_who_insists_ends_it_at_once(monkeypatch):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        process.stdout.readline()

        def insist(patience):
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(process, "wait", insist)
        with pytest.raises(KeyboardInterrupt):
            processes.end(process)
        assert process.returncode == -signal.SIGKILL


def test_an_interrupt_ends_it_and_nothing_is_started_again(tmp_path):
    place = tmp_path / "process"
    program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"

    def interrupt():
        while not place.exists() or not place.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.keep_running([sys.executable, "-c", program, str(place)], os.environ, pytest.fail)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.read_text()), 0)
