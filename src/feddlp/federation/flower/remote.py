"""The clients of a federation on other machines, asked over Flower: the `rounds.Clients` of a deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from feddlp.config import Config
from feddlp.federation.aggregation import capped
from feddlp.federation.flower.checks import Expected, check_begun, check_report
from feddlp.federation.flower.inquiry import Inquiry, Question, check_quorum, least
from feddlp.federation.flower.nodes import Nodes, named
from feddlp.federation.flower.parcels import Parcel
from feddlp.federation.flower.proportion import Proportion
from feddlp.federation.host import Lane, Order, Report, Roster, joined
from feddlp.federation.results import Found
from feddlp.federation.rounds import first_shared, ranks_at_start
from feddlp.federation.waves import Wave
from feddlp.model.adapters import Site, Theta
from feddlp.states import KEPT, ClientsPiece


class RemoteClients:
    """All clients of one run with one method.

    Args:
        nodes: where they are.
        config: of the run.
        method: its name.
        facts: of every message; `serving.facts_of`.
    """

    def __init__(self, nodes: Nodes, config: Config, method: str, facts: Mapping[str, Any]):
        self.nodes, self.config, self.method = nodes, config, method
        self.max_share = config.deployment.max_share or (0.5 if config.data.partition == "natural" else 1.0)
        known = nodes.registry
        self.facts = {**facts, "method": method, "class_names": known.class_names, "frozen": known.frozen}

    @cached_property
    def proportion(self) -> Proportion:
        lane = Lane(self.config.seed, self.config.build_methods()[self.method])
        first, limit = first_shared(lane, self.sites, self.like), self.config.deployment.max_norm
        return Proportion(lane.method, self.config.training, first, limit)

    @property
    def roster(self) -> Roster:
        return self.nodes.roster

    @property
    def sites(self) -> Mapping[str, Site]:
        return self.nodes.registry.sites

    @property
    def like(self) -> Tensor:
        return torch.empty(0, dtype=self.nodes.registry.dtype)

    def play(self, order: Order, on_step: Callable[[], None]) -> Iterator[Report]:
        """One round of those who take part, in the order of their ids."""
        (shared,), (chosen,) = order.shared, order.joins
        method, limits = self.proportion.method, self.config.deployment
        ranks, subject = ranks_at_start(method, self.sites), f"{self.method} round {order.round + 1}"
        expected = Expected(self.method, order.round, shared, method.adapters().keys(), ranks, self.roster)
        present = self._present(chosen, subject)
        reports = self._ask(
            Question(
                subject=subject,
                put=lambda clients: self._parcel("train", clients, shared, round=order.round),
                accept=lambda parcel, clients: check_report(parcel, clients, expected),
                most_bytes=expected.most_bytes,
                quorum=limits.quorum,
            ),
            present,
            on_step,
        )
        if reports:
            report = joined(reports)
            report = chosen_of(report, report.found.rows.argsort())  # whoever answered first
            yield self._in_proportion(report, shared, subject, int(present.sum()))

    def _in_proportion(self, report: Report, shared: Mapping[str, Theta], subject: str, asked: int) -> Report:
        """What may be averaged of a round; raises UserError where that is less than a quorum."""
        clients, samples = report.found.rows.tolist(), self.roster.train[report.found.rows]
        refused = self.proportion.refused(report.uploads, shared, samples)
        for place, why in refused.items():
            self.nodes.reporter.warn(f"{subject}: {named([clients[place]])}: left out: {why}")
        kept = torch.tensor([place for place in range(len(clients)) if place not in refused], dtype=torch.int64)
        check_quorum(subject, len(kept), asked, self.config.deployment.quorum)
        if not torch.equal(capped(samples[kept], self.max_share), samples[kept]):
            self.nodes.say_once(f"deployment.max_share={self.max_share:g} holds down the weight of the largest clients")
        return chosen_of(report, kept) if refused else report

    def _present(self, chosen: Tensor, subject: str) -> Tensor:
        """Those of the chosen who are worth asking: not who has long been away, as long as a quorum of all is there."""
        long_away = {c for c in self.nodes.missing() if self.nodes.away_for(c) > self.config.deployment.grace}
        absent = [c for c in long_away if chosen[c]]
        if not absent or self.nodes.clients - len(long_away) < least(self.config.deployment.quorum, self.nodes.clients):
            return chosen
        if long_away != self.nodes.told_away:
            self.nodes.told_away = long_away
            self.nodes.reporter.warn(f"{subject}: {named(long_away)}: left out: no node is there")
        present = chosen.clone()
        present[absent] = False
        return present

    def begin(self, chosen: Tensor) -> Iterator[tuple[Wave, dict[str, Tensor]]]:
        """Samples that clients get right as they begin, for the record: of those who are there and answer."""
        question = Question(
            subject=f"{self.method} before round 1",
            put=lambda clients: self._parcel("start", clients, {}),
            accept=lambda parcel, clients: check_begun(parcel, clients, self.method, self.roster),
            most_bytes=lambda clients: 0,
            quorum=0.0,
        )
        there = torch.ones_like(chosen[0])
        there[self.nodes.missing()] = False
        yield from self._ask(question, chosen[0] & there)

    def _ask(self, question: Question, chosen: Tensor, on_step: Callable[[], None] = lambda: None) -> list[Any]:
        open = {self.roster.ids[row] for row in chosen.nonzero()[:, 0].tolist()}
        return Inquiry(self.nodes, self.config.deployment, question, open, on_step).answered()

    def _parcel(self, kind: str, clients: Sequence[int], shared: Mapping[str, Theta], **facts: Any) -> Parcel:
        return Parcel({**self.facts, **facts, "kind": kind, "clients": list(clients)}, shared)

    def load(self) -> dict[str, float]:
        """Nothing of this machine's."""
        return {}

    def steps(self) -> int:
        """Clients that take part in a round, at most."""
        return len(self.roster.ids)

    def describe(self) -> str:
        return f"{len(self.roster.ids)} clients on {len(self.nodes.homes)} nodes"

    def keep(self, lane: int) -> tuple[list[ClientsPiece], int, int]:
        """Clients are kept where they are; the server can go back a few rounds."""
        return [], 0, KEPT

    def restore(self, lane: int, blocks: Sequence[ClientsPiece], wave: int) -> None:
        pass


def chosen_of(report: Report, places: Tensor) -> Report:
    """Some of the clients, in the given order."""

    def chosen(value: Any) -> Any:
        return value[places] if isinstance(value, Tensor) else {key: chosen(inner) for key, inner in value.items()}

    return Report(
        Found(**{field.name: chosen(getattr(report.found, field.name)) for field in fields(Found)}),
        chosen(report.uploads),
    )
