"""Commands that show what there is: report, show, methods, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feddlp.commands.common import Debug, RunPath, quiet_libraries
from feddlp.progress import terminal


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


def show(path: RunPath, debug: Debug = False) -> None:
    """Print the table of a run, or of a sweep, from its records.

    \b
    feddlp show runs/demo
    """
    from feddlp.printing import print_run, print_sweep
    from feddlp.records import RunFolder
    from feddlp.report.sweeps import is_sweep

    if is_sweep(path):
        print_sweep(path, terminal())
    else:
        print_run(RunFolder.open(path), terminal())


def methods(debug: Debug = False) -> None:
    """List the methods and their named variants, one line each.

    \b
    feddlp methods
    """
    from feddlp.hyperparameters import descriptions
    from feddlp.printing import print_list

    print_list(descriptions())


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
    with terminal(stderr=True).status("measuring") as status:
        measured = measure(options, lambda what: status.update(f"measuring: {what}"))
    print_bench(results(*measured), as_json)
