"""Flower's processes, started and ended with this one: a SuperLink, SuperNodes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from feddlp.errors import UserError
from feddlp.files import make_folder, write_whole

UP_WITHIN = 60.0  # seconds that a SuperLink may take to answer
ANSWERS_WITHIN = 5.0
LAST_WORDS = 10.0  # seconds between asking a process to end and making it
LOCAL = "127.0.0.1,localhost,::1"  # what a proxy of the house has nothing to do with
ONE_PORT = {"FLWR_INTERNAL_GRPC_CONTROL_API": "0", "FLWR_INTERNAL_GRPC_FLEET_API": "0"}  # and none without a gate
PAUSE = 10.0  # seconds before a program that failed is started again
LOOK = 0.2  # seconds between two looks at its log
LOOPBACK = "127.0.0.1"
PR_SET_PDEATHSIG = 1


def dies_with_its_parent() -> Callable[[], None] | None:
    """What a child calls when it starts, so that it ends when this process is killed; None where there is no way."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def environment(home: Path) -> dict[str, str]:
    """For Flower's programs: nothing is reported to anybody, and everything they write lies in `home`."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
    at_once = {"PYTHONUNBUFFERED": "1"}  # or what `flwr log` prints stays in the buffer of its pipe
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    by_no_proxy = {name: ",".join(filter(None, (os.environ.get(name), LOCAL))) for name in ("NO_PROXY", "no_proxy")}
    return {**os.environ, **quiet, **at_once, **ONE_PORT, **by_no_proxy, "PATH": here}


def program(name: str) -> str:
    """One of Flower's programs, beside this Python; raises UserError if the extra is not installed."""
    found = shutil.which(name, path=environment(Path())["PATH"])
    if not found:
        raise UserError(f'{name} is not installed; install the extra: pip install "feddlp[flower]"')
    return found


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Running:
    """A process of ours with its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        """End it and all that it started: first asked, then made."""
        for kind in (signal.SIGTERM, signal.SIGKILL):  # the latter for what it left behind, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LAST_WORDS)

    def tail(self, lines: int = 3) -> str:
        """The end of its log, on one line."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(line.strip() for line in text[-lines:])


def start(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> Running:
    """A process in a group of its own, so that Ctrl-C reaches it through us alone."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(variables),
            start_new_session=True,
            preexec_fn=dies_with_its_parent(),
        )
    return Running(process, log)


class Tail:
    """The lines of a file that come from now on."""

    def __init__(self, path: Path):
        self.path = path
        self.read = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0

    def lines(self) -> Iterator[str]:
        """Those that are complete."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if line.endswith(b"\n"):
                    self.read += len(line)
                    yield line.decode(errors="replace").rstrip("\r\n")

    def show(self, everything: bool) -> None:
        """Print those that are ours, or all."""
        for line in self.lines():
            if everything or line.startswith("feddlp: "):
                print(line, flush=True)


def run_shown(command: Sequence[str], variables: Mapping[str, str], log: Path, everything: bool = False) -> int:
    """A program to its end, with its log in a file and our lines of it in this terminal; its exit code."""
    tail = Tail(log)
    log.touch(0o600)  # it names files of the owner's
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=dict(variables), preexec_fn=dies_with_its_parent()
        )
    try:
        while process.poll() is None:
            time.sleep(LOOK)
            tail.show(everything)
    finally:
        end(process)
        tail.show(everything)
    return process.returncode


def keep_running(say: Callable[[str], None], command: Sequence[str], *how: Any) -> NoReturn:
    """As `run_shown`, and again when it fails, until this process is interrupted, or it ends by itself (UserError).

    A SuperNode fails where its key is not registered yet, and for a minute after it died, in which the SuperLink takes
    it to be there. It ends by itself when its key is unregistered.
    """
    while code := run_shown(command, *how):
        say(f"{Path(command[0]).name} ended with code {code}; it is started again in {PAUSE:g} s")
        time.sleep(PAUSE)
    raise UserError("the SuperNode ended; was the node unregistered? If so, register a new key (feddlp keys node)")


def end(process: subprocess.Popen[bytes]) -> None:
    """First asked, then made; the latter at once where the user insists."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS)
    finally:
        process.kill()
        process.wait()


def answers(host: str, port: int) -> bool:
    """Whether anybody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), ANSWERS_WITHIN):
        return True
    return False


def wait_until_up(link: Running, port: int) -> None:
    """Wait until the SuperLink answers; raise UserError if it ended, or takes too long."""
    until = time.monotonic() + UP_WITHIN
    while not answers(LOOPBACK, port):
        if time.monotonic() > until or link.ended:
            raise UserError(f"the SuperLink did not come up; its log {link.log} ends: {link.tail()}")
        time.sleep(LOOK)


def write_settings(file: Path, settings: Mapping[str, Any]) -> Path:
    """A file that Flower's programs take for --run-config or --node-config, whatever the values hold."""
    make_folder(file.parent)
    write_whole(file, tomli_w.dumps(settings).encode())
    return file
