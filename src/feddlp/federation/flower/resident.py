"""A node's process that stays: model and images are loaded once, and the next messages find them there.

A SuperNode starts a process for every message. It hands the message over, unopened, to the resident, which it starts
where there is none. The resident ends with its SuperNode, or when nothing has come for a while; were it to die in the
middle of a round, nothing is lost, since all that counts is in the state folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from filelock import FileLock

from feddlp.federation.flower.envelopes import Envelope

MOST_PATH = 50  # of the 107 characters that a socket's name may have
START_WITHIN = 120.0  # seconds, most of them for imports
ATTEMPTS, PAUSE = 3, 1.0
Answer = Callable[[Envelope, Mapping[str, Any]], Envelope]


def address(node_config: Mapping[str, Any], owner: int) -> Path:
    """The socket of a node's resident, in a folder that nobody else may enter."""
    root = Path(tempfile.gettempdir())
    folder = (root if len(str(root)) < MOST_PATH else Path("/tmp")) / f"feddlp-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise PermissionError(f"{folder} is open to others")
    name = hashlib.sha256(json.dumps(dict(node_config), sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{owner}-{name}.sock"


def ask(envelope: Envelope, node_config: Mapping[str, Any], idle: float) -> Envelope:
    """Have the resident answer; again where it dies over it.

    Args:
        idle: seconds without a message after which it ends.

    Raises:
        OSError, EOFError: there is none to be had.
    """
    owner = os.getppid()
    place = address(node_config, owner)
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(EOFError, OSError):
            return exchange(connect(place, owner, idle), envelope, node_config)
        time.sleep(PAUSE)  # until one that was killed is gone
    return exchange(connect(place, owner, idle), envelope, node_config)


def connect(place: Path, owner: int, idle: float) -> Connection:
    """A connection to the resident, which is started if need be; by one of those who ask at a time."""
    with FileLock(place.with_name(".lock")):
        with contextlib.suppress(OSError):
            return Client(str(place), "AF_UNIX")
        return started(place, owner, idle)


def started(place: Path, owner: int, idle: float) -> Connection:
    """A connection to a resident that is started here."""
    for left in place.parent.glob("[0-9]*-*.sock"):  # by one that was killed with its SuperNode
        if not is_alive(int(left.name.partition("-")[0])):
            left.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(place), str(owner), str(idle)], start_new_session=True
    )
    end = time.monotonic() + START_WITHIN
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            return Client(str(place), "AF_UNIX")
    raise ConnectionError(f"the node's resident process did not start (exit code {process.poll()})")


def exchange(connection: Connection, envelope: Envelope, node_config: Mapping[str, Any]) -> Envelope:
    with connection:
        send(connection, envelope, node_config)
        return receive(connection)[0]


def send(connection: Connection, envelope: Envelope, about: Mapping[str, Any]) -> None:
    """Bytes alone, which are read as such: nothing is pickled."""
    head = {"facts": envelope.facts, "adapters": list(envelope.adapters), "about": dict(about)}
    connection.send_bytes(json.dumps(head).encode())
    for content in envelope.adapters.values():
        connection.send_bytes(content)


def receive(connection: Connection) -> tuple[Envelope, dict[str, Any]]:
    head = json.loads(connection.recv_bytes())
    adapters = {name: connection.recv_bytes() for name in head["adapters"]}
    return Envelope(head["facts"], adapters), head["about"]


class Watch:
    """Ends the process with its owner, or after idle time."""

    def __init__(self, owner: int, idle: float, place: Path):
        self.owner, self.idle, self.place = owner, idle, place
        self.at_work, self.since = False, time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def work(self) -> Any:
        self.at_work = True
        try:
            yield
        finally:
            self.at_work, self.since = False, time.monotonic()

    def _watch(self) -> None:
        while is_alive(self.owner) and (self.at_work or time.monotonic() - self.since < self.idle):
            time.sleep(0.5)
        self.place.unlink(missing_ok=True)
        os._exit(0)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # the latter: its number is another user's by now
        return False
    try:  # Z: it has ended and nobody has taken note, as in a container whose first process is none for that
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):  # no Linux, or gone by now
        return True


def stay(place: Path, owner: int, idle: float, answer: Answer) -> None:
    """Answer messages, one at a time, until `Watch` ends the process."""
    place.unlink(missing_ok=True)
    watch = Watch(owner, idle, place)
    with Listener(str(place), "AF_UNIX") as listener:
        while True:
            with contextlib.suppress(EOFError, ConnectionError), listener.accept() as connection:
                envelope, node_config = receive(connection)
                with watch.work():
                    reply = answer(envelope, node_config)
                send(connection, reply, {})


def main() -> None:
    place, owner, idle = sys.argv[1:]
    from feddlp.federation.flower.node import answer_envelope, set_up

    set_up()
    stay(Path(place), int(owner), float(idle), answer_envelope)


if __name__ == "__main__":
    main()
