"""A node's clients as a run folder, from which `feddlp export`, `predict` and `evaluate` take what a site needs.

What a node keeps is private and lies on its own disk; the server never has it. So the site itself takes its model away.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddlp.config import Config, load_config
from feddlp.errors import UserError, nearest
from feddlp.federation.flower.settings import parse_clients
from feddlp.federation.flower.statefolder import Kept, StateFolder, leaves
from feddlp.files import make_folder, owner_only, write_atomically
from feddlp.record_types import Partition
from feddlp.records import TAKEN, RunFolder
from feddlp.states import read, write


def experiments(state_dir: Path) -> dict[str, Path]:
    """The runs in which a node took part, by their names; of two of one name the later one has its identity added."""
    found: dict[str, Path] = {}
    folders = [path.parent for path in state_dir.glob("*/config.toml")]
    for path in sorted(folders, key=lambda folder: folder.stat().st_mtime):
        name = load_config(path / "config.toml").name
        found[name if name not in found else f"{name}-{path.name[:6]}"] = path
    return found


def choose(state_dir: Path, run: str) -> Path:
    """The folder of one run; raises UserError if there is none, or there are several and none was named."""
    found = experiments(state_dir)
    if not found:
        raise UserError(f"{state_dir} is no state folder in which a round was played; give a node's --state-dir")
    if not run and len(found) > 1:
        raise UserError(f"{state_dir} holds several runs; add --run, one of {', '.join(found)}")
    if run and run not in found:
        raise UserError(f"--run {run}: {state_dir} does not hold it; {nearest(run, found)}")
    return found[run] if run else next(iter(found.values()))


def take(state_dir: Path, to: Path, run: str = "") -> RunFolder:
    """Make a run folder of what a node keeps of one run.

    Raises:
        UserError: no such run, a damaged state, or a folder that is there already.
    """
    source = choose(state_dir, run)
    config = load_config(source / "config.toml")
    if to.exists():
        raise UserError(f"--to {to} is there already; give a folder that is not")
    states = {method: StateFolder(source / method, {}) for method in config.methods}
    played = {method: kept for method, state in states.items() if (kept := state.read()).last.round}
    for method, kept in played.items():
        if kept.belongs.get("configuration") != config.fingerprint():
            raise UserError(
                f"{source / 'config.toml'} is not the configuration that {method} was played with; restore it"
            )
        for piece in kept.last.pieces:
            piece.read(source / method)
    partition = read(source / "partition.json", Partition)
    if not played or not partition:
        missing = source / "partition.json" if played else f"a finished round in {source}"
        raise UserError(f"{missing} is missing; restore it from a backup")
    with owner_only():
        folder = RunFolder.create(to.parent, to.name, config.to_toml())
        folder.write_partition(partition.table())
        first = next(iter(played.values()))  # all over one frozen model
        folder.write_environment(
            {"configuration": config.fingerprint(), "backbone": first.belongs["checkpoint"], TAKEN: str(state_dir)}
        )
        for method, kept in played.items():
            copy_method(states[method], kept, folder, method)
    return folder


def copy_method(state: StateFolder, kept: Kept, folder: RunFolder, method: str) -> None:
    """A method's clients, at the places that a run folder has for them, and the shared adapter as it last came."""
    clients = parse_clients(kept.belongs["clients"])
    folder.begin(method)
    place, pieces = folder.checkpoint(method), []
    make_folder(place)
    for piece in kept.last.clients:
        shutil.copyfile(state.path / piece.file, place / piece.file)
        pieces.append(piece.model_copy(update={"rows": tuple(clients[row] for row in piece.rows)}))
    server = leaves("server/shared", state.read_report(kept)[1])
    folder.save_checkpoint(method, kept.last.round, server, pieces, kept.last.wave)


def write_about(folder: Path, config: Config, partition: Mapping[str, Any]) -> None:
    """What a node writes down of a run, once, for `take`: its configuration here, classes and prompt."""
    if not (folder / "config.toml").exists():
        about = {key: partition[key] for key in ("class_names", "template")}
        write(folder / "partition.json", Partition(**about))
        write_atomically(folder / "config.toml", config.to_toml().encode())
