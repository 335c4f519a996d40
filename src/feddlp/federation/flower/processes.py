"""Flower's processes, started and ended with this one: a SuperLink, SuperNodes, and the command that submits a run."""

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
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import tomli_w

from feddlp.errors import UserError
from feddlp.files import make_folder, write_whole

UP_WITHIN = 60.0  # seconds that a SuperLink may take to answer
LAST_WORDS = 10.0  # seconds between asking a process to end and making it
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
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **quiet, "PATH": here}


def program(name: str) -> str:
    """One of Flower's programs, beside this Python.

    Raises:
        UserError: the extra is not installed.
    """
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

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        """End it and all that it started: first asked, then made."""
        for kind, patience in ((signal.SIGTERM, LAST_WORDS), (signal.SIGKILL, LAST_WORDS)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                break
        with contextlib.suppress(ProcessLookupError):  # what it left behind
            os.killpg(self.process.pid, signal.SIGKILL)

    def tail(self, lines: int = 3) -> str:
        """The end of its log, on one line."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(line.strip() for line in text[-lines:])


def start(name: str, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> Running:
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
    return Running(name, process, log)


def wait_until_up(link: Running, port: int) -> None:
    """Until the SuperLink answers.

    Raises:
        UserError: it ended, or takes too long.
    """
    end = time.monotonic() + UP_WITHIN
    while time.monotonic() < end and not link.ended:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise UserError(f"the SuperLink did not come up; its log {link.log} ends: {link.tail()}")


def copy_app(folder: Path) -> Path:
    """The app folder that `flwr run` is given, as a copy: Flower may write into it."""
    make_folder(folder / "feddlp_flower")
    source = files("feddlp").joinpath("assets/flower-app")
    for name in ("pyproject.toml", "feddlp_flower/__init__.py", "feddlp_flower/server.py", "feddlp_flower/client.py"):
        write_whole(folder / name, source.joinpath(name).read_bytes())
    return folder


def write_connection(home: Path, address: str, root_certificates: Path | None = None) -> None:
    """Flower's own configuration: the SuperLink named "feddlp"."""
    secure = {"root-certificates": str(root_certificates)} if root_certificates else {"insecure": True}
    table = {"superlink": {"default": "feddlp", "feddlp": {"address": address, **secure}}}
    make_folder(home)
    write_whole(home / "config.toml", tomli_w.dumps(table).encode())


def write_settings(file: Path, settings: Mapping[str, str]) -> Path:
    """A file that Flower's programs take for --run-config or --node-config, whatever the values hold."""
    write_whole(file, tomli_w.dumps(dict(settings)).encode())
    return file


def submission(place: Path, run_config: Mapping[str, str], *more: str) -> list[str]:
    """The command that has the SuperLink start a run. place: where files for it may be written"""
    settings = write_settings(place / "run.toml", run_config)
    return [program("flwr"), "run", str(copy_app(place / "app")), "feddlp", "--run-config", str(settings), *more]


def submit(place: Path, run_config: Mapping[str, str], *more: str) -> None:
    """Have the SuperLink start a run.

    Raises:
        UserError: it refused.
    """
    command, home = submission(place, run_config, *more), place / "flwr"
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).replace("│", " ").split())
        raise UserError(f"the SuperLink did not take the run: {said[-400:]}")
