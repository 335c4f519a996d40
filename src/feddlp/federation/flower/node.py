"""One node: some of the clients, for the time of a message.

hello   who is here, with how many samples, over which frozen model
start   how many samples the clients get right before they learn
train   a round: train, evaluate, report; see `statefolder` for what a repeated order means
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from feddlp import __version__
from feddlp.allocator import keep_freed_memory
from feddlp.commands.common import quiet_libraries
from feddlp.config import Config, validate
from feddlp.data.features import AlikeError
from feddlp.data.source import PARTS
from feddlp.errors import UserError
from feddlp.federation.flower.checks import check_adapters, frozen, one_line
from feddlp.federation.flower.envelopes import Envelope
from feddlp.federation.flower.harvest import write_about
from feddlp.federation.flower.parcels import Parcel, RefusedError, opened, sealed
from feddlp.federation.flower.proportion import Proportion
from feddlp.federation.flower.settings import NodeSettings, read_settings, spell
from feddlp.federation.flower.statefolder import BusyError, Kept, StateFolder, digest, identity
from feddlp.federation.host import FederatedData, Host, Lane, Order, joined
from feddlp.federation.results import Found
from feddlp.federation.rounds import first_shared
from feddlp.files import parse_toml
from feddlp.materials import Materials, Share, prepare
from feddlp.progress import shown
from feddlp.states import KEPT, Commit

EXPERIMENT = re.compile(r"[0-9a-f]{32}")  # it becomes a folder's name, as a method does
PATIENCE = 10.0  # seconds to wait for another process that works on the same clients
log = logging.getLogger("feddlp")


class LogReporter:
    """Progress of the preparation, for the node's log."""

    def preparing(self, what: str, done: int, total: int) -> None:
        if done == total:
            log.info("%s: %s ready", what, f"{total:,}")

    def note(self, message: str) -> None:
        log.info(message)

    def warn(self, message: str) -> None:
        log.warning(message)


@lru_cache(maxsize=1)
def load(config: str, share: Share | None) -> Materials:
    """Model and images, kept for the next message; from one hello to the next they are the same."""
    return prepare(Config.model_validate_json(config), LogReporter(), share)


class Node:
    """The clients that this machine holds, under the configuration that the server sent.

    Args:
        settings: the node's own.
        told: the server's configuration.
        facts: of the message: "experiment", and with an order "method", "round", "clients".

    Raises:
        UserError: a configuration that cannot be used here.
    """

    def __init__(self, settings: NodeSettings, told: Config, facts: Mapping[str, Any]):
        if not EXPERIMENT.fullmatch(str(facts["experiment"])) or facts.get("method", "") not in ("", *told.methods):
            raise UserError("the server names an experiment or a method that cannot be; neither is made a folder here")
        self.settings, self.told, self.facts = settings, told, facts
        self.config = settings.localised(told)

    @property
    def natural(self) -> bool:
        """Whether clients bring images of their own; otherwise they deal out one data set among them."""
        return self.config.data.partition == "natural"

    @cached_property
    def materials(self) -> Materials:
        """Model and images; what is wrong with them is told here, and the server only learns that something is."""
        try:
            if not self.natural:
                return load(self.config.model_dump_json(), None)
            own = self.config.data.model_copy(update={"clients": len(self.settings.clients)})
            share = Share(self.settings.clients, self.told.data.clients, tuple(self.facts.get("class_names", ())))
            return load(self.config.model_copy(update={"data": own}).model_dump_json(), share)
        except UserError as error:
            if self.settings.tell_problems or isinstance(error, AlikeError):
                raise
            log.error("%s", error)
            raise UserError("its images or its checkpoint cannot be used; its log says why") from error

    @cached_property
    def data(self) -> FederatedData:
        """Of the clients that are here."""
        everyone = self.materials.data
        return everyone.select([everyone.ids.index(client) for client in self.settings.clients])

    @property
    def belongs(self) -> dict[str, str]:
        """What a state folder is for."""
        return {
            "experiment": self.facts["experiment"],
            "clients": spell(self.settings.clients),
            "configuration": self.told.fingerprint(),
            "checkpoint": self.materials.fingerprints["backbone"],
            "data": self.materials.fingerprints["data"],
        }

    def hello(self) -> Parcel:
        load.cache_clear()  # images and weights may be others than when they were last looked at
        found, data = self.materials, self.data
        facts = {
            "name": self.settings.name,
            "state": identity(self.settings.state_dir),
            "clients": list(self.settings.clients),
            "samples": {part: getattr(data, part).sizes().tolist() for part in PARTS},
            "checkpoint": found.fingerprints["backbone"],
            "data": found.fingerprints["data"],
            "class_names": found.partition["class_names"],
            "template": found.partition["template"],
            "dtype": str(self.host("").like.dtype).removeprefix("torch."),
            "sites": self.sites,
            "left_out": len(found.left_out),
            "own_data": not self.settings.made_here,
            "classes": self.classes,
            "totals": None if self.natural else {p: int(getattr(found.data, p).sizes().sum()) for p in PARTS},
        }
        return Parcel(facts)

    @property
    def sites(self) -> dict[str, list[Any]]:
        """Where adapters act, as the server is told."""
        return {name: [type(site).__name__, *site] for name, site in self.materials.backbone.sites.items()}

    @property
    def classes(self) -> list[dict[str, dict[str, int]]] | None:
        """How many images of which class the clients have; None where their owner keeps that to himself."""
        if not (self.settings.tell_classes or self.settings.made_here):
            return None
        names, everyone = (self.materials.partition[key] for key in ("class_names", "clients"))
        here = everyone if self.natural else [everyone[client] for client in self.settings.clients]
        return [
            {part: {name: n for name, n in zip(names, counts, strict=True) if n} for part, counts in one.items()}
            for one in here
        ]

    def check_frozen(self) -> None:
        """Refuse to train over another model than the rest of the federation."""
        own, told = frozen(self.materials.fingerprints["backbone"], self.sites), self.facts.get("frozen")
        if told != own:
            which = next(key for key in own if not isinstance(told, dict) or told.get(key) != own[key])
            raise UserError(
                f"the {which} here is not that of the federation; start this node with the same one: --checkpoint PATH"
            )

    def host(self, method: str, folder: StateFolder | None = None) -> Host:
        """The clients of this node with one method, as a federation of their own would have them."""
        chosen = self.told.build_methods()
        lanes = [Lane(self.told.seed, chosen[method or next(iter(chosen))])]
        folders = [folder.path] if folder else []
        return Host(lanes, self.materials.backbone, self.materials.prompts, self.data, self.config.training, folders)

    def chosen(self) -> Tensor:
        """The clients that the message asks for. bool [1, K]"""
        return torch.tensor([[client in self.facts["clients"] for client in self.settings.clients]])

    def start(self) -> Parcel:
        """Samples predicted rightly as the clients begin."""
        self.check_frozen()
        facts: dict[str, Any] = {"clients": [], "correct": {"validation": [], "test": []}}
        for wave, correct in self.host(self.facts["method"]).begin(self.chosen()):
            facts["clients"] += [self.data.ids[row] for row in wave.rows.tolist()]
            for part, hits in correct.items():
                facts["correct"][part] += hits.tolist()
        return Parcel(facts)

    def train(self, parcel: Parcel) -> Parcel:
        """Play a round, or give its report again."""
        self.check_frozen()
        path = self.settings.state_dir / self.facts["experiment"] / self.facts["method"]
        folder = StateFolder(path, self.belongs)
        with folder.locked(PATIENCE):
            number, kept = self.facts["round"], folder.follow(folder.read(), self.facts.get("undone", []))
            asked = digest(number, self.facts["clients"], parcel)
            if kept.last.round == number + 1 and kept.last.order == asked:
                log.info("round %d was played before; its report is given again", number + 1)
                return folder.read_report(kept)[0]
            self._check_order(folder, kept, parcel)
            return self._play(folder, folder.before(kept, number), parcel, asked)

    def _check_order(self, folder: StateFolder, kept: Kept, order: Parcel) -> None:
        """Refuse shared adapters that cannot have become of those that came before."""
        host, number = self.host(self.facts["method"]), self.facts["round"]
        first = first_shared(host.lanes[0], host.sites, host.like)
        follows = kept.last.tensors and kept.last.round <= number
        before, rounds = (folder.read_report(kept)[1], number - kept.last.round + 1) if follows else (first, number)
        most = self.told.deployment.max_samples if self.natural else int(self.materials.data.train.sizes().max())
        bounds = Proportion(host.lanes[0].method, self.told.training, first)
        try:
            check_adapters(order.adapters, first)
            bounds.check_order(order.adapters, before, rounds, most)
        except RefusedError as refusal:
            raise UserError(f"the server's order cannot be used: {refusal}") from refusal

    def _play(self, folder: StateFolder, kept: Kept, order: Parcel, asked: str) -> Parcel:
        started, number = time.perf_counter(), self.facts["round"]
        host = self.host(self.facts["method"], folder)
        write_about(folder.path.parent, self.config, self.materials.partition)
        folder.commit(kept.belongs, kept.history)  # whatever is written from now on is no beginning
        host.restore(0, kept.last.clients, kept.last.wave)
        found, uploads = joined(list(host.play(Order(number, [order.adapters], self.chosen()))))
        clients = [self.data.ids[row] for row in found.rows.tolist()]
        facts = {"round": number, "clients": clients, "seconds": round(time.perf_counter() - started, 3)}
        report = Parcel(facts_of(found) | facts, uploads)
        after, wave, _ = host.keep(0)
        written = folder.keep_report(number + 1, report, order)
        commit = Commit(round=number + 1, wave=wave, tensors=written, clients=tuple(after), order=asked)
        folder.commit(kept.belongs, kept.history.followed_by(commit, KEPT))
        return report


def facts_of(found: Found) -> dict[str, Any]:
    """What a round gave, as lists."""
    tables = ("losses", "diagnostics", "correct", "active")
    lists = {kind: {key: values.tolist() for key, values in getattr(found, kind).items()} for kind in tables}
    return {**lists, "bytes_down": found.bytes_down.tolist(), "bytes_up": found.bytes_up.tolist()}


ANSWERS: dict[str, Callable[[Node, Parcel], Parcel]] = {
    "hello": lambda node, parcel: node.hello(),
    "start": lambda node, parcel: node.start(),
    "train": lambda node, parcel: node.train(parcel),
}
DONE = {  # for those who look after the node
    "hello": "the server has been told who is here",
    "start": "{method}: scored as it begins",
    "train": "{method}: round {number} is trained and reported",
}


def answer(parcel: Parcel, node_config: Mapping[str, Any], environment: Mapping[str, str]) -> Parcel:
    """What a node says to a message; its owner's mistakes, and the disk's, become one line in place of a report."""
    about: dict[str, Any] = {key: parcel.facts.get(key) for key in ("kind", "experiment", "method", "round")}
    about["node"] = str(node_config.get("name") or node_config.get("clients", ""))
    if refused := parcel.facts.get("refused"):
        log.warning("the server does not take this node: %s", one_line(refused))
    try:
        if (version := parcel.facts["version"]) != __version__:
            raise UserError(f"the server has feddlp {version}, this node {__version__}; install the same")
        told = validate(parse_toml(parcel.facts["configuration"]))
        settings = read_settings(node_config, environment, told.data.clients)
        about["clients"] = list(settings.clients)
        node = Node(settings, told, parcel.facts)
        said = ANSWERS[about["kind"]](node, parcel)
        done = DONE[about["kind"]].format(method=about["method"], number=(about["round"] or 0) + 1)
        log.info("run %s: %s", told.name, done)
        return Parcel({**about, **said.facts}, said.adapters)
    except BusyError as error:
        return Parcel({**about, "problem": str(error), "busy": True})
    except UserError as error:
        log.error("the server is told: %s", error)
        return Parcel({**about, "problem": one_line(error)})
    except Exception as error:  # this process stays; what the text of such an error holds, nobody knows
        log.exception("%s failed", about["kind"])
        return Parcel({**about, "problem": f"{type(error).__name__}; the node's log says more"})


def answer_envelope(envelope: Envelope, node_config: Mapping[str, Any]) -> Envelope:
    try:
        parcel = opened(envelope)
    except RefusedError as refusal:
        return sealed(Parcel({"problem": f"the server's message is not understood: {refusal}"}))
    return sealed(answer(parcel, node_config, os.environ))


def set_up() -> None:
    """For a process that answers: one log for all that it says, and memory that is used again."""
    logging.basicConfig(stream=shown(sys.stderr), level=logging.INFO, format="feddlp: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    keep_freed_memory()
    quiet_libraries()
