"""From a configuration to a finished run folder: the place where all parts are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from feddlp import materials as preparation
from feddlp.config import Config, load_config
from feddlp.errors import UserError
from feddlp.federation.host import Host, Lane
from feddlp.federation.newcomers import join
from feddlp.federation.rounds import Clients, Federation
from feddlp.federation.rows import client_rows, rank_row, round_row
from feddlp.materials import Materials
from feddlp.memory import reset_peak
from feddlp.provenance import code_of, learning_rates, own_methods
from feddlp.record_types import environment
from feddlp.records import ROSTER, TAKEN, RunFolder
from feddlp.report.rates import caveat, described


class Reporter(preparation.Reporter, Protocol):
    """Who is told how a run goes on."""

    def run_started(self, folder: Path) -> None: ...

    def method_started(self, method: str, rounds: int, steps: int, done: int) -> None: ...

    def stepped(self) -> None: ...

    def round_finished(self, row: Mapping[str, Any]) -> None: ...


class Entry(NamedTuple):
    """A run folder and what it is to hold."""

    folder: RunFolder
    config: Config


def lanes_of(entries: Sequence[Entry], name: str) -> list[Lane]:
    """The runs that train side by side, a lane each."""
    return [Lane(entry.config.seed, entry.config.build_methods()[name]) for entry in entries]


def play(entries: Sequence[Entry], name: str, materials: Materials, reporter: Reporter) -> None:
    """All rounds of one method that are not yet in the folders, its clients in this process.

    Several entries train side by side, a lane each; they stand at the same round, and their methods differ in
    `methods.base.STACKABLE` fields only.
    """
    folders = [entry.folder.checkpoint(name) for entry in entries]
    training = entries[0].config.training
    host = Host(lanes_of(entries, name), materials.backbone, materials.prompts, materials.data, training, folders)
    federation = play_rounds(entries, name, host, reporter)
    welcome(entries, name, federation, host, materials)


def play_rounds(entries: Sequence[Entry], name: str, clients: Clients, reporter: Reporter) -> Federation:
    """All rounds of one method that are not yet in the folders, a checkpoint after each, wherever the clients are."""
    reset_peak()
    federation = Federation(lanes_of(entries, name), clients, entries[0].config.training)
    restore(federation, entries, name)
    reporter.method_started(name, federation.rounds, clients.steps(), federation.round)
    if federation.round < federation.rounds:
        reporter.note(f"{name}: {clients.describe()}")
        for folder, _ in entries:
            folder.forget_newcomers(name)
    for lane, start in enumerate(federation.score_start()):
        entries[lane].folder.record_clients(client_rows(name, lane, federation, start))
    while federation.round < federation.rounds:
        results = federation.play_round(reporter.stepped)
        rows = [round_row(name, lane, federation, result) for lane, result in enumerate(results)]
        for lane, (folder, _) in enumerate(entries):
            table = client_rows(name, lane, federation, results[lane])
            folder.record_round(rows[lane], table, rank_row(name, lane, federation, results[lane]))
            folder.save_checkpoint(name, federation.round, federation.state_dict(lane), *clients.keep(lane))
        reporter.round_finished(rows[0])
    return federation


def restore(federation: Federation, entries: Sequence[Entry], name: str) -> None:
    """Go on from the last checkpoints of all entries, where there are any; otherwise begin."""
    found = [checkpoint for entry in entries if (checkpoint := entry.folder.load_checkpoint(name))]
    if found:
        federation.load_state_dict(found[0][0], [state for _, state in found])
    for lane, entry in enumerate(entries):
        if commit := entry.folder.checkpoint_state(name):
            federation.clients.restore(lane, commit.clients, commit.wave)
        else:
            entry.folder.begin(name)


def welcome(entries: Sequence[Entry], name: str, federation: Federation, host: Host, materials: Materials) -> None:
    """The clients that join at the end, once for each folder."""
    waiting = [entry.folder for entry in entries if name not in entry.folder.read_newcomers()]
    if materials.newcomers and waiting:
        rows = join(host, federation.order(), materials.newcomers, entries[0].config.training.newcomer_epochs)
        for (folder, config), row in zip(entries, rows, strict=True):
            if folder in waiting:
                folder.record_newcomers({"method": name, "seed": config.seed, **row})


def open_folder(entry: Entry, materials: Materials, reporter: Reporter) -> None:
    """Check that the folder belongs to this experiment, and cut its records back to the last checkpoint."""
    code = code_of(own_methods(entry.config))
    fingerprints = {"configuration": entry.config.fingerprint(), "code": code, **materials.fingerprints}
    check_environment(entry.folder, fingerprints, reporter)
    entry.folder.rewind()
    entry.folder.write_partition(materials.partition)
    entry.folder.write_left_out(materials.left_out)


def execute(entry: Entry, materials: Materials, reporter: Reporter) -> None:
    """Bring a run folder to its end, from wherever it stands."""
    with entry.folder.locked():
        if entry.config.tune:
            from feddlp.tuning import tune  # which plays its trials as this module does

            entry = tune(entry, materials, reporter)
        open_folder(entry, materials, reporter)
        say_rates(entry.config, reporter)
        for name in entry.config.methods:
            play([entry], name, materials, reporter)


def say_rates(config: Config, reporter: preparation.Reporter) -> None:
    """Say which learning rates a run has, where they come from, and what stands against a comparison at them."""
    rates = {name: rate.model_dump() for name, rate in learning_rates(config).items()}
    if rates:
        reporter.note(described(rates))
    if len(rates) > 1 and (against := caveat(rates)):
        reporter.warn(against)


def check_environment(folder: RunFolder, fingerprints: Mapping[str, str], reporter: Reporter) -> None:
    """At the start, write down the environment; on resuming, refuse another configuration, other images or weights."""
    recorded = folder.read_environment()
    if not recorded:
        folder.write_environment(fingerprints)
        return
    if recorded.get(TAKEN):
        raise UserError(f"{folder.path} holds models that were taken from a node; use it with: feddlp export")
    for key in ("code", "configuration", "data", "backbone"):
        if recorded.get(key, "") != fingerprints[key]:
            raise UserError(
                f"{folder.path}: the {key} is not the one that the run began with; put it back, or start a new run"
            )
    now = environment()
    for key in ("packages", "threads", "cuda"):
        if recorded.get(key) != now[key]:
            reporter.warn(
                f"{key} differ from when the run began, so the last digits may too: {recorded.get(key)} -> {now[key]}"
            )


def say_where(folder: RunFolder, config: Config, reporter: Reporter) -> None:
    """The folder of a run that begins, and why it is called otherwise than its configuration says."""
    if folder.path.name != config.name:
        reporter.note(f"{folder.path.with_name(config.name)} exists, so this run is {folder.path.name}")
    reporter.run_started(folder.path)


def run(config: Config, reporter: Reporter) -> RunFolder:
    """A new run. Its folder is made once model and data are known to be good."""
    materials = preparation.prepare(config, reporter)
    folder = RunFolder.create(Path(config.runs_dir).expanduser(), config.name, config.to_toml())
    say_where(folder, config, reporter)
    execute(Entry(folder, config), materials, reporter)
    return folder


def resume(path: Path, reporter: Reporter) -> RunFolder:
    """Go on where a run was interrupted; a finished run stays as it is."""
    folder = RunFolder.open(path)
    if (folder.path / ROSTER).exists():
        raise UserError(f"{path}: its clients are on other machines; go on with: feddlp federate resume {path}")
    reporter.run_started(folder.path)
    config = load_config(folder.config)
    execute(Entry(folder, config), preparation.prepare(config, reporter), reporter)
    return folder
