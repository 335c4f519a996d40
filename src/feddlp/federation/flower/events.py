"""What happened in a run: `events.jsonl` in its folder, a line for each thing that a reporter is told.

Written by the server as it happens, and read by whoever wants to watch, on the same machine, with any reporter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feddlp.experiment import Reporter
from feddlp.federation.flower.processes import Tail
from feddlp.files import append

CALLS = ("preparing", "note", "warn", "run_started", "method_started", "stepped", "round_finished")
ENDINGS = ("finished", "failed")


class Recorder:
    """A reporter that writes everything down, and passes it on."""

    def __init__(self, path: Path, inner: Reporter):
        self.path, self.inner = path, inner
        if path.exists():  # a server that was killed may have left half a line
            os.truncate(path, Tail(path).read)

    def write(self, event: str, *said: Any) -> None:
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "said": said}
        append(self.path, json.dumps(line, default=str) + "\n")

    def tell(self, event: str, *said: Any) -> None:
        self.write(event, *said)
        getattr(self.inner, event)(*said)

    def preparing(self, what: str, done: int, total: int) -> None:
        self.tell("preparing", what, done, total)

    def note(self, message: str) -> None:
        self.tell("note", message)

    def warn(self, message: str) -> None:
        self.tell("warn", message)

    def run_started(self, folder: Path) -> None:
        self.tell("run_started", folder)

    def method_started(self, method: str, rounds: int, steps: int, done: int) -> None:
        self.tell("method_started", method, rounds, steps, done)

    def stepped(self) -> None:
        self.tell("stepped")

    def round_finished(self, row: Mapping[str, Any]) -> None:
        self.tell("round_finished", row)


class Follower:
    """Reads the events of a run as they come.

    Attributes:
        server: the process that serves the run; None before it has shown itself.
        ended: ("finished", "") or ("failed", reason) once that was read; None before.
    """

    def __init__(self, path: Path, reporter: Reporter):
        self.reporter = reporter
        self.tail = Tail(path)  # earlier attempts are left out
        self.server: int | None = None
        self.ended: tuple[str, str] | None = None

    def follow(self) -> None:
        """Tell the reporter what has come since."""
        for line in map(json.loads, self.tail.lines()):
            if line["event"] == "serving":
                (self.server,) = line["said"]
            elif line["event"] in ENDINGS:
                self.ended = line["event"], " ".join(line["said"])
            elif line["event"] in CALLS:
                getattr(self.reporter, line["event"])(*line["said"])
