"""Which nodes are there, and which clients are at home on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import RecordDict

from feddlp.federation.flower.bindings import check_bound
from feddlp.federation.flower.checks import Hello, one_line, parse_hello
from feddlp.federation.flower.parcels import Parcel, RefusedError, from_record
from feddlp.federation.flower.post import UNAVAILABLE, Letter, Lost, Post
from feddlp.federation.flower.registry import Registry
from feddlp.federation.flower.settings import spell
from feddlp.federation.host import Roster
from feddlp.materials import Reporter

Clock = Callable[[], float]
NO_ADAPTERS = 0  # bytes of them in a hello
REPEAT = 60.0  # seconds before a node that was refused is asked again


def named(clients: Collection[int]) -> str:
    """ "client 3", "clients 1-3, 7" """
    return f"client{'s' if len(clients) > 1 else ''} {spell(list(clients))}"


@dataclass
class Home:
    """A node that holds some of the clients."""

    node: int
    name: str
    state: str  # identity of its state folder
    clients: tuple[int, ...]
    at_work: Letter | None = None
    not_before: float = 0.0  # when it may be asked

    def __str__(self) -> str:
        return f"node {self.name or 'unnamed'!r} (clients {spell(self.clients)})"


@dataclass
class Nodes:
    """The nodes of one run.

    Args:
        greeting: what every node is asked when it appears.
        clients: of the whole federation; ids 0, 1, ...

    `roster` says how many samples each client has, 0 for those who never came.
    """

    post: Post
    registry: Registry
    greeting: Parcel
    clients: int
    reporter: Reporter
    clock: Clock = time.monotonic
    bindings: str = ""  # the file that says which clients a node may hold; "" = whichever it claims
    journal: Callable[..., None] = lambda event, *said: None  # what the record keeps, and nobody watches
    homes: dict[int, Home] = field(default_factory=dict)  # by node
    away_since: dict[int, float] = field(default_factory=dict)  # by client
    greet_at: dict[int, float] = field(default_factory=dict)  # by node; never where it has a home
    said: set[str] = field(default_factory=set)  # refusals, each once
    told_away: set[int] = field(default_factory=set)  # clients of which it was said that no node is there
    refused: dict[int, tuple[str, list[int]]] = field(default_factory=dict)  # by node: why, and the clients it names

    def __post_init__(self) -> None:
        self.away_since = dict.fromkeys(range(self.clients), self.clock())
        sizes = (torch.zeros(self.clients, dtype=torch.int64) for _ in range(3))
        self.roster = Roster(tuple(range(self.clients)), *sizes)
        self.registry.fill(self.roster)

    def missing(self) -> list[int]:
        """The clients that are at home nowhere."""
        return sorted(self.away_since)

    def look_around(self) -> Iterator[tuple[Letter, RecordDict | Lost]]:
        """See who has come and who is gone; what has arrived, but for what was said of the former."""
        self._count()
        for letter, reply in self.post.collect():
            if letter.kind == "hello":
                self._hear(letter, reply)
            else:
                yield letter, reply

    def _count(self) -> None:
        """Say hello to nodes that have appeared, and forget those that are gone."""
        there, now = self.post.nodes(), self.clock()
        for node in self.homes.keys() - there:
            self.lose(self.homes[node])
        for node in self.greet_at.keys() - there:
            del self.greet_at[node]
        for node in sorted(there - self.homes.keys()):
            due = node not in self.greet_at or (self.away_since and self.greet_at[node] <= now)
            if due and all(letter.node != node for letter in self.post.pending.values()):
                told = {"refused": self.refused[node][0]} if node in self.refused else {}
                self.post.send(node, Parcel({**self.greeting.facts, **told}), (), "hello")
                self.greet_at[node] = now + REPEAT

    def lose(self, home: Home) -> None:
        """A node is gone; its clients wait for another."""
        del self.homes[home.node]
        if home.at_work:
            self.post.forget(home.at_work)
        self.away_since |= dict.fromkeys(home.clients, self.clock())
        self.reporter.warn(f"{home} went away")

    def _hear(self, letter: Letter, reply: RecordDict | Lost) -> None:
        """The answer to a hello."""
        facts: Mapping[str, Any] = {}
        try:
            if isinstance(reply, Lost) and reply.code == UNAVAILABLE:
                return
            if isinstance(reply, Lost):
                self.greet_at[letter.node] = self.clock() + (0 if reply.again else REPEAT)
                raise RefusedError(f"it does not answer: {reply}")
            facts = from_record(reply, NO_ADAPTERS).facts
            if "problem" in facts:
                raise RefusedError(f"{one_line(facts.get('node'))!r}: {one_line(facts['problem'])}")
            self._move_in(letter.node, parse_hello(facts, self.clients))
        except RefusedError as refusal:
            why, claimed = one_line(refusal), facts.get("clients")
            self.say_once(f"a node is not taken: {why}")
            known = [client for client in range(self.clients) if isinstance(claimed, list) and client in claimed]
            self.refused[letter.node] = why, known

    def say_once(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            self.reporter.warn(line)

    def _move_in(self, node: int, hello: Hello) -> None:
        """The clients of a node are at home there from now on.

        Raises:
            RefusedError: they are at home elsewhere, or are not those that they were.
        """
        home = Home(node, hello.name, hello.state, tuple(hello.clients))
        check_bound(self.bindings, node, home.clients)
        here = set(home.clients)
        others = [one for one in self.homes.values() if here & set(one.clients) or one.state == home.state]
        for other in others:
            if other.state != home.state:
                raise RefusedError(f"{home} has clients that are at home on {other}; stop one of the two")
            if other.clients != home.clients:
                raise RefusedError(f"{home} has the state-dir of {other}; give every node one of its own")
        known = self.registry.members
        moved = any(known[client]["state"] != home.state for client in known.keys() & here)
        self.registry.admit(hello)
        if moved:
            self.reporter.warn(f"{home} has another state-dir than before; what is not in it begins anew")
        self.registry.fill(self.roster)
        for other in others:  # the same node, started again
            self.lose(other)
            self.greet_at[other.node] = math.inf
        self.homes[node] = home
        self.greet_at.pop(node, None)
        self.refused.pop(node, None)
        self.told_away = set()
        self.away_since = {client: since for client, since in self.away_since.items() if client not in home.clients}
        left_out = f", {hello.left_out} images cannot be read and are left out" if hello.left_out else ""
        self.reporter.note(f"{home}: {sum(hello.samples.train):,} training samples{left_out}")

    def why_missing(self) -> str:
        """ "2 refused (its checkpoint is not that of the federation), 2 absent (clients 2-3)" """
        missing, reasons = set(self.missing()), []
        absent = missing.difference(*(clients for _, clients in self.refused.values()))
        for why, clients in self.refused.values():
            reasons += [why] if missing.intersection(clients) and why not in reasons else []
        refused = [f"{len(missing - absent)} refused ({'; '.join(reasons)})"] if reasons else []
        return ", ".join(refused + ([f"{len(absent)} absent ({named(absent)})"] if absent else []))

    def away_for(self, client: int) -> float:
        """Seconds for which a client has been at home nowhere; 0 where it is at home."""
        return self.clock() - self.away_since[client] if client in self.away_since else 0.0
