"""A complete federation on this machine, for trying out: a SuperLink, SuperNodes and a run, in its run folder.

runs/<name>/federation/
    link.db, link.log, flwr/     of the SuperLink
    federation.json              how many nodes
    node-0/, node-0.log          state folder of a SuperNode, and what it says
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from feddlp.config import Config, load_config
from feddlp.errors import UserError
from feddlp.experiment import Reporter
from feddlp.federation.flower import machines
from feddlp.federation.flower.events import Follower
from feddlp.federation.flower.processes import LOOPBACK, Running, free_ports, start, wait_until_up
from feddlp.federation.flower.resident import is_alive
from feddlp.federation.flower.settings import share_of, spell, variable
from feddlp.files import held_alone, make_folder
from feddlp.records import RunFolder
from feddlp.states import Sealed, read, write

HERE = machines.Trust(None)  # on this machine there is no need for certificates
SHAPE = "federation.json"
FOLLOW = 0.2  # seconds between two looks at the events
SERVER_WITHIN = 180.0  # seconds in which the server must show itself


class Shape(Sealed):
    """What a resumed run begins with again: its clients are in the state folders of its nodes."""

    nodes: Annotated[int, Field(ge=1)]
    simulated: bool


@dataclass
class LocalFederation:
    """The processes of a federation around a run folder.

    Args:
        folder: of the run.
        nodes: how many SuperNodes share its clients.
        simulated: by Flower's simulation engine (ray), in place of SuperNodes.
    """

    folder: RunFolder
    nodes: int
    reporter: Reporter
    simulated: bool = False
    running: dict[str, Running] = field(default_factory=dict)
    port: int = 0

    @property
    def place(self) -> Path:
        return self.folder.path.absolute() / "federation"

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Everything but the run."""
        self.start_link()
        for node in range(0 if self.simulated else self.nodes):
            self.start_node(node)

    def start_link(self) -> None:
        (self.port,) = free_ports(1)
        command, variables = machines.link(self.address, HERE, self.place)
        command += ["--simulation"] * self.simulated
        self.running["link"] = start(command, self.place / "link.log", variables | self.simulated_settings())
        wait_until_up(self.running["link"], self.port)
        self.reporter.note(f"SuperLink on {self.address}; logs in {self.place}")

    def own_settings(self, config: Config) -> dict[str, str]:
        """What the configuration says of this machine, where all nodes are."""
        return {
            "data": config.data.dataset,
            "checkpoint": config.model.checkpoint,
            "device": config.model.device,
            "tell-classes": "yes",
            "tell-problems": "yes",
        }

    def simulated_settings(self) -> dict[str, str]:
        """What SuperNodes have in their node-config and simulated ones in their environment."""
        if not self.simulated:
            return {}
        found = {"state-dir": str(self.place), **self.own_settings(load_config(self.folder.config))}
        return {variable(key): value for key, value in found.items()}

    def start_node(self, node: int) -> None:
        """A SuperNode; the one before it, if there was one, is ended."""
        if before := self.running.get(f"node-{node}"):
            before.stop()
        name, settings = f"node-{node}", self.node_config(load_config(self.folder.config), node)
        (port,) = free_ports(1)
        command, variables = machines.node(self.address, port, settings, HERE, self.place)
        self.running[name] = start(command, self.place / f"{name}.log", variables)

    def node_config(self, config: Config, node: int) -> dict[str, str]:
        """A share of the clients."""
        return {
            "name": f"node-{node}",
            "clients": spell(share_of(node, self.nodes, config.data.clients)).replace(" ", ""),
            "state-dir": str(self.place / f"node-{node}"),
            **self.own_settings(config),
        }

    def play(self) -> None:
        """Submit the run and tell the reporter how it goes on, to its end.

        Raises:
            UserError: it failed, or one of the processes that it cannot do without died.
        """
        follower = Follower(self.folder.path / "events.jsonl", self.reporter)
        engine = ["--federation-config", f"num-supernodes={self.nodes} client-resources-num-cpus=1"]
        link = machines.control(self.address, HERE, self.place)
        link.submit({"run": str(self.folder.path.absolute())}, *engine * self.simulated)
        began, told = time.monotonic(), set[str]()
        while follower.ended is None:
            time.sleep(FOLLOW)
            self._look_after(told)
            never = follower.server is None and time.monotonic() - began > SERVER_WITHIN
            lost = never or (follower.server is not None and not is_alive(follower.server))
            follower.follow()
            if lost and follower.ended is None:
                log = self.running["link"].log
                raise UserError(f"the server's process died; its log is {log}; go on with: {self.again}")
        how, why = follower.ended
        if how == "failed":
            raise UserError(f"{why}; to go on: {self.again}")

    def _look_after(self, told: set[str]) -> None:
        """Name what died; without the SuperLink there is no going on."""
        for name, process in self.running.items():
            if process.ended and name not in told:
                told.add(name)
                if name == "link":
                    raise UserError(f"the SuperLink died; its log {process.log} ends: {process.tail()}; {self.again}")
                self.reporter.warn(f"{name} died; its log is {process.log}")

    @property
    def again(self) -> str:
        return f"feddlp federate resume {self.folder.path}"

    def stop(self) -> None:
        """End what was started here, and nothing else."""
        for process in reversed(list(self.running.values())):
            process.stop()


def check_nodes(nodes: int, config: Config) -> None:
    if not 1 <= nodes <= config.data.clients:
        raise UserError(
            f"--nodes {nodes} cannot share data.clients={config.data.clients}; use 1 to {config.data.clients}"
        )


@contextlib.contextmanager
def federation(folder: RunFolder, nodes: int, reporter: Reporter, simulated: bool = False) -> Iterator[LocalFederation]:
    """A federation that is up, and taken down whatever happens."""
    check_nodes(nodes, load_config(folder.config))
    found = LocalFederation(folder, nodes, reporter, simulated)
    make_folder(found.place)
    with held_alone(found.place):
        write(found.place / SHAPE, Shape(nodes=nodes, simulated=simulated))
        try:
            found.start()
            yield found
        finally:
            found.stop()


def shape_before(folder: RunFolder) -> tuple[int, bool]:
    """With how many nodes the federation of a run was begun, and whether they were simulated.

    Raises:
        UserError: there was none on this machine.
    """
    found = read(folder.path / "federation" / SHAPE, Shape)
    if found is None:
        raise UserError(
            f"{folder.path} is no run of feddlp federate up; go on with feddlp resume {folder.path}, or on a "
            "SuperLink with feddlp federate run --resume"
        )
    return found.nodes, found.simulated
