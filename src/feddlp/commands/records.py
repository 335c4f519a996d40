"""Commands that show what there is: report, show, methods, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from feddlp.commands.common import Debug, RunPath, quiet_libraries
from feddlp.progress import Console


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
        print_sweep(path, Console())
    else:
        print_run(RunFolder.open(path), Console())


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
    """Measure training on this machine: speed, memory, and the naive way next to it.

    \b
    feddlp bench                                     image tower of ViT-B/32 (within two minutes)
    feddlp bench clients=10 seconds=600              all ten clients, however long a round takes
    feddlp bench model=tiny-clip adapt=text naive=false
    feddlp bench clients=1 dtype=float32 --json
    """
    quiet_libraries()
    from feddlp.bench.measure import describe, measure
    from feddlp.bench.options import load_options
    from feddlp.printing import print_list

    options = load_options(words or [])
    with Console(stderr=True).status("measuring") as status:
        found = measure(options, lambda what: status.update(f"measuring: {what}"))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_list(dict(describe(found)))
