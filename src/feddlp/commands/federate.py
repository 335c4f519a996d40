"""Commands of a federation over several machines: feddlp federate up | resume | link | node | run | stop | ..."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddlp.commands.common import (
    Debug,
    RunPath,
    StoppedByUser,
    Words,
    help_alone,
    needing,
    quiet_libraries,
    reporting,
    split_words,
)
from feddlp.errors import UserError
from feddlp.progress import Console

if TYPE_CHECKING:
    from feddlp.federation.flower.control import Control

app = typer.Typer(help="Run a federation over several machines, on Flower; see docs/flower.md.", rich_markup_mode=None)

Nodes = Annotated[int, typer.Option("--nodes", help="SuperNodes that share the clients.")]
Simulated = Annotated[bool, typer.Option("--simulation", help="Flower's simulation engine (ray) in their place.")]
Link = Annotated[str, typer.Option("--link", metavar="HOST:PORT", help="Where the SuperLink is.")]
Keys = Annotated[Path | None, typer.Option("--keys", metavar="DIR", help="Certificates, as feddlp keys makes them.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without certificates, though not on this machine alone.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what Flower says, too; it also stands in DIR/*.log.")]
Place = Annotated[Path, typer.Option("--place", metavar="DIR", help="Where Flower's own files may lie.")]
PLACE = Path("federation")
ADDRESS = "127.0.0.1:8000"
print_at_once = partial(print, flush=True)


@app.callback(invoke_without_command=True)
def options(context: typer.Context) -> None:
    """Run a federation over several machines, on Flower; see docs/flower.md."""
    help_alone(context)


@app.command()
def up(words: Words = None, nodes: Nodes = 2, simulation: Simulated = False, debug: Debug = False) -> None:
    """A complete federation on this machine, for trying out; ended when its run is, or with Ctrl-C.

    \b
    feddlp federate up --nodes 2                     the demo on two nodes
    feddlp federate up my.toml training.rounds=5
    """
    quiet_libraries()
    with needing("federate", "flower"):
        from feddlp.federation.flower.local import check_nodes
        from feddlp.federation.flower.serving import new_run
    from feddlp.config import load_config

    config = load_config(*split_words(words or []))
    check_nodes(nodes, config)
    bring_to_its_end(new_run(config).path, nodes, simulation)


@app.command()
def resume(path: RunPath, debug: Debug = False) -> None:
    """Go on with an interrupted run of `feddlp federate up`; it ends exactly as an undisturbed one.

    \b
    feddlp federate resume runs/demo
    """
    quiet_libraries()
    with needing("federate", "flower"):
        from feddlp.federation.flower.local import shape_before
    from feddlp.records import RunFolder

    bring_to_its_end(path, *shape_before(RunFolder.open(path)))


def bring_to_its_end(path: Path, nodes: int, simulation: bool) -> None:
    """A federation around a run folder, its progress, and in the end its tables."""
    with needing("federate", "flower"):
        from feddlp.federation.flower.local import federation
    from feddlp.completeness import missing_rounds
    from feddlp.printing import print_again, print_finished
    from feddlp.records import RunFolder

    folder, console = RunFolder.open(path), Console()
    if not missing_rounds(folder):
        print_finished(folder, console)
        return
    try:
        with reporting(console) as reporter, federation(folder, nodes, reporter, simulation) as local:
            local.play()
    except StoppedByUser:
        raise StoppedByUser(f"go on with: {shlex.join(['feddlp', 'federate', 'resume', str(path)])}") from None
    print_again(folder, console)


@app.command()
def link(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port for all, nodes and commands.")] = 8000,
    keys: Keys = None,
    insecure: Insecure = False,
    place: Place = PLACE,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """The server's side of the network: Flower's SuperLink, which also runs the server of each run.

    \b
    feddlp federate link --host 0.0.0.0 --keys keys
    """
    with needing("federate", "flower"):
        from feddlp.federation.flower import machines, processes

    address = machines.listening_on(host, port)
    command, variables = machines.link(address, machines.trust(address, keys, insecure, "--host"), place)
    print_at_once(f"feddlp: SuperLink on {address}; Flower's log is {place}/link.log")
    if code := processes.run_shown(command, variables, place / "link.log", verbose):
        raise UserError(f"the SuperLink ended with code {code}; its log {place}/link.log says why")


@app.command()
def node(
    clients: Annotated[str, typer.Option(help="The clients whose images lie here: 3, 0-4 or 0-2,7.")],
    state_dir: Annotated[Path, typer.Option(help="Where their private adapters are kept.")],
    data: Annotated[str, typer.Option(help="Their images, as data.dataset: folder:PATH, clients:PATH, ...")] = "",
    name: Annotated[str, typer.Option(help="What records call it and its clients; its key is DIR/NAME.key.")] = "",
    checkpoint: Annotated[str, typer.Option(help="The frozen model here: a folder or a hub name.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    tell_classes: Annotated[
        bool, typer.Option("--tell-classes", help="Tell the server how many images of which class there are.")
    ] = False,
    tell_problems: Annotated[
        bool, typer.Option("--tell-problems", help="Tell it what is wrong with images, with the names of files.")
    ] = False,
    link: Link = ADDRESS,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine alone, for Flower's use.")] = 9094,
    keys: Keys = None,
    insecure: Insecure = False,
    place: Place = PLACE,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """One site: Flower's SuperNode with some of the clients.

    \b
    feddlp federate node --link fl.example.org:8000 --keys keys --name hospital-a \\
        --clients 0 --data folder:/data/images --checkpoint /models/clip --state-dir /var/lib/feddlp
    """
    with needing("federate", "flower"):
        from feddlp.federation.flower import machines, processes
        from feddlp.federation.flower.keys import parse_address
    from feddlp.files import held_alone

    settings = {"clients": clients, "state-dir": str(state_dir.absolute()), "data": data, "device": device}
    settings |= {"name": name, "checkpoint": checkpoint}
    settings |= {"tell-classes": "yes" * tell_classes, "tell-problems": "yes" * tell_problems}
    command, variables = machines.node(link, port, settings, machines.trust(link, keys, insecure), place)
    hint = f". Is it registered (feddlp federate register {name}.pub --clients {clients})? A killed one waits a minute"
    with held_alone(state_dir.absolute(), "node.lock"):
        log, there = place / f"node-{port}.log", processes.answers(*parse_address(link, "--link"))
        print_at_once(f"feddlp: {link} {'answers' if there else 'does not answer yet'}; Flower's log is {log}")
        processes.keep_running(
            lambda line: print_at_once(f"feddlp: {line}{hint if keys else ''}"), command, variables, log, verbose
        )


def again(*words: str, link: str, keys: Path | None, place: Path, insecure: bool = False) -> str:
    """A command to the same SuperLink, to be printed: with the options that were given."""
    given = {"--link": link if link != ADDRESS else "", "--keys": keys, "--place": place if place != PLACE else ""}
    options = [word for option, value in given.items() if value for word in (option, str(value))]
    return shlex.join(["feddlp", "federate", *words, *options, *(["--insecure"] if insecure else [])])


def control(link: str, keys: Path | None, insecure: bool, place: Path) -> Control:
    """The SuperLink that the options name."""
    with needing("federate", "flower"):
        from feddlp.federation.flower import machines

    return machines.control(link, machines.trust(link, keys, insecure), place)


@app.command()
def take(
    state_dir: Annotated[Path, typer.Argument(metavar="STATE_DIR", help="A node's state-dir.")],
    to: Annotated[Path, typer.Option("--to", metavar="RUN", help="The run folder to make.")],
    run: Annotated[str, typer.Option("--run", help="Which run, if the node took part in several.")] = "",
    debug: Debug = False,
) -> None:
    """Make a run folder of what a node keeps of its clients, for feddlp export, predict and evaluate.

    \b
    feddlp federate take /var/lib/feddlp --to runs/here
    feddlp export runs/here --client 0 --to client0
    """
    quiet_libraries()
    with needing("federate", "flower"):
        from feddlp.federation.flower.harvest import take as taken

    folder = taken(state_dir, to, run)
    print(f"{folder.path}: go on with: feddlp export {folder.path} --client N --to DIR")


@app.command()
def register(
    key: Annotated[Path, typer.Argument(metavar="NAME.pub", help="A node's public key.")],
    clients: Annotated[str, typer.Option(help="The clients that it may hold, and no others: 3, 0-4 or 0-2,7.")],
    link: Link = ADDRESS,
    keys: Keys = None,
    place: Place = PLACE,
    debug: Debug = False,
) -> None:
    """Register a node's public key, or change its clients; on the server's machine, with the link's --place.

    \b
    feddlp federate register hospital-a.pub --clients 0 --keys keys
    """
    with needing("federate", "flower"):
        from feddlp.federation.flower.bindings import shared
        from feddlp.federation.flower.settings import parse_clients, spell

    if keys is None:
        raise UserError("without --keys DIR the SuperLink takes every node; there is nothing to register")
    held = parse_clients(clients, "--clients ")
    number = control(link, keys, False, place).register(key, held)
    for other, who in shared(place, number, held).items():
        remove = again("unregister", other, link=link, keys=keys, place=place)
        print(f"warning: {who} is registered for some of these, too. If {key.stem} replaces it: {remove}")
    remove = again("unregister", number, link=link, keys=keys, place=place)
    print(f"{key.stem} may join with clients {spell(held)}; to unregister it: {remove}")


@app.command()
def unregister(
    number: Annotated[int, typer.Argument(min=0, help="As feddlp federate register printed it.")],
    link: Link = ADDRESS,
    keys: Keys = None,
    place: Place = PLACE,
    debug: Debug = False,
) -> None:
    """Put a node out again; on the server's machine.

    \b
    feddlp federate unregister 10171740487049432716 --keys keys
    """
    control(link, keys, False, place).unregister(str(number))
    print(f"node {number} is put out")


@app.command()
def run(
    words: Words = None,
    go_on: Annotated[str, typer.Option("--resume", metavar="RUN", help="A run folder on the server's machine.")] = "",
    from_round: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="With --resume: undo what was played after round N.")
    ] = None,
    link: Link = ADDRESS,
    keys: Keys = None,
    insecure: Insecure = False,
    place: Place = PLACE,
    debug: Debug = False,
) -> None:
    """Start a run on a SuperLink, and show what its server says; on the server's machine, where the run folder is made.

    \b
    feddlp federate run my.toml training.rounds=50 --keys keys
    feddlp federate run --resume runs/demo
    feddlp federate run --resume runs/demo --from-round 7     go back: round 8 again
    """
    quiet_libraries()
    with needing("federate", "flower"):
        from feddlp.federation.flower.serving import check_fit
    from feddlp.config import load_config

    if go_on and words:
        raise UserError(f"--resume {go_on} has its configuration; leave {words[0]!r} out")
    if from_round is not None and not go_on:
        raise UserError(f"--from-round {from_round} needs --resume RUN")
    what = {"run": go_on, "from-round": "" if from_round is None else str(from_round)}
    if not go_on:
        config = load_config(*split_words(words or []))
        check_fit(config)
        what = {"configuration": config.to_toml()}
    superlink = control(link, keys, insecure, place)
    try:
        superlink.watch(superlink.submit(what), print_at_once)
    except KeyboardInterrupt:
        stop_it = again("stop", link=link, keys=keys, place=place, insecure=insecure)
        raise StoppedByUser(f"a run that had begun goes on at the server; end it with: {stop_it}") from None


@app.command()
def stop(
    link: Link = ADDRESS, keys: Keys = None, insecure: Insecure = False, place: Place = PLACE, debug: Debug = False
) -> None:
    """End what is under way on a SuperLink; on the server's machine. Each run can be gone on with.

    \b
    feddlp federate stop --keys keys
    """
    stopped = control(link, keys, insecure, place).stop()
    print(
        f"{len(stopped)} stopped; go on with: feddlp federate run --resume RUN" if stopped else "nothing is under way"
    )
