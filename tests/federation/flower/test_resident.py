"""A node's process that stays."""

import os
import threading

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
