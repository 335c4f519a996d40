"""What happened in a run: `events.jsonl` in its folder, a line for each thing that a reporter is told.

Written by the server as it happens, and read by whoever wants to watch, on the same machine, with any reporter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feddlp.errors import UserError
from feddlp.experiment import Reporter
from feddlp.federation.flower.processes import Tail
from feddlp.files import append
from feddlp.states import Sealed, opened, sealed

CALLS = ("preparing", "note", "warn", "run_started", "method_started", "stepped", "round_finished")
ENDINGS = ("finished", "failed")


class Event(Sealed):
    """A line."""

    at: str
    event: str
    said: list[Any]


def both(event: str) -> Callable[..., None]:
    """A method of `Recorder`: the event is written down, and the inner reporter is told."""

    def tell(self: Recorder, *said: Any) -> None:
        self.write(event, *said)
        getattr(self.inner, event)(*said)

    return tell


class Recorder:
    """A reporter that writes everything down, and passes it on."""

    def __init__(self, path: Path, inner: Reporter):
        self.path, self.inner = path, inner
        if path.exists():  # a server that was killed may have left half a line
            os.truncate(path, Tail(path).read)

    def write(self, event: str, *said: Any) -> None:
        plain = json.loads(json.dumps(said, default=str, ensure_ascii=False).encode(errors="replace"))
        line = Event(at=datetime.now(UTC).isoformat(timespec="milliseconds"), event=event, said=plain)
        with suppress(OSError):  # the disk is full: what matters is what the run itself then says
            append(self.path, sealed(line).decode() + "\n")

    preparing, note, warn, run_started, method_started, stepped, round_finished = map(both, CALLS)


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
        for line in self.tail.lines():
            with suppress(UserError):  # a damaged line is left out
                self._tell(opened(line.encode(), Event, self.tail.path))

    def _tell(self, line: Event) -> None:
        if line.event == "serving":
            (self.server,) = line.said
        elif line.event in ENDINGS:
            self.ended = line.event, " ".join(line.said)
        elif line.event in CALLS:
            getattr(self.reporter, line.event)(*line.said)
