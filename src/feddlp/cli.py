"""The command line: `feddlp run | resume | sweep | reproduce | report | show | methods | datasets | bench`.

The user's mistakes end in one line and exit code 2, anything else that fails in one line and exit code 1; a traceback
only with --debug. Ctrl-C (or SIGTERM) stops cleanly, says how to go on, and exits with 130.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from feddlp import __version__
from feddlp.allocator import keep_freed_memory
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
    from feddlp.printing import print_finished

    files = [word for word in words or [] if "=" not in word]
    if len(files) > 1:
        raise UserError(f"{files[1]!r} is a second configuration file; give one file, and key=value for the rest")
    config = load_config(Path(files[0]) if files else None, [word for word in words or [] if "=" in word])
    console = Console()
    with reporting(console) as reporter:
        folder = experiment.run(config, reporter)
    print_finished(folder, console)


@app.command()
def resume(path: RunPath, debug: Debug = False) -> None:
    """Go on with an interrupted run; it ends exactly as an undisturbed one.

    \b
    feddlp resume runs/demo
    """
    quiet_libraries()
    from feddlp import experiment
    from feddlp.printing import print_finished

    console = Console()
    with reporting(console) as reporter:
        folder = experiment.resume(path, reporter)
    print_finished(folder, console)


@app.command()
def sweep(
    path: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="A sweep file; see configs/ and docs/sweeps.md.")],
    debug: Debug = False,
) -> None:
    """Methods x settings x seeds, hyper-parameters chosen on validation data. Started again, it goes on.

    \b
    feddlp sweep configs/digits.toml
    """
    quiet_libraries()
    from feddlp.printing import print_sweep
    from feddlp.sweep import run_sweep
    from feddlp.sweepfile import load_sweep

    console = Console()
    plan = load_sweep(path)
    again = shlex.join(["feddlp", "sweep", str(path)])
    with reporting(console, again) as reporter:
        result = run_sweep(plan, reporter)
    print_sweep(plan.folder, console)
    complain(result["failed"], again)


@app.command()
def reproduce(
    words: Annotated[
        list[str], typer.Argument(metavar="TABLE... [key=value ...]", help="table1 to table8, fig2, or all; overrides.")
    ],
    data: Annotated[str, typer.Option(help="Data sets: digits, folder:PATH, or pets=folder:PATH; comma-separated.")] = (
        "digits"
    ),
    model: Annotated[str, typer.Option(help="tiny-clip, the folder of a CLIP or SigLIP, or a hub name.")] = "tiny-clip",
    seeds: Annotated[str, typer.Option(help="Run seeds, comma-separated.")] = "0,1,42",
    target: Annotated[float | None, typer.Option(help="Target accuracy in % of tables 5 and 6.")] = None,
    which: Annotated[
        str, typer.Option(help="The accuracy that stands in front: final, validation_chosen, best_test, or all.")
    ] = "all",
    debug: Debug = False,
) -> None:
    """Run what a table of the paper needs, and print it with the paper's numbers beside ours.

    \b
    feddlp reproduce table7                                      on the digits, with the embedded model
    feddlp reproduce table1 --data pets=folder:pets --model openai/clip-vit-base-patch32
    feddlp reproduce fig2 training.rounds=30 --seeds 0
    """
    quiet_libraries()
    from feddlp import reproduce as reproduction
    from feddlp.printing import print_paper

    request = reproduction.Request(
        tables=reproduction.check_tables([word for word in words if "=" not in word]),
        data=tuple(data.split(",")),
        model=model,
        seeds=whole_numbers("--seeds", seeds),
        target=target,
        overrides=tuple(word for word in words if "=" in word),
    )
    reading = reproduction.check_which(which)
    reproduction.check_target(target)
    console = Console()
    again = shlex.join(["feddlp", *sys.argv[1:]])
    with reporting(console, again) as reporter:
        result = reproduction.reproduce(request, reporter)
    print_paper(result.tables, reading, result.csv, result.page, console)
    complain(result.failed, again)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """ "0,1,42" -> (0, 1, 42)"""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UserError(f"{option}={text} is not a list of whole numbers; write {option} 0,1,42")
    return tuple(int(part) for part in text.split(","))


def complain(failed: dict[str, str], again: str) -> None:
    """End with an error where runs failed, after all that could be shown was shown."""
    if failed:
        path, reason = next(iter(failed.items()))
        raise RunsFailed(f"{len(failed)} failed, the first one {path} ({reason}); to try again: {again}")


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of sweeps.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; report.html in the first folder.")] = None,
    debug: Debug = False,
) -> None:
    """Make one self-contained HTML page of one or several runs.

    \b
    feddlp report runs/demo
    feddlp report runs/seed0 runs/seed1 --to both.html
    """
    from feddlp.records import RunFolder
    from feddlp.report.page import write_report
    from feddlp.report.sweeps import is_sweep, run_folders

    runs = [run for path in paths for run in (run_folders(path) if is_sweep(path) else [RunFolder.open(path)])]
    target = to or paths[0] / "report.html"
    write_report(runs, target)
    print(f"report: {target}")


@app.command()
def show(path: RunPath, debug: Debug = False) -> None:
    """Print the table of a run, or of a sweep, from its records.

    \b
    feddlp show runs/demo
    """
    from feddlp.printing import print_run, print_sweep
    from feddlp.records import RunFolder
    from feddlp.report.sweeps import is_sweep

    if is_sweep(path):
        print_sweep(path, Console())
    else:
        print_run(RunFolder.open(path), Console())


@app.command()
def methods(debug: Debug = False) -> None:
    """List the methods and their named variants, one line each.

    \b
    feddlp methods
    """
    from feddlp.hyperparameters import descriptions
    from feddlp.printing import print_list

    print_list(descriptions())


@app.command()
def datasets(debug: Debug = False) -> None:
    """List the data sets, one line each.

    \b
    feddlp datasets
    """
    from feddlp.data.datasets import descriptions
    from feddlp.printing import print_list

    print_list(descriptions())


@app.command()
def bench(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="The workload; see docs/performance.md.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object for machines.")] = False,
    debug: Debug = False,
) -> None:
    """Measure the training on this machine: speed, memory, where the time goes, and the naive way beside it.

    \b
    feddlp bench                                     image tower of ViT-B/32, ten clients, bfloat16 (about 4 minutes)
    feddlp bench model=tiny-clip adapt=text naive=false
    feddlp bench clients=1 dtype=float32 --json
    """
    quiet_libraries()
    from feddlp.bench.measure import measure
    from feddlp.bench.options import load_options
    from feddlp.bench.results import results
    from feddlp.printing import print_bench

    options = load_options(words or [])
    with Console(stderr=True).status("measuring") as status:
        measured = measure(options, lambda what: status.update(f"measuring: {what}"))
    print_bench(results(*measured), as_json)


@contextmanager
def reporting(console: Console, again: str = "") -> Iterator[PlainReporter]:
    """A reporter; an interrupt ends in a message that says how to go on: `again`, or by resuming the run folder."""
    reporter = make_reporter(console)
    try:
        with reporter:
            yield reporter
    except KeyboardInterrupt:
        again = again or (shlex.join(["feddlp", "resume", str(reporter.folder)]) if reporter.folder else "")
        way_on = f"go on with: {again}" if again else "nothing was written yet"
        raise StoppedByUser(way_on) from None


def interrupt(*_: Any) -> NoReturn:
    """SIGTERM, as a stopped container gets it, is taken as Ctrl-C."""
    raise KeyboardInterrupt


class StoppedByUser(Exception):  # noqa: N818 - it is no error
    """The run was interrupted by its user."""


class RunsFailed(Exception):  # noqa: N818 - the sweep itself did not fail
    """A sweep came to its end, and some of its runs did not."""


def quiet_libraries() -> None:
    """Their progress bars and notices are not ours; errors still come through as exceptions."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def main() -> None:
    """Entry point of the command `feddlp`."""
    signal.signal(signal.SIGTERM, interrupt)
    keep_freed_memory()
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
    if isinstance(error, RunsFailed):
        return f"error: {error}", 1
    if hasattr(error, "format_message"):  # a wrong command or option; typer does not export its base class
        return f"error: {error.format_message()} See: feddlp --help", 2
    return f"error: {type(error).__name__}: {str(error) or 'no message'} (use --debug for the traceback)", 1


def fail(message: str, code: int) -> NoReturn:
    print("feddlp:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
