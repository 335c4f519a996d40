"""What a node decides itself, never the server: which clients it holds, their images, where it keeps their state.

From the SuperNode's `--node-config`; a key that is not there is looked for in the environment, as FEDDLP_STATE_DIR:

    clients     "3", "0-4" or "0-2,7"; or partition-id and num-partitions, as Flower's simulation sets them
    data        data.dataset here, for example folder:/data/photos; may be left out for rendered data sets alone
    state-dir   where private adapters, gates and moments are kept
    checkpoint  model.checkpoint here; may be left out for the embedded one alone
    device      model.device here
    name        what the records call this node and its clients
    memory-limit  training.memory_limit here: GiB, 512MiB, or auto
    keep-warm   seconds for which a process with the model loaded waits for the next message; 0 = none does
    tell-classes   yes: the server is told how many images of which class each client has, for the report
    tell-problems  yes: it is told what is wrong with images or checkpoint, with the names of files
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from feddlp.config import Config
from feddlp.config_values import absolute_checkpoint, absolute_dataset, gibibytes
from feddlp.errors import UserError, nearest
from feddlp.federation.flower import limits
from feddlp.model.hub import EMBEDDED

SIMULATED = ("partition-id", "num-partitions")
MADE_HERE = ("digits", "glyphs")  # data sets that read no file of the node's owner


@dataclass(frozen=True)
class NodeSettings:
    """A node as its owner configured it."""

    clients: tuple[int, ...]
    state_dir: Path
    data: str = ""
    checkpoint: str = ""
    device: str = ""
    memory_limit: Literal["auto"] | float = "auto"  # GiB
    name: str = ""
    tell_classes: bool = False
    tell_problems: bool = False

    @property
    def made_here(self) -> bool:
        """Whether the images are rendered, and so nobody's."""
        return self.data.partition(":")[0] in ("", *MADE_HERE)

    def check(self) -> None:
        """Try what can be tried before a server asks: images, device and state folder.

        Raises:
            UserError: one of them cannot be used.
        """
        from feddlp.data.datasets import find_own  # what a command that only passes settings on does not need
        from feddlp.federation.flower.statefolder import identity

        if self.data:
            find_own(self.data)
        if self.device not in ("", "auto", "cpu"):
            from feddlp.materials import pick_device  # PyTorch knows which devices there are

            pick_device(self.device)
        identity(self.state_dir)

    def localised(self, config: Config) -> Config:
        """The server's configuration with the places that are this node's own.

        Raises:
            UserError: data or a frozen model that only the server names.
        """
        if not self.data and config.data.dataset.partition(":")[0] not in MADE_HERE:
            raise UserError(
                f"node-config has no data, and the server's data.dataset={config.data.dataset} is never read from this "
                "machine's disk; start the node with --data folder:PATH"
            )
        data = {"dataset": self.data or config.data.dataset}
        if not self.checkpoint and config.model.checkpoint not in EMBEDDED:
            raise UserError(
                f"node-config has no checkpoint, and the server's model.checkpoint={config.model.checkpoint} is not "
                "taken on its word: a doctored model can reveal images; start the node with --checkpoint and a "
                "folder or hub name that you trust"
            )
        training = {"wave": 0, "client_store": "auto", "memory_limit": self.memory_limit}
        model = {"checkpoint": self.checkpoint or config.model.checkpoint, "device": self.device or "auto"}
        return config.model_copy(
            update={
                "data": config.data.model_copy(update=data),
                "model": config.model.model_copy(update=model),
                "training": config.training.model_copy(update=training),
            }
        )


KEYS = (*(field.name.replace("_", "-") for field in fields(NodeSettings)), "keep-warm")


def read_settings(node_config: Mapping[str, Any], environment: Mapping[str, str], clients: int) -> NodeSettings:
    """A node's settings, checked.

    Args:
        clients: of the whole federation.

    Raises:
        UserError: a key that is unknown, missing or wrong.
    """
    if unknown := [key for key in node_config if key not in KEYS + SIMULATED]:
        raise UserError(f"node-config has {unknown[0]}; {nearest(unknown[0], KEYS)}")
    found = {key: str(node_config.get(key, environment.get(variable(key), ""))) for key in KEYS}
    if not found["state-dir"]:
        raise UserError("node-config has no state-dir; name a folder of this node alone, as state-dir=/var/feddlp")
    held = parse_clients(found["clients"]) if found["clients"] else simulated(node_config, clients)
    own = "" if found["clients"] else f"node-{node_config['partition-id']}"  # simulated nodes have one environment
    if outside := [client for client in held if client >= clients]:
        raise UserError(f"node-config: client {outside[0]} is none of data.clients={clients}, 0-{clients - 1}")
    return NodeSettings(
        clients=held,
        state_dir=Path(found["state-dir"]).expanduser() / own,
        data=absolute_dataset(found["data"]),
        checkpoint=absolute_checkpoint(found["checkpoint"]) if found["checkpoint"] else "",
        device=found["device"],
        memory_limit=read_limit(found["memory-limit"] or "auto"),
        name=found["name"] or own,
        tell_classes=read_yes_or_no("tell-classes", found["tell-classes"]),
        tell_problems=read_yes_or_no("tell-problems", found["tell-problems"]),
    )


def variable(key: str) -> str:
    """ "state-dir" -> "FEDDLP_STATE_DIR" """
    return f"FEDDLP_{key.upper().replace('-', '_')}"


def read_yes_or_no(key: str, text: str) -> bool:
    if text not in ("yes", "no", ""):
        raise UserError(f"node-config: {key}={text} is neither yes nor no")
    return text == "yes"


def read_limit(text: str) -> Literal["auto"] | float:
    try:
        limit: Literal["auto"] | float = gibibytes(text)
    except ValueError as error:
        raise UserError(f"node-config: memory-limit={text}: {error}") from error
    return limit


def parse_clients(text: str, option: str = "node-config: clients=") -> tuple[int, ...]:
    """ "0-2,7" -> (0, 1, 2, 7)"""
    held: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last >= limits.CLIENTS:
            raise UserError(f"{option}{text} is no list of clients; write for example 3, 0-4 or 0-2,7")
        held += range(first, last + 1)
    if len(set(held)) < len(held):
        raise UserError(f"{option}{text} names a client twice")
    return tuple(sorted(held))


def simulated(node_config: Mapping[str, Any], clients: int) -> tuple[int, ...]:
    """The clients of one of `num-partitions` nodes that share all of them."""
    try:
        place, nodes = (int(node_config[key]) for key in SIMULATED)
    except (KeyError, ValueError) as error:
        raise UserError("node-config has no clients; name those that are here, as clients=3 or clients=0-4") from error
    held = share_of(place, nodes, clients) if 0 <= place < nodes else ()
    if not held:
        raise UserError(
            f"node-config: partition {place} of {nodes} is left without a client of {clients}; use fewer nodes"
        )
    return held


def share_of(place: int, nodes: int, clients: int) -> tuple[int, ...]:
    """The clients of one of the nodes that share all of them evenly."""
    return tuple(range(place * clients // nodes, (place + 1) * clients // nodes))


def spell(clients: tuple[int, ...] | list[int]) -> str:
    """(0, 1, 2, 7) -> "0-2, 7" """
    runs: list[list[int]] = []
    for client in sorted(clients):
        if runs and client == runs[-1][1] + 1:
            runs[-1][1] = client
        else:
            runs.append([client, client])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
