"""Programs that are kept running."""

from __future__ import annotations

import os
import signal
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
