"""How a run shows itself: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from feddlp.names import printable

LEAST = 20  # columns


class Console(rich.console.Console):
    """A terminal on which names from outside are shown, and neither obeyed nor taken for markup."""

    def __init__(self, **options: Any):
        super().__init__(**options, markup=False, emoji=False, highlight=False)
        if self.width < LEAST:  # COLUMNS=0, for example, on which nothing would be shown
            self.width = LEAST

    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


class Shown:
    """A text stream that shows what it writes; a console writes to the stream itself."""

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        return self.rich_proxied_file.write(printable(text, keep="\n\t") if isinstance(text, str) else text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def shown(stream: TextIO) -> TextIO:
    return cast("TextIO", Shown(stream))


def round_text(row: Mapping[str, Any], rounds: int) -> str:
    """One finished round as a line."""
    losses = "  ".join(
        f"{name} loss {'-' if value is None else f'{value:.3f}'}" for name, value in row["train_loss"].items()
    )
    validation = f"  validation {row['validation']['pooled']:.2f} %" if row["validation"] else ""
    counter = f"round {row['round']}/{rounds}"
    test = f"test {row['test']['pooled']:.2f} %"
    return f"{row['method']:<10} {counter:<14} {test}{validation}  {losses}  {row['seconds']:.1f} s"


class PlainReporter:
    """One line an event, flushed, for logs and pipes."""

    def __init__(self, console: Console):
        self.console = console
        self.folder: Path | None = None
        self.rounds = 0

    def __enter__(self) -> PlainReporter:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def line(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def run_started(self, folder: Path) -> None:
        self.folder = folder
        self.line(f"run folder: {folder}")

    def preparing(self, what: str, done: int, total: int) -> None:
        if done == total:
            self.line(f"{what}: {total:,} ready")

    def method_started(self, method: str, rounds: int, steps: int, done: int) -> None:
        self.rounds = rounds
        if done == rounds:
            self.line(f"{method:<10} already finished")
        elif done:
            self.line(f"{method:<10} goes on after round {done}")

    def stepped(self) -> None:
        pass

    def round_finished(self, row: Mapping[str, Any]) -> None:
        self.line(round_text(row, self.rounds))

    def note(self, message: str) -> None:
        self.line(message)

    def warn(self, message: str) -> None:
        self.line(f"warning: {message}")


class LiveReporter(PlainReporter):
    """A bar per method that moves with every training step."""

    def __init__(self, console: Console):
        super().__init__(console)
        name, last = TextColumn("{task.description:<10}"), TextColumn("{task.fields[last]}")
        columns = (name, BarColumn(), MofNCompleteColumn(), last, TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.task: TaskID | None = None
        self.preparation: TaskID | None = None

    def __enter__(self) -> LiveReporter:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def preparing(self, what: str, done: int, total: int) -> None:
        if self.preparation is None:
            self.preparation = self.progress.add_task(what, total=total, last="")
        self.progress.update(self.preparation, completed=done)
        if done == total:
            self.progress.remove_task(self.preparation)
            self.preparation = None

    def method_started(self, method: str, rounds: int, steps: int, done: int) -> None:
        self.rounds, self.per_step = rounds, 1 / max(1, steps)
        last = "already finished" if done == rounds else ""
        self.task = self.progress.add_task(method, total=rounds, completed=done, last=last)

    def stepped(self) -> None:
        if self.task is not None:
            self.progress.advance(self.task, self.per_step)

    def round_finished(self, row: Mapping[str, Any]) -> None:
        if self.task is not None:
            last = f"test {row['test']['pooled']:.2f} %"
            self.progress.update(self.task, completed=row["round"], last=last)


def make_reporter(console: Console) -> PlainReporter:
    """Live on a terminal, plain elsewhere."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
