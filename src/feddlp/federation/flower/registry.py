"""Whom the server knows: every client's samples, and over which frozen model all of them train.

`roster.json` in the run folder keeps it, so that a resumed run refuses a client that has changed, and knows how many
samples those have who are away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from pydantic import PrivateAttr

from feddlp.config import Config
from feddlp.data.source import PARTS
from feddlp.errors import UserError
from feddlp.federation.flower import limits
from feddlp.federation.flower.checks import Hello, frozen, one_line, site_of
from feddlp.federation.flower.parcels import RefusedError
from feddlp.federation.host import Roster
from feddlp.memory import free_bytes
from feddlp.model.adapters import Site, count_parameters
from feddlp.names import in_order
from feddlp.records import ROSTER
from feddlp.states import Sealed, read, write

COMMON = ("checkpoint", "template", "dtype", "sites", "totals")  # the same on every node


class Registry(Sealed, frozen=False):
    """What is known of the clients of one run: roster.json"""

    experiment: str
    common: dict[str, Any]  # what all nodes must agree in; empty before the first
    class_names: list[str]
    closed: bool  # no more classes
    own_data: bool  # some node brought images in place of those of the configuration
    members: dict[int, dict[str, Any]]  # client -> samples by part, data, node, ...
    _path: Path = PrivateAttr()
    _config: Config = PrivateAttr()

    @classmethod
    def open(cls, folder: Path, config: Config) -> Registry:
        """That of a run folder, or a new one."""
        found = read(folder / ROSTER, cls)
        registry = found or cls(
            experiment=uuid4().hex, common={}, class_names=[], closed=False, own_data=False, members={}
        )
        registry._path, registry._config = folder / ROSTER, config
        if not found:
            registry.save()
        return registry

    def save(self) -> None:
        write(self._path, self)

    def admit(self, hello: Hello) -> None:
        """Write down who has come.

        Raises:
            RefusedError: a node over another model, with other images than before, or with classes that nobody has.
        """
        for key, value in self.common.items():
            if value != getattr(hello, key):
                raise RefusedError(
                    f"its {key} is not that of the federation; give every node the same checkpoint and data"
                )
        self._check_sizes(hello)
        about = {"data": hello.data, "node": hello.name, "state": hello.state}
        come: dict[int, dict[str, Any]] = {}
        for place, client in enumerate(hello.clients):
            samples: dict[str, int] = {part: getattr(hello.samples, part)[place] for part in PARTS}
            come[client] = {**samples, "classes": hello.classes[place] if hello.classes else None, **about}
        for client in self.members.keys() & come.keys():
            if any(self.members[client][key] != come[client][key] for key in (*PARTS, "data")):
                raise RefusedError(f"client {client} has other images than when the run began; put them back")
        self._check_classes(hello)
        self.members |= come
        self.own_data |= hello.own_data
        self.common = self.common or {key: getattr(hello, key) for key in COMMON}
        self.save()

    def _check_sizes(self, hello: Hello) -> None:
        """No more samples than a client may have, or than were dealt out; no larger adapters than fit in here."""
        most = self._config.deployment.max_samples
        for part in PARTS:
            counts = getattr(hello.samples, part)
            if max(counts) > most:
                raise RefusedError(f"one has {max(counts)} {part} samples, more than deployment.max_samples={most}")
            others = sum(member[part] for client, member in self.members.items() if client not in hello.clients)
            if hello.totals and others + sum(counts) > hello.totals.get(part, 0):
                raise RefusedError(f"with it clients have more {part} samples than are dealt out to all")
        sites = {name: site_of(*values) for name, values in hello.sites.items()}
        methods = self._config.build_methods().values()
        shared = max(sum(count_parameters(m.adapters()[name], sites) for name in m.shared) for m in methods)
        if shared * limits.PARAMETER > free_bytes(torch.device("cpu")) / 2:
            raise RefusedError(f"with its sites {shared:,} parameters are shared, too many for the server's memory")

    def _check_classes(self, hello: Hello) -> None:
        if self._config.data.partition != "natural":
            if any(member["data"] != hello.data for member in self.members.values()):
                raise RefusedError(
                    "its data set is not that of the other nodes, and data.partition deals out one for all"
                )
            self.class_names = self.class_names or list(hello.class_names)
        elif strange := sorted(set(hello.class_names) - set(self.class_names)):
            if self.closed:
                raise RefusedError(f"it has classes that the run did not begin with: {', '.join(strange[:5])}")
            self.class_names = in_order({*self.class_names, *strange})  # as a local run of all would

    def close(self) -> None:
        """The first round begins: from now on there are no other classes."""
        if self._config.data.partition == "natural" and len(self.class_names) < 2:
            raise UserError(f"all clients together have {len(self.class_names)} class(es); at least 2 are needed")
        self.closed = True
        self.save()

    @property
    def frozen(self) -> dict[str, str]:
        """What clients train over, as every order names it."""
        return frozen(self.common["checkpoint"], self.common["sites"])

    @property
    def sites(self) -> dict[str, Site]:
        return {name: site_of(*values) for name, values in self.common["sites"].items()}

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.common["dtype"])
        return dtype

    def partition(self, clients: int) -> dict[str, Any]:
        """Classes and prompt, and how many images of which class each client has, where all of them tell that."""
        about = {"class_names": self.class_names, "template": self.common["template"]}
        about |= {"own_data": True} if self.own_data else {}
        held = {client: member.get("classes") for client, member in self.members.items()}
        if len(held) < clients or None in held.values():
            return about
        rows = [{part: (held[client] or {}).get(part, {}) for part in PARTS} for client in range(clients)]
        counts = [{part: [row[part].get(name, 0) for name in self.class_names] for part in PARTS} for row in rows]
        return {**about, "clients": counts}

    def fill(self, roster: Roster) -> None:
        """Write names and numbers of samples into a roster, in place; 0 for clients that never came."""
        roster.names.update({client: one_line(member["node"]) for client, member in self.members.items()})
        for row, client in enumerate(roster.ids):
            for part in PARTS:
                getattr(roster, part)[row] = self.members.get(client, {}).get(part, 0)
