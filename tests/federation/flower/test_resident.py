"""A node's process that stays."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from feddlp.federation.flower import resident


def test_two_messages_at_once_start_one_resident(tmp_path, monkeypatch):
    started, listening = [], threading.Event()

    class Connection:
        def __init__(self, *_):
            if not listening.is_set():
                raise ConnectionRefusedError

    def start(place, owner, idle):
        started.append(place)
        threading.Event().wait(0.1)
        listening.set()
        return Connection()

    monkeypatch.setattr(resident, "Client", Connection)
    monkeypatch.setattr(resident, "started", start)
    asking = [threading.Thread(target=resident.connect, args=(tmp_path / "a.sock", os.getpid(), 1.0)) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(started) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_who_has_ended_is_not_alive_though_nobody_has_taken_note():
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        process.stdout.read()
        end = time.monotonic() + 20
        while resident.is_alive(process.pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert not resident.is_alive(process.pid)
        assert process.returncode is None
        os.kill(process.pid, 0)
    assert resident.is_alive(os.getpid())


def test_sockets_of_owners_that_are_gone_are_removed(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, mine, other = (tmp_path / name for name in (f"{ended.pid}-a.sock", f"{os.getpid()}-b.sock", "note.txt"))
    for file in (left, mine, other):
        file.touch()
    monkeypatch.setattr(resident, "Client", lambda *_: "connection")
    monkeypatch.setattr(resident.subprocess, "Popen", lambda *_, **__: SimpleNamespace(poll=lambda: None))
    assert resident.started(tmp_path / "c.sock", os.getpid(), 1.0) == "connection"
    assert (left.exists(), mine.exists(), other.exists()) == (False, True, True)
