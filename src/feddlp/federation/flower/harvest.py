"""A node's clients as a run folder, from which `feddlp export`, `predict` and `evaluate` take what a site needs.

What a node keeps is private and lies on its own disk; the server never has it. So the site itself takes its model away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddlp.config import Config, load_config
from feddlp.errors import UserError, nearest
from feddlp.federation.flower.settings import parse_clients
from feddlp.federation.flower.statefolder import StateFolder
from feddlp.files import make_folder, write_atomically
from feddlp.records import TAKEN, RunFolder


def experiments(state_dir: Path) -> dict[str, Path]:
    """The runs in which a node took part, by their names; of two of one name the later one has its identity added."""
    found: dict[str, Path] = {}
    folders = [path.parent for path in state_dir.glob("*/config.toml")]
    for path in sorted(folders, key=lambda folder: folder.stat().st_mtime):
        name = load_config(path / "config.toml").name
        found[name if name not in found else f"{name}-{path.name[:6]}"] = path
    return found


def choose(state_dir: Path, run: str) -> Path:
    """The folder of one run.

    Raises:
        UserError: there is none, or several and none was named.
    """
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
    folder = RunFolder.create(to.parent, to.name, config.to_toml())
    shutil.copy(source / "partition.json", folder.path / "partition.json")
    folder.record_clients([])  # scores are in the server's record
    played = [method for method in config.methods if (source / method / "state.json").exists()]
    copied = [copy_method(StateFolder(source / method, {}), folder, method, config) for method in played]
    if copied:  # all over one frozen model
        folder.write_environment({"backbone": copied[0]["checkpoint"], TAKEN: str(state_dir)})
    return folder


def copy_method(state: StateFolder, folder: RunFolder, method: str, config: Config) -> Mapping[str, str]:
    """A method's clients, at the places that a run folder has for them, and the shared adapter as it last came.

    Returns:
        Fingerprints of what it belongs to.
    """
    kept = state.read()
    clients = parse_clients(kept.belongs["clients"])
    place = folder.checkpoint(method)
    make_folder(place)
    for block in kept.after:
        shutil.copy(state.path / block["file"], place / block["file"])
    blocks = [{**block, "rows": [clients[row] for row in block["rows"]]} for block in kept.after]
    server = {
        f"server/shared/{name}/{leaf}": value
        for name, theta in state.read_order(kept).items()
        for leaf, value in theta.items()
    }
    folder.save_checkpoint(method, kept.round, server, blocks, kept.wave)
    return kept.belongs


def write_about(folder: Path, config: Config, partition: Mapping[str, Any]) -> None:
    """What a node writes down of a run, once, for `take`: its configuration here, classes and prompt."""
    if not (folder / "config.toml").exists():
        about = {key: partition[key] for key in ("class_names", "template")}
        write_atomically(folder / "partition.json", json.dumps(about).encode())
        write_atomically(folder / "config.toml", config.to_toml().encode())
