"""Commands of a federation over several machines: feddlp federate up | resume | link | node | run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from feddlp.commands.common import Debug, RunPath, StoppedByUser, quiet_libraries, reporting
from feddlp.errors import UserError

app = typer.Typer(help="A federation over several machines, on Flower; see docs/flower.md.", no_args_is_help=True)

Nodes = Annotated[int, typer.Option("--nodes", help="SuperNodes that share the clients.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A configuration file and overrides, in any order."),
]


@app.command()
def up(words: Words = None, nodes: Nodes = 2, debug: Debug = False) -> None:
    """A complete federation on this machine, for trying out; ended when its run is, or with Ctrl-C.

    \b
    feddlp federate up --nodes 2                     the demo on two nodes
    feddlp federate up my.toml training.rounds=5
    """
    quiet_libraries()
    need_flower()
    from feddlp.commands.training import split_words
    from feddlp.config import load_config
    from feddlp.federation.flower.local import check_nodes
    from feddlp.federation.flower.serving import new_run

    config = load_config(*split_words(words or []))
    check_nodes(nodes, config)
    folder = new_run(config)
    bring_to_its_end(folder.path, nodes)


@app.command()
def resume(path: RunPath, nodes: Nodes = 2, debug: Debug = False) -> None:
    """Go on with an interrupted run of `feddlp federate up`; it ends exactly as an undisturbed one.

    \b
    feddlp federate resume runs/demo
    """
    quiet_libraries()
    need_flower()
    bring_to_its_end(path, nodes)


def bring_to_its_end(path: Path, nodes: int) -> None:
    """A federation around a run folder, its progress, and in the end its tables."""
    from feddlp.federation.flower.local import federation
    from feddlp.printing import print_finished
    from feddlp.records import RunFolder

    folder, console = RunFolder.open(path), Console()
    try:
        with reporting(console) as reporter, federation(folder, nodes, reporter) as local:
            local.play()
    except StoppedByUser:
        raise StoppedByUser(f"go on with: feddlp federate resume {path}") from None
    print_finished(folder, console)


def need_flower() -> None:
    """Raises UserError where the extra is not installed."""
    try:
        import flwr  # noqa: F401
    except ImportError as error:
        raise UserError('feddlp federate needs Flower; install it with: pip install "feddlp[flower]"') from error
