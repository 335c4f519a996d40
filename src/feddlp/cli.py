"""The command line: `feddlp run | resume | sweep | reproduce | report | show | export | predict | evaluate | ...`.

The user's mistakes end in one line and exit code 2, anything else that fails in one line and exit code 1; a traceback
only with --debug. Ctrl-C (or SIGTERM) stops cleanly, says how to go on, and exits with 130.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from feddlp import __version__
from feddlp.allocator import keep_freed_memory
from feddlp.commands import data, federate, keys, models, records, training
from feddlp.commands.common import SomeFailed, StoppedByUser, help_alone
from feddlp.errors import UserError
from feddlp.names import printable
from feddlp.progress import shown

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
typer.core.HAS_RICH = False  # typer before 0.21 puts a backslash before brackets in help, also where rich is off

COMMANDS = (
    training.run, training.resume, training.sweep, training.reproduce,
    records.report, records.show, records.methods, records.bench, data.datasets,
    models.export, models.predict, models.evaluate,
)  # fmt: skip

app = typer.Typer(
    name="feddlp",
    help="Federated fine-tuning of vision-language models with dual adapters. Start with: feddlp run",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(federate.app, name="federate")
app.add_typer(keys.app, name="keys")

INTERRUPTED = 130


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"feddlp {__version__}")
    else:
        help_alone(context)


def interrupt(*_: Any) -> NoReturn:
    """SIGTERM, as a stopped container gets it, is taken as Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the command `feddlp`."""
    signal.signal(signal.SIGTERM, interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: letters that its encoding lacks stop nothing
    keep_freed_memory()
    with redirect_stdout(shown(sys.stdout)), redirect_stderr(shown(sys.stderr)):
        execute()


def execute() -> None:
    """The command; whatever ends it early is one line and an exit code."""
    try:
        code = app(standalone_mode=False)  # typer returns the codes of Ctrl-C and of typer.Exit
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
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
    if isinstance(error, SomeFailed):
        return f"error: {error}", 1
    if hasattr(error, "format_message"):  # a wrong command or option; typer does not export its base class
        command = getattr(getattr(error, "ctx", None), "command_path", "feddlp")
        return f"error: {suggesting_once(error.format_message())} See: {command} --help", 2
    return f"error: {type(error).__name__}: {str(error) or 'no message'} (use --debug for the traceback)", 1


def suggesting_once(message: str) -> str:
    """The first suggestion stays: typer before 0.21 makes one, and click from 8.4 adds its own."""
    return re.sub(r"(Did you mean .+?\?) \(?Did you mean .*", r"\1", message)


def fail(message: str, code: int) -> NoReturn:
    print("feddlp:", printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)
