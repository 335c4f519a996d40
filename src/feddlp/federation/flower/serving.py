"""The server of a run: brings a run folder to its end, with the clients on other machines.

All of `rounds`, `aggregation` and `records` is as in a run in one process; a checkpoint after every round, so that a
server that was killed goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from feddlp import __version__
from feddlp.completeness import missing_rounds
from feddlp.config import Config, load_config, overridden
from feddlp.errors import UserError
from feddlp.experiment import Entry, Reporter, check_environment, play_rounds, say_rates, say_where
from feddlp.federation.flower import bindings
from feddlp.federation.flower.events import Recorder
from feddlp.federation.flower.inquiry import gather
from feddlp.federation.flower.nodes import Nodes
from feddlp.federation.flower.parcels import Parcel
from feddlp.federation.flower.post import Post
from feddlp.federation.flower.registry import Registry
from feddlp.federation.flower.remote import RemoteClients
from feddlp.files import parse_toml
from feddlp.provenance import code_of, own_methods
from feddlp.records import ROSTER, RunFolder

SPARE = 600.0  # seconds that a message outlives the deadline of its round


def serve(
    grid: Grid,
    run_config: Mapping[str, Any],
    reporter: Reporter,
    finish: Callable[[RunFolder], None] = lambda folder: None,
) -> RunFolder:
    """Play the run that the app's configuration names.

    Args:
        run_config: "run", a run folder to bring to its end, and "from-round", the round to go back to before that; or
            "configuration", a TOML file on this machine (or its text; the demo where empty), and "overrides", for
            example "training.rounds=3 seed=1".
        finish: what is done with the run folder in the end.

    Raises:
        UserError: a mistake in these, or too few clients.
    """
    folder = find_run(run_config)
    recorder = Recorder(folder.path / "events.jsonl", reporter)
    recorder.write("serving", os.getpid())
    try:
        say_where(RunFolder(folder.path.absolute()), load_config(folder.config), recorder)
        with folder.locked():
            if back := str(run_config.get("from-round", "")):
                go_back(folder, back, recorder)
            play(grid, folder, recorder)
        finish(folder)
    except BaseException as error:
        recorder.write("failed", str(error) or type(error).__name__)
        raise
    recorder.write("finished")
    return folder


def find_run(run_config: Mapping[str, Any]) -> RunFolder:
    """The folder that is to be brought to its end; a new one where none is named."""
    if run := str(run_config.get("run", "")):
        return RunFolder.open(Path(run).expanduser())
    config = read_configuration(str(run_config.get("configuration", "")), str(run_config.get("overrides", "")).split())
    return new_run(config)


def go_back(folder: RunFolder, back: str, reporter: Reporter) -> None:
    """Make an earlier round the last one that was played."""
    if not back.isdecimal():
        raise UserError(f"--from-round {back} is no round; give the number of the last one to keep")
    method = folder.take_back(int(back))
    folder.rewind()
    reporter.note(f"{method} is taken back to round {back}")


def new_run(config: Config) -> RunFolder:
    check_fit(config)
    return RunFolder.create(Path(config.runs_dir).expanduser().absolute(), config.name, config.to_toml())


def read_configuration(text: str, overrides: list[str]) -> Config:
    """A file's name, or the text of one; the demo where it is empty."""
    if "\n" not in text and not (text and "=" in text):
        return load_config(Path(text).expanduser() if text else None, overrides)
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise UserError(f"configuration is not valid TOML: {error}") from error
    return overridden(table, overrides)


def check_fit(config: Config) -> None:
    """Refuse what only a run in one process can do."""
    if config.data.newcomers:
        raise UserError(f"data.newcomers={config.data.newcomers} is for runs in one process; set data.newcomers=0")
    if config.tune:
        raise UserError("tune=true is for runs in one process; set tune=false")
    if config.data.partition == "natural" and config.data.test_set == "common" and config.data.splits == "merged":
        raise UserError("data.test_set=common takes images from all clients, who keep theirs; set data.test_set=own")


def play(grid: Grid, folder: RunFolder, reporter: Recorder) -> None:
    """All methods of a run."""
    config = load_config(folder.config)
    check_fit(config)
    if not missing_rounds(folder, config):
        reporter.note("all rounds are played")
        return
    if folder.read_environment() and not (folder.path / ROSTER).exists():
        raise UserError(f"{folder.path} was begun in one process; go on with: feddlp resume {folder.path}")
    registry = Registry.open(folder.path, config)
    facts = {"version": __version__, "experiment": registry.experiment, "configuration": config.to_toml()}
    post = Post(grid, config.deployment.deadline + SPARE)
    greeting, bound = Parcel({**facts, "kind": "hello"}), os.environ.get(bindings.VARIABLE, "")
    nodes = Nodes(post, registry, greeting, config.data.clients, reporter, bindings=bound, journal=reporter.write)
    gather(nodes, config.deployment)
    registry.close()
    fingerprints = {
        "configuration": config.fingerprint(),
        "code": code_of(own_methods(config)),
        "data": registry.experiment,
        "backbone": registry.common["checkpoint"],
    }
    folder.rewind()
    check_environment(folder, fingerprints, reporter)
    folder.write_partition(registry.partition(config.data.clients))
    say_rates(config, reporter)
    for name in config.methods:
        told = {**facts, "undone": list(folder.undone(name))}
        play_rounds([Entry(folder, config)], name, RemoteClients(nodes, config, name, told), reporter)
