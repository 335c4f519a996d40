"""The command line: `feddlp run | resume | show | methods | datasets`.

The user's mistakes end in one line and exit code 2, anything else that fails in one line and exit code 1; a traceback
only with --debug. Ctrl-C (or SIGTERM) stops cleanly, says how to go on, and exits with 130.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from feddlp import __version__
from feddlp.errors import UserError
from feddlp.progress import PlainReporter, make_reporter

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

app = typer.Typer(
    name="feddlp",
    help="Federated fine-tuning of vision-language models with dual adapters. Start with: feddlp run",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"feddlp {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.toml] [key=value ...]", help="A configuration file and overrides, in any order."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the methods of a configuration and compare them; without one, the demo.

    \b
    feddlp run                                       the demo: digits, ten clients, four methods
    feddlp run methods=feddlp training.rounds=5      the demo, changed
    feddlp run data.dataset=folder:photos            your images, one sub-folder per class
    feddlp run my.toml seed=1 method.lr=1e-4         your configuration, two keys changed
    """
    quiet_libraries()
    from feddlp import experiment
    from feddlp.config import load_config

    files = [word for word in words or [] if "=" not in word]
    if len(files) > 1:
        raise UserError(f"{files[1]!r} is a second configuration file; give one file, and key=value for the rest")
    config = load_config(Path(files[0]) if files else None, [word for word in words or [] if "=" in word])
    console = Console()
    with reporting(console) as reporter:
        folder = experiment.run(config, reporter)
    print_run(folder, console)


@app.command()
def resume(path: RunPath, debug: Debug = False) -> None:
    """Go on with an interrupted run; it ends exactly as an undisturbed one.

    \b
    feddlp resume runs/demo
    """
    quiet_libraries()
    from feddlp import experiment

    console = Console()
    with reporting(console) as reporter:
        folder = experiment.resume(path, reporter)
    print_run(folder, console)


@app.command()
def show(path: RunPath, debug: Debug = False) -> None:
    """Print the table of a run from its records.

    \b
    feddlp show runs/demo
    """
    from feddlp.records import RunFolder

    print_run(RunFolder.open(path), Console())


@app.command()
def methods(debug: Debug = False) -> None:
    """List the methods, one line each.

    \b
    feddlp methods
    """
    from feddlp.methods import descriptions

    print_list(descriptions())


@app.command()
def datasets(debug: Debug = False) -> None:
    """List the data sets, one line each.

    \b
    feddlp datasets
    """
    from feddlp.data.datasets import descriptions

    print_list(descriptions())


def print_list(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def print_run(folder: Any, console: Console) -> None:
    """The tables of a run folder, and whether it is finished."""
    from feddlp.experiment import missing_rounds
    from feddlp.report.tables import comparison, summarise

    rows = folder.read_rounds()
    if not rows:
        raise UserError(f"{folder.path} has no finished round yet; start it with: feddlp resume {folder.path}")
    printer = console if console.is_terminal else Console(width=100)
    printer.print(*comparison(summarise(rows), str(folder.path)))
    if missing := missing_rounds(folder):
        printer.print(f"Unfinished ({missing} to go), so the final round is the last so far.", highlight=False)
        printer.print(f"Go on with: feddlp resume {folder.path}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def reporting(console: Console) -> Iterator[PlainReporter]:
    """A reporter; an interrupt ends in a message that says how to go on."""
    reporter = make_reporter(console)
    try:
        with reporter:
            yield reporter
    except KeyboardInterrupt:
        way_on = f"go on with: feddlp resume {reporter.folder}" if reporter.folder else "nothing was written yet"
        raise StoppedByUser(way_on) from None


def interrupt(*_: Any) -> NoReturn:
    """SIGTERM, as a stopped container gets it, is taken as Ctrl-C."""
    raise KeyboardInterrupt


class StoppedByUser(Exception):  # noqa: N818 - it is no error
    """The run was interrupted by its user."""


def quiet_libraries() -> None:
    """Their progress bars and notices are not ours; errors still come through as exceptions."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def main() -> None:
    """Entry point of the command `feddlp`."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # typer turns Ctrl-C into this code and returns it
            raise KeyboardInterrupt
    except StoppedByUser as stop:
        fail(f"stopped; {stop}", INTERRUPTED)
    except KeyboardInterrupt:
        fail("stopped", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        fail(*describe(error))


def describe(error: Exception) -> tuple[str, int]:
    """An exception as one line and its exit code."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if hasattr(error, "format_message"):  # a wrong command or option; typer does not export its base class
        return f"error: {error.format_message()} See: feddlp --help", 2
    return f"error: {type(error).__name__}: {str(error) or 'no message'} (use --debug for the traceback)", 1


def fail(message: str, code: int) -> NoReturn:
    print("feddlp:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
