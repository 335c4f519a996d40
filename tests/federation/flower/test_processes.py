"""Programs that are kept running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from feddlp.errors import UserError
from feddlp.federation.flower import processes

FAILS_TWICE = """
import sys
from pathlib import Path
count = Path(sys.argv[1])
count.write_text(count.read_text() + "x")
sys.exit(len(count.read_text()) < 3)
"""


def test_what_fails_is_started_again_until_it_ends_by_itself_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PAUSE", 0.0)
    (tmp_path / "count").touch()
    said = []
    command = [sys.executable, "-c", FAILS_TWICE, str(tmp_path / "count")]
    with pytest.raises(UserError, match="the SuperNode ended; was the node unregistered"):
        processes.keep_running(said.append, command, os.environ, tmp_path / "log")
    assert (tmp_path / "count").read_text() == "xxx"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    assert len(said) == 2
    assert "ended with code 1; it is started again in 0 s" in said[0]


SPEAKS = """
import sys, time
print("before", file=sys.stderr)
print("feddlp: round 1 is trained", file=sys.stderr)
print("INFO: Flower's own", "and feddlp: no line of ours", flush=True)
sys.stdout.write("feddlp: half a ")
sys.stdout.flush()
time.sleep(3 * float(sys.argv[1]))
print("line")
print("feddlp: last", end="\\n", flush=True)
"""


@pytest.mark.parametrize("everything", [False, True])
def test_our_lines_are_shown_and_all_are_kept(everything, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processes, "LOOK", 0.05)
    (tmp_path / "log").write_text("feddlp: of an earlier time\n")
    command = [sys.executable, "-c", SPEAKS, "0.05"]
    assert processes.run_shown(command, os.environ, tmp_path / "log", everything) == 0
    shown, kept = capfd.readouterr().out.splitlines(), (tmp_path / "log").read_text().splitlines()
    assert shown == (kept[1:] if everything else [line for line in kept[1:] if line.startswith("feddlp: ")])
    assert {"feddlp: round 1 is trained", "feddlp: half a line", "feddlp: last"} <= {*shown}
    assert len(kept) == 6


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
            processes.keep_running(
                pytest.fail, [sys.executable, "-c", program, str(place)], os.environ, tmp_path / "log"
            )
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.read_text()), 0)
