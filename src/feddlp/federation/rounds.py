"""A federation: servers, clients wherever they are, and one round after another.

    round:  who takes part -> the clients play -> aggregate

A client that sits a round out keeps its model, so its score stays.

A federation may be played several times side by side, a lane each: other seeds, or other trials of the same method.
Lanes share the frozen backbone and every step of the loop, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.errors import UserError
from feddlp.federation.aggregation import Average, Server, capped
from feddlp.federation.host import Lane, Order, Report, Roster
from feddlp.federation.participation import draw
from feddlp.federation.results import NOBODY, Found, Known, RoundResult, join
from feddlp.federation.waves import Wave
from feddlp.methods.base import Method
from feddlp.model.adapters import Site, Theta
from feddlp.training.cohort import initial, under


def planned_rounds(method: Method, rounds: int) -> int:
    """How many rounds there are to play; a method that trains nothing is scored once."""
    return rounds if method.adapters() else 1


class Clients(Protocol):
    """The clients of a federation: a `Host` in this process, or many on other machines."""

    max_share: float  # largest share of one client in an average; 1 = any

    @property
    def roster(self) -> Roster: ...

    @property
    def sites(self) -> Mapping[str, Site]:
        """Where adapters can act."""
        ...

    @property
    def like(self) -> Tensor:
        """Where and in which dtype the server keeps adapters. [0]"""
        ...

    def play(self, order: Order, on_step: Callable[[], None]) -> Iterator[Report]:
        """One round of those who take part, some of them at a time."""
        ...

    def load(self) -> dict[str, float]:
        """What a round takes, for the record."""
        ...

    def steps(self) -> int:
        """How often a round reports progress, at most."""
        ...

    def describe(self) -> str:
        """How the clients are played, in words."""
        ...

    def keep(self, lane: int) -> tuple[list[dict[str, Any]], int]:
        """What a checkpoint must name: the files of a lane's clients, and how many train side by side."""
        ...

    def restore(self, lane: int, blocks: Sequence[Mapping[str, Any]], wave: int) -> None:
        """Go on from what `keep` gave."""
        ...

    def begin(self, chosen: Tensor) -> Iterator[tuple[Wave, dict[str, Tensor]]]:
        """Samples that the chosen clients get right as they begin."""
        ...


Averages = dict[str, Average]
"""A lane's averages of a round, by adapter."""


class Federation:
    """One method, one or several lanes.

    Args:
        lanes: seeds, and trials of the method that differ in `methods.base.STACKABLE` fields only.
        clients: of all lanes.
        training: rounds, and who takes part.
    """

    def __init__(self, lanes: Sequence[Lane], clients: Clients, training: TrainingConfig):
        self.lanes, self.clients, self.training = tuple(lanes), clients, training
        self.roster = clients.roster
        starts = [first_shared(lane, clients.sites, clients.like) for lane in lanes]
        self.servers = [Server(shared, lane.method.server_momentum) for lane, shared in zip(lanes, starts, strict=True)]
        self.known = Known.at_start(len(lanes), len(self.roster.ids), ranks_at_start(lanes[0].method, clients.sites))
        self.round = 0

    @property
    def rounds(self) -> int:
        return planned_rounds(self.lanes[0].method, self.training.rounds)

    def play_round(self, on_step: Callable[[], None] = lambda: None) -> list[RoundResult]:
        """The next round, in every lane."""
        started = time.perf_counter()
        self.score_start()
        draws = [draw(lane.seed, self.round, self.roster.ids, self.training) for lane in self.lanes]
        joins, reports = (torch.stack(part) for part in zip(*draws, strict=True))  # (lanes, K) each
        averages = [{name: lane.method.average() for name in lane.method.shared} for lane in self.lanes]
        parts = []
        for found, uploads in self.clients.play(self.order(joins), on_step):
            self._collect(found, uploads, reports, averages)
            self.known.update(found)
            parts.append(found)
        for lane, server in enumerate(self.servers):
            if all(average.total > 0 for average in averages[lane].values()):  # else nobody's report has arrived
                server.step({name: average.result() for name, average in averages[lane].items()})
        self.round += 1
        return self._results(join(parts) if parts else NOBODY, reports, time.perf_counter() - started)

    def order(self, joins: Tensor | None = None) -> Order:
        """What the clients are told now. joins: bool [lanes, K]; nobody where left out"""
        nobody = torch.zeros(len(self.lanes), len(self.roster.ids), dtype=torch.bool)
        return Order(self.round, [server.shared for server in self.servers], nobody if joins is None else joins)

    def _collect(
        self, found: Found, uploads: Mapping[str, Theta], reports: Tensor, averages: Sequence[Averages]
    ) -> None:
        """Add what arrives of some clients to the averages of their lanes."""
        method, samples = self.lanes[0].method, self.roster.train[found.rows]
        weights = torch.ones_like(samples) if method.averaging == "uniform" else samples
        reported = reports[found.lanes, found.rows]
        for name, theta in uploads.items():
            for lane, average in enumerate(averages):
                chosen = ((found.lanes == lane) & reported).nonzero()[:, 0]
                if len(chosen):
                    arrived = {leaf: value[chosen.to(value.device)] for leaf, value in theta.items()}
                    average[name].add(arrived, capped(weights[chosen], self.clients.max_share))

    def score_start(self) -> list[RoundResult]:
        """Before the first round of those in which some sit out, score all clients as they begin, and keep none."""
        unknown = self.known.correct["test"] < 0
        if self.training.participation == 1 or not unknown.any():
            return []
        started = time.perf_counter()
        for wave, correct in self.clients.begin(unknown):
            self.known.score(wave, correct)
        return self._results(NOBODY, torch.zeros_like(unknown), time.perf_counter() - started)

    def _results(self, found: Found, reports: Tensor, seconds: float) -> list[RoundResult]:
        about = {"round": self.round, "seconds": seconds, "lanes": len(self.lanes)}
        sizes = self.roster.test
        return [self.known.result(lane, found, reports[lane], sizes, **about) for lane in range(len(self.lanes))]

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """What a lane must keep between rounds beside its clients' store: its server, and what is known of clients."""
        server = {f"server/{name}": value for name, value in self.servers[lane].state_dict().items()}
        return server | self.known.state_dict(lane)

    def load_state_dict(self, round: int, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on after `round` from what `state_dict` gave then, for each lane."""
        self.round = round
        for lane, state in enumerate(states):
            self.servers[lane].load_state_dict(under(state, "server/"))
            self.known.load_state_dict(lane, state)


def first_shared(lane: Lane, sites: Mapping[str, Site], like: Tensor) -> dict[str, Theta]:
    """What the server of a lane holds before the first round, no K axis. like: where and in which dtype, [0]

    It is what a client would send of the server's own start, in whatever form the method sends it.

    Raises:
        UserError: the method does not take back what it sends.
    """
    method, shared = lane.method, {}
    for name in method.shared:
        theta = initial(method.adapters()[name], sites, lane.seed, name, "server")
        two = {leaf: value.to(like).expand(2, *value.shape) for leaf, value in theta.items()}
        sent = method.send(name, two)
        if type(method).send is not Method.send or type(method).take is not Method.take:
            check_exchange(method, name, two, sent)
        shared[name] = {leaf: value[0] for leaf, value in sent.items()}
    return shared


def check_exchange(method: Method, name: str, theta: Theta, sent: Theta) -> None:
    """Average what two clients would send, and have them take it back. [2, ...] each

    Raises:
        UserError: that fails, or gives leaves that the adapter does not have.
    """
    told = f"method {type(method).__name__}: what it sends of {name!r}"
    if odd := [leaf for leaf, value in sent.items() if value.shape[:1] != (2,)]:
        raise UserError(f"{told} needs one row per client, and {odd[0]} of two clients is {list(sent[odd[0]].shape)}")
    try:
        average = method.average()
        average.add(sent, torch.ones(2))
        taken = method.take(name, theta, average.result())
        wrong = [leaf for leaf, value in taken.items() if leaf not in theta or value.shape != theta[leaf].shape]
    except Exception as error:  # whatever the code of the method raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{told} cannot be averaged and taken back ({reason}); correct send or take") from error
    if wrong:
        shape = list(taken[wrong[0]].shape[1:])
        raise UserError(f"{told} comes back as {wrong[0]} {shape}, which the adapter has not; let take undo send")


def ranks_at_start(method: Method, sites: Mapping[str, Site]) -> dict[str, int]:
    """Ranks that have a gate, by "adapter/site", before any is pruned."""
    shapes = {
        f"{name}/{site}": adapter.shapes(site, where)
        for name, adapter in method.adapters().items()
        for site, where in sites.items()
    }
    return {key: at["gate"][0] for key, at in shapes.items() if "gate" in at}
