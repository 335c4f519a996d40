"""Commands that train: run, resume, sweep, reproduce."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from feddlp.commands.common import (
    Debug,
    RunPath,
    Words,
    complain,
    quiet_libraries,
    reporting,
    split_words,
    whole_numbers,
)
from feddlp.progress import Console


def run(words: Words = None, debug: Debug = False) -> None:
    """Run the methods of a configuration and compare them; without one, the demo.

    \b
    feddlp run                                       the demo: digits, ten clients, four methods
    feddlp run methods=feddlp training.rounds=5      the demo, changed
    feddlp run data.dataset=folder:photos            your images, one sub-folder per class
    feddlp run my.toml seed=1 method.lr=1e-4         your configuration, two keys changed
    feddlp run my.toml tune=true                     learning rates first: a sweep of one seed, on validation data
    """
    quiet_libraries()
    from feddlp import experiment
    from feddlp.config import load_config
    from feddlp.printing import print_finished

    config = load_config(*split_words(words or []))
    console = Console()
    with reporting(console) as reporter:
        folder = experiment.run(config, reporter)
    print_finished(folder, console)


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
