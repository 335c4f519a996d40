"""What a SuperLink is told: let a node in, start a run, show what its server says, stop it. By Flower's own command.

A SuperLink of `feddlp federate link` listens to its own machine alone; see `gate`.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from feddlp.errors import OURS, UserError
from feddlp.federation.flower.bindings import FILE, bind, known
from feddlp.federation.flower.processes import environment, program, write_settings
from feddlp.files import checksum, make_folder, write_whole

APP = ("pyproject.toml", "feddlp_flower/__init__.py", "feddlp_flower/server.py", "feddlp_flower/client.py")
FLOWERS_OWN = re.compile(r"\x1b\[\d+m(INFO|DEBUG)|Using SuperLink|Successfully installed")
LAST_WORDS = re.compile(r"\x1b\[\d+mERROR\b.*(feddlp: error: |Exit Code: )")  # the reason is asked for
PUBLIC = (b"ssh-", b"ecdsa-", b"sk-")
MEANINGS = {
    "403 Forbidden": "it starts runs and lets nodes in from its own machine alone; say it there, or through an SSH "
    "tunnel",
    "Connection to the SuperLink is unavailable": "nobody answers; is feddlp federate link running there, and with "
    "certificates (--keys) as here? A run goes on by itself when it is back, or with: feddlp federate run --resume RUN",
    "Public key already in use": "Flower takes no key twice, also not after federate unregister; make a pair "
    "under another name (feddlp keys node NAME), and register that",
}
SETTLED_WITHIN = 10.0  # seconds between a server's last word and the SuperLink's knowledge that it has ended


@dataclass(frozen=True)
class Control:
    """A SuperLink, spoken to from here.

    Args:
        place: where Flower's own files may lie.
        address: HOST:PORT
        root_certificates: of its CA; None without TLS.
    """

    place: Path
    address: str
    root_certificates: Path | None = None

    @property
    def home(self) -> Path:
        return self.place.absolute() / "flwr"

    def ask(self, *words: str) -> dict[str, Any]:
        """What Flower's command says to some words; raises UserError if the SuperLink cannot be reached, or refuses."""
        secure = {"root-certificates": str(self.root_certificates)} if self.root_certificates else {"insecure": True}
        connection = {"default": "feddlp", "feddlp": {"address": self.address, **secure}}
        write_settings(self.home / "config.toml", {"superlink": connection})  # Flower's own configuration
        command = [program("flwr"), *words, "--format", "json"]
        done = subprocess.run(command, env=environment(self.home), capture_output=True, text=True, check=False)
        try:
            said = json.loads(done.stdout)
        except ValueError:
            said = {"error-message": done.stdout + done.stderr}
        if done.returncode or not said.get("success"):
            raise UserError(f"--link {self.address}: {refusal(said.get('error-message', ''))}")
        return dict(said)

    def register(self, key: Path, clients: Sequence[int]) -> str:
        """Register a node for these clients and no others, or change those of a registered one; its number.

        Raises:
            UserError: no such file, no public key, or the SuperLink refuses.
        """
        if not key.is_file():
            raise UserError(f"{key} is not there; the node makes it with: feddlp keys node NAME")
        if not key.read_bytes().startswith(PUBLIC):
            raise UserError(f"{key} is no public key; give the file NAME.pub that feddlp keys node makes")
        digest = checksum(b" ".join(key.read_bytes().split()[:2]))  # without the comment
        same = {node for node, (_, known_as) in known(self.place / FILE).keys.items() if known_as == digest}
        if same:  # Flower may have unregistered it since, or have another database
            nodes = self.ask("supernode", "ls", "feddlp")["nodes"]
            same &= {one["node-id"] for one in nodes if one["status"] != "unregistered"}
        if not same:
            same = {str(self.ask("supernode", "register", str(key), "feddlp", "--name", key.stem)["node-id"])}
        bind(self.place, node := same.pop(), clients, key.stem, digest)
        return node

    def unregister(self, node: str) -> None:
        """Put a node out again."""
        self.ask("supernode", "unregister", node, "feddlp")
        bind(self.place, node, ())

    def submit(self, run_config: Mapping[str, str], *more: str) -> str:
        """Start a run; its number."""
        settings = write_settings(self.place.absolute() / "run.toml", run_config)
        app = self.place.absolute() / "app"  # a copy: Flower may write into it
        for name in APP:
            make_folder((app / name).parent)
            write_whole(app / name, files("feddlp").joinpath("assets/flower-app", name).read_bytes())
        return str(self.ask("run", str(app), "feddlp", "--run-config", str(settings), *more)["run-id"])

    def watch(self, run: str, say: Callable[[str], None]) -> None:
        """Tell what the server of a run says, to its end.

        Raises:
            UserError: it ended with one of our errors, was stopped, or can be heard no more.
            RuntimeError: it failed.
        """
        for line in self._lines(run):
            if LAST_WORDS.match(line):
                break
            if not FLOWERS_OWN.match(line):
                say(line.rstrip("\n"))
        status, details = self.end_of(run)
        if OURS in details:
            raise UserError(details.partition(OURS)[2])
        if status == "finished:stopped":
            raise UserError(f"run {run} was stopped; go on with: feddlp federate run --resume RUN")
        if not status.startswith("finished"):
            raise UserError(
                f"run {run} goes on, but its server is heard no more; see events.jsonl in the run folder, or end it "
                "with: feddlp federate stop"
            )
        if status != "finished:completed":
            raise RuntimeError(f"run {run} is {status}: {details}")

    def _lines(self, run: str) -> Iterator[str]:
        """What a server says, with Flower's own lines, as it comes."""
        command, quiet = [program("flwr"), "log", run, "feddlp", "--stream"], subprocess.DEVNULL
        variables = environment(self.home)
        with subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=quiet) as stream:
            assert stream.stdout
            try:
                yield from stream.stdout
            finally:
                stream.terminate()

    def end_of(self, run: str) -> tuple[str, str]:
        """How a run ended, and why."""
        end = time.monotonic() + SETTLED_WITHIN
        while True:
            (found,) = (one for one in self.runs() if one["run-id"] == run)
            if found["status"].startswith("finished") or time.monotonic() > end:
                return found["status"], found["status-details"]
            time.sleep(0.5)

    def stop(self) -> list[str]:
        """End what is under way; the numbers of those runs."""
        active = self.under_way()
        for run in active:
            with contextlib.suppress(UserError):  # it has ended by itself
                self.ask("stop", run, "feddlp")
        if left := self.under_way():
            raise UserError(f"--link {self.address}: {', '.join(left)} cannot be stopped; see the SuperLink's log")
        return active

    def under_way(self) -> list[str]:
        return [run["run-id"] for run in self.runs() if not run["status"].startswith("finished")]

    def runs(self) -> list[dict[str, Any]]:
        return list(self.ask("ls", "feddlp")["runs"])


def refusal(said: str) -> str:
    """What Flower's command says where it fails, as one line."""
    said = re.sub(r"\x1b\[\d+m", "", said)
    line = re.sub(r"^Using SuperLink: feddlp \S+ (Listing all runs\.\.\. )?", "", " ".join(said.split()))
    known = next((ours for flowers, ours in MEANINGS.items() if flowers in line), "")
    return known or line[-400:] or "no answer"
