"""A question to some clients, until all of them have answered, are given up, or time is up.

A node that comes back is asked again, and one whose process died too; one that is still at work on an earlier question
is left alone until it has answered. Whatever happens to a client is one line.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict

from feddlp.config import DeploymentConfig
from feddlp.errors import UserError
from feddlp.federation.flower.checks import one_line
from feddlp.federation.flower.nodes import Home, Nodes, named
from feddlp.federation.flower.parcels import Parcel, RefusedError, from_record
from feddlp.federation.flower.post import UNAVAILABLE, Letter, Lost

POLL = 0.25  # seconds between two looks at the post
BUSY = 5.0  # seconds before a node that is busy is asked again
REMINDER = 30.0  # seconds before it is said who is missing, and said again where that has changed


@dataclass(frozen=True)
class Question:
    """What is asked, and what is taken for an answer."""

    subject: str  # in words, as "feddlp round 3"
    put: Callable[[Sequence[int]], Parcel]  # to some of the clients
    accept: Callable[[Parcel, Sequence[int]], Any]  # raises RefusedError
    most_bytes: Callable[[int], int]  # that the answer of so many clients may take
    quorum: float  # share of the clients asked that must answer


def least(quorum: float, asked: int) -> int:
    return math.ceil(quorum * asked - 1e-9)


def check_quorum(subject: str, done: int, asked: int, quorum: float) -> None:
    """Raises UserError where fewer answered than must."""
    if done < least(quorum, asked):
        raise UserError(
            f"{subject}: {done} of {asked} clients answered, deployment.quorum={quorum:g} asks for "
            f"{least(quorum, asked)}; see to the others, then resume the run"
        )


@dataclass
class Inquiry:
    """One question on its way."""

    nodes: Nodes
    limits: DeploymentConfig
    question: Question
    open: set[int]  # clients that are still to answer
    on_answer: Callable[[], None] = lambda: None  # once for each client
    sleep: Callable[[float], None] = time.sleep
    answers: list[Any] = field(default_factory=list)
    done: int = 0  # clients that have answered
    tries: Counter[tuple[int, ...]] = field(default_factory=Counter)  # lost letters, by the clients asked together

    def __post_init__(self) -> None:
        self.least = least(self.question.quorum, len(self.open))
        self.asked = len(self.open)

    def answered(self) -> list[Any]:
        """All answers, once there are no more to wait for; raises UserError if fewer than a quorum answered."""
        end = self.nodes.clock() + self.limits.deadline
        while self.open and self.nodes.clock() < end:
            for letter, reply in self.nodes.look_around():
                self._take(letter, reply)
            self._give_up_who_is_away()
            for home in list(self.nodes.homes.values()):
                self._ask(home)
            self.sleep(POLL if self.open else 0)
        if self.open:
            self._leave(self.open, f"late, deployment.deadline={self.limits.deadline:g} s is over")
        check_quorum(self.question.subject, self.done, self.asked, self.question.quorum)
        return self.answers

    def _ask(self, home: Home) -> None:
        """Ask a node for those of its clients that are still to answer."""
        clients = tuple(client for client in home.clients if client in self.open)
        if clients and not home.at_work and home.not_before <= self.nodes.clock():
            parcel = self.question.put(clients)
            home.at_work = self.nodes.post.send(home.node, parcel, clients, self.question.subject)

    def _take(self, letter: Letter, reply: RecordDict | Lost) -> None:
        """What came back of this question, or of an earlier one."""
        home = self.nodes.homes.get(letter.node)
        if home and home.at_work == letter:
            home.at_work = None
        if letter.subject != self.question.subject:
            self.nodes.reporter.note(f"{named(letter.clients)}: the answer to {letter.subject} came too late")
        elif isinstance(reply, Lost):
            self._lost(letter, reply)
        else:
            self._read(letter, reply, home)

    def _read(self, letter: Letter, reply: RecordDict, home: Home | None) -> None:
        try:
            parcel = from_record(reply, self.question.most_bytes(len(letter.clients)))
            if home and parcel.facts.get("busy"):
                home.not_before = self.nodes.clock() + BUSY
                return
            if "problem" in parcel.facts:
                raise RefusedError(one_line(parcel.facts["problem"]))
            self.answers.append(self.question.accept(parcel, letter.clients))
        except RefusedError as refusal:
            self._leave(letter.clients, f"left out: {one_line(refusal)}")
            return
        about = {"subject": letter.subject, "clients": letter.clients, "seconds": parcel.facts.get("seconds")}
        self.nodes.journal("answered", about | {"node": home.name if home else ""})
        self.open -= set(letter.clients)
        self.done += len(letter.clients)
        for _ in letter.clients:
            self.on_answer()

    def _lost(self, letter: Letter, lost: Lost) -> None:
        """No answer will come to this letter: wait for the node to come back, ask again, or give up."""
        self.tries[letter.clients] += 1
        if lost.code == UNAVAILABLE:
            if home := self.nodes.homes.get(letter.node):
                self.nodes.lose(home)
        elif lost.again and self.tries[letter.clients] < self.limits.attempts:
            self._say(letter.clients, f"{one_line(str(lost))}; asked again")
        else:
            self._leave(letter.clients, f"left out: {one_line(str(lost))}")

    def _give_up_who_is_away(self) -> None:
        """Unless the round would be lost with them: then they have until the deadline."""
        away = {client for client in self.open if self.nodes.away_for(client) > self.limits.grace}
        if away and self.done + len(self.open - away) >= self.least:
            self._leave(away, f"left out: no node has been there for {self.limits.grace:g} s")

    def _leave(self, clients: Sequence[int] | set[int], why: str) -> None:
        self._say(clients, why)
        self.open = self.open - set(clients)

    def _say(self, clients: Sequence[int] | set[int], what: str) -> None:
        self.nodes.reporter.warn(f"{self.question.subject}: {named(clients)}: {what}")


def gather(nodes: Nodes, limits: DeploymentConfig, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait for the clients before the first round.

    Raises:
        UserError: fewer than a quorum have come when time is up.
    """
    began, told = nodes.clock(), list[int]()
    while nodes.missing() and nodes.clock() - began < limits.wait:
        for _ in nodes.look_around():
            pass
        if nodes.missing() not in ([], told) and nodes.clock() - began >= REMINDER:
            told = nodes.missing()
            nodes.reporter.note(f"waiting for {named(told)}")
        sleep(POLL if nodes.missing() else 0)
    missing, found = nodes.missing(), nodes.clients - len(nodes.missing())
    if found < least(limits.quorum, nodes.clients):
        raise UserError(
            f"{found} of {nodes.clients} clients came within deployment.wait={limits.wait:g} s, deployment.quorum="
            f"{limits.quorum:g} asks for {least(limits.quorum, nodes.clients)}; missing: {nodes.why_missing()}; "
            "see to them, then resume the run"
        )
    if missing:
        nodes.reporter.warn(f"{named(missing)} did not come; the federation begins without: {nodes.why_missing()}")
