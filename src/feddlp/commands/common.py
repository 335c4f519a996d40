"""What the commands share: options, the reporter, and the two ways to end that are no mistakes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from feddlp.errors import UserError
from feddlp.progress import Console, PlainReporter, make_reporter

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A configuration file and overrides, in any order."),
]


class StoppedByUser(Exception):  # noqa: N818 - it is no error
    """The run was interrupted by its user."""


class SomeFailed(Exception):  # noqa: N818 - the command itself did not fail
    """A command came to its end, and some of what it worked on did not: runs of a sweep, images."""


@contextmanager
def reporting(console: Console, again: str = "") -> Iterator[PlainReporter]:
    """A reporter; an interrupt ends in a message that says how to go on: `again`, or by resuming the run folder."""
    reporter = make_reporter(console)
    try:
        with reporter:
            yield reporter
    except KeyboardInterrupt:
        again = again or (shlex.join(["feddlp", "resume", str(reporter.folder)]) if reporter.folder else "")
        way_on = f"go on with: {again}" if again else "no run was begun yet; prepared images are kept"
        raise StoppedByUser(way_on) from None


@contextmanager
def needing(command: str, extra: str) -> Iterator[None]:
    """Imports that only an extra of the package makes possible."""
    try:
        yield
    except ModuleNotFoundError as error:
        way_out = f'install it with: pip install "feddlp[{extra}]"'
        raise UserError(f"feddlp {command} needs the extra {extra}; {way_out}") from error


def help_alone(context: typer.Context) -> None:
    """A group of commands without one of them shows its help."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def complain(failed: dict[str, str], again: str) -> None:
    """End with an error where runs failed, after all that could be shown was shown."""
    if failed:
        path, reason = next(iter(failed.items()))
        raise SomeFailed(f"{len(failed)} failed, the first one {path} ({reason}); to try again: {again}")


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """A configuration file, if there is one, and the overrides."""
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise UserError(f"{files[1]!r} is a second configuration file; give one file, and key=value for the rest")
    return Path(files[0]) if files else None, [word for word in words if "=" in word]


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """ "0,1,42" -> (0, 1, 42)"""
    if not all(part.strip().isdecimal() and len(part) < 20 for part in text.split(",")):
        raise UserError(f"{option}={text} is not a list of whole numbers; write {option} 0,1,42")
    return tuple(int(part) for part in text.split(","))


def named(source: str) -> str:
    """A bare path as the source that it must be."""
    path = Path(source).expanduser()
    if path.is_dir():
        return f"folder:{source}"
    return f"csv:{source}" if path.is_file() and path.suffix.lower() == ".csv" else source


def quiet_libraries() -> None:
    """Their progress bars and notices are not ours; errors still come through as exceptions."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
