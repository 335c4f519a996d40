"""A federation in one process: servers, clients in waves, and one round after another.

    round:  who takes part -> in waves -> aggregate
    wave:   out of the store -> download the shared adapters -> local epochs -> evaluate -> upload -> into the store

Clients are evaluated after their local epochs and before the server averages, as in the paper's protocol: what is
scored is the model that a client would use. A client that sits a round out keeps its model, so its score stays.

A federation may be played several times side by side, a lane each: other seeds, or other trials of the same method.
Lanes share the frozen backbone and every step of the loop, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.data.batches import Batch, ClientData
from feddlp.data.prompts import Prompts
from feddlp.federation.aggregation import Average, Server
from feddlp.federation.clients import ClientStore, Part, gather, pack
from feddlp.federation.participation import count_joining, draw
from feddlp.federation.results import Found, Known, RoundResult, join
from feddlp.federation.waves import EVALUATION_BATCH, Plan, Wave, make_plan, split
from feddlp.methods.base import Method, stacked
from feddlp.model.adapters import Theta
from feddlp.model.backbone import Backbone, trained_dtype
from feddlp.model.forward import Forward
from feddlp.model.gates import active_by_site
from feddlp.training.cohort import Cohort, Slot, beginning, initial, under


def planned_rounds(method: Method, rounds: int) -> int:
    """How many rounds there are to play; a method that trains nothing is scored once."""
    return rounds if method.adapters() else 1


@dataclass(frozen=True)
class FederatedData:
    """The three parts of every client's samples."""

    ids: tuple[int, ...]
    train: ClientData
    validation: ClientData
    test: ClientData

    def select(self, rows: Sequence[int]) -> FederatedData:
        """The data of some of the clients, in the given order; repeats are welcome."""
        parts = (part.select(rows) for part in (self.train, self.validation, self.test))
        return FederatedData(tuple(self.ids[row] for row in rows), *parts)


class Lane(NamedTuple):
    """One run of the federation."""

    seed: int
    method: Method


Averages = dict[str, Average]
"""A lane's averages of a round, by adapter."""

_NONE = torch.empty(0, dtype=torch.int64)
NOBODY = Found(_NONE, _NONE, _NONE.bool(), {}, {}, _NONE, _NONE, _NONE)


class Federation:
    """One method, one or several lanes.

    Args:
        lanes: seeds, and trials of the method that differ in `methods.base.STACKABLE` fields only.
        backbone: frozen; shared by all clients and lanes.
        prompts: of the classes.
        data: of all clients.
        training: rounds, local epochs, batch size, who takes part, and how much memory there is.
        folders: where each lane's clients may wait between rounds; in memory where left out.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        backbone: Backbone,
        prompts: Prompts,
        data: FederatedData,
        training: TrainingConfig,
        folders: Sequence[Path] = (),
    ):
        self.lanes, self.backbone, self.prompts = tuple(lanes), backbone, prompts
        self.data, self.training = data, training
        stacked([lane.method for lane in lanes], torch.float32, backbone.device)  # refuses what cannot stand together
        self.servers = [self._server(lane) for lane in lanes]
        self.known = Known.at_start(len(lanes), len(data.ids), ranks_at_start(lanes[0].method, backbone))
        self.stores = [ClientStore(folder, self.plan.on_disk) for folder in folders] or [ClientStore() for _ in lanes]
        self.wave = training.wave  # clients side by side; 0: not decided yet
        self.round = 0

    def _server(self, lane: Lane) -> Server:
        """The server's adapters before the first round."""
        like = torch.empty(0, device=self.backbone.device, dtype=trained_dtype(self.backbone.model.dtype))
        shared: dict[str, Theta] = {}
        for name in lane.method.shared:
            theta = initial(lane.method.adapters()[name], self.backbone, lane.seed, name, "server")
            shared[name] = {leaf: value.to(like) for leaf, value in theta.items() if lane.method.sends(name, leaf)}
        return Server(shared, lane.method.server_momentum)

    @property
    def rounds(self) -> int:
        return planned_rounds(self.lanes[0].method, self.training.rounds)

    @property
    def participants(self) -> int:
        """Clients that take part in a round, all lanes together."""
        return len(self.lanes) * count_joining(len(self.data.ids), self.training)

    @cached_property
    def plan(self) -> Plan:
        """What one client takes, measured on the largest, and how the clients are cut into waves."""
        largest = int(self.data.train.sizes().argmax())
        probe = self.cohort(Wave(torch.tensor([0]), torch.tensor([largest])), ())
        batch = next(self.data.train.select([largest]).in_order(self.training.batch_size))
        return make_plan(probe, batch, len(self.lanes) * len(self.data.ids), self.training)

    @property
    def side_by_side(self) -> int:
        """Clients of a full wave."""
        return min(self.wave or self.plan.wave, self.participants)

    def steps(self) -> int:
        """Training steps of a round, at most."""
        longest = int(self.data.train.sizes().max())
        waves = -(-self.participants // self.side_by_side)
        return waves * self.training.local_epochs * -(-longest // self.training.batch_size)

    def play_round(self, on_step: Callable[[], None] = lambda: None) -> list[RoundResult]:
        """The next round, in every lane."""
        started = time.perf_counter()
        self.score_start()
        draws = [draw(lane.seed, self.round, self.data.ids, self.training) for lane in self.lanes]
        joins, reports = (torch.stack(part) for part in zip(*draws, strict=True))  # (lanes, K) each
        averages = [{name: lane.method.average() for name in lane.method.shared} for lane in self.lanes]
        waves = self.waves(joins)
        found = join([self._play(wave, n, reports, averages, on_step) for n, wave in enumerate(waves)])
        for lane, server in enumerate(self.servers):
            if reports[lane].any():
                server.step({name: average.result() for name, average in averages[lane].items()})
        self.round += 1
        return self._results(found, time.perf_counter() - started)

    def _play(
        self, wave: Wave, number: int, reports: Tensor, averages: Sequence[Averages], on_step: Callable[[], None]
    ) -> Found:
        """One wave of a round: download, local epochs, evaluate, upload."""
        cohort, data = self.cohort(wave, self.stores), self.data.select(wave.rows.tolist())
        self.download(cohort, wave)
        diagnostics = self._received(cohort, data)
        bytes_down = cohort.payload()
        losses = self._train(cohort, data, on_step)
        self._score(cohort, data, wave)
        if self.training.diagnostics:
            diagnostics |= cohort.correct(data.test, EVALUATION_BATCH, cohort.method.inferences)
        if diagnostics:
            diagnostics["predicted"] = self.known.correct["test"][wave]
        bytes_up, reported = cohort.payload(), reports[wave]
        self._upload(cohort, wave, reported, averages)
        cohort.compact()
        self._keep(cohort, wave, number)
        sizes = data.test.sizes()
        return Found(*wave, reported, losses, diagnostics, sizes, bytes_down, bytes_up * reported)

    def waves(self, chosen: Tensor) -> Iterator[Wave]:
        """The chosen clients in waves. chosen: bool [lanes, K]"""
        self.wave = self.wave or self.plan.wave
        lanes, rows = chosen.nonzero().unbind(1)
        return split(lanes, rows, self.data.train.sizes(), self.wave)

    def cohort(self, wave: Wave, stores: Sequence[ClientStore]) -> Cohort:
        """The clients of a wave side by side: as the stores of the lanes have them, or else as they begin."""
        places = list(zip(wave.lanes.tolist(), wave.rows.tolist(), strict=True))
        slots = [Slot(self.data.ids[row], *self.lanes[lane]) for lane, row in places]
        return Cohort(slots, self.backbone, self.prompts, recall(places, slots, stores, self.backbone))

    def download(self, cohort: Cohort, wave: Wave) -> None:
        """Give a cohort what the servers of its lanes hold, and start its round."""
        for lane, server in enumerate(self.servers):
            cohort.download(server.shared, wave.of(lane) if len(self.lanes) > 1 else slice(None))
        cohort.start_round(float(self.round))

    def _received(self, cohort: Cohort, data: FederatedData) -> dict[str, Tensor]:
        """How many test samples the shared adapter gets right as it arrives, before any local step."""
        shared = cohort.method.shared
        if not self.training.diagnostics or not shared:
            return {}

        def arrives(f: Forward, batch: Batch) -> dict[str, Tensor]:
            return {"received": f.frozen(batch, shared[0])}

        return cohort.correct(data.test, EVALUATION_BATCH, arrives)

    def _train(self, cohort: Cohort, data: FederatedData, on_step: Callable[[], None]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for epoch in range(self.training.local_epochs if cohort.adapters else 0):
            batches = data.train.shuffled(self.training.batch_size, cohort.owners, self.round, epoch)
            losses = cohort.fit(batches, on_step)
        return losses

    def _score(self, cohort: Cohort, data: FederatedData, wave: Wave) -> None:
        for part, samples in (("validation", data.validation), ("test", data.test)):
            self.known.correct[part][wave] = cohort.correct(samples, EVALUATION_BATCH)[""]

    def score_start(self) -> list[RoundResult]:
        """Before the first round of those in which some sit out, score all clients as they begin, and keep none."""
        if self.training.participation == 1 or not (self.known.correct["test"] < 0).any():
            return []
        started = time.perf_counter()
        for wave in self.waves(self.known.correct["test"] < 0):
            self._score(self.cohort(wave, self.stores), self.data.select(wave.rows.tolist()), wave)
        return self._results(NOBODY, time.perf_counter() - started)

    def _upload(self, cohort: Cohort, wave: Wave, reported: Tensor, averages: Sequence[Averages]) -> None:
        """Add what arrives of a wave to the averages of its lanes."""
        samples = self.data.train.sizes()[wave.rows]
        weights = torch.ones_like(samples) if cohort.method.averaging == "uniform" else samples
        for name, theta in cohort.upload().items():
            for lane, average in enumerate(averages):
                chosen = ((wave.lanes == lane) & reported).nonzero()[:, 0]
                if len(chosen):
                    arrived = {leaf: value[chosen.to(value.device)] for leaf, value in theta.items()}
                    average[name].add(arrived, weights[chosen])

    def _keep(self, cohort: Cohort, wave: Wave, number: int) -> None:
        """Put a wave's clients back into the stores of their lanes."""
        for name, theta in cohort.theta.items():
            for site, active in active_by_site(theta).items():
                self.known.active[f"{name}/{site}"][wave] = active.cpu().int()
        state, name = cohort.state_dict(), f"round-{self.round + 1:04d}-{number}.safetensors"
        for lane, store in enumerate(self.stores):
            places = wave.of(lane)
            mine = state if len(places) == len(wave.rows) else {key: v[places] for key, v in state.items()}
            if len(places):
                store.put(name, wave.rows[places].tolist(), mine)

    def _results(self, found: Found, seconds: float) -> list[RoundResult]:
        about = {"round": self.round, "seconds": seconds, "lanes": len(self.lanes)}
        return [self.known.result(lane, found, **about) for lane in range(len(self.lanes))]

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


def recall(
    places: Sequence[tuple[int, int]], slots: Sequence[Slot], stores: Sequence[ClientStore], backbone: Backbone
) -> dict[str, Tensor]:
    """The state of clients, from the stores where they have been before. places: (lane, row) of each"""
    parts: list[Part] = []
    fresh = [place for place, (lane, row) in enumerate(places) if not stores or row not in stores[lane].where]
    for lane, store in enumerate(stores):
        held = {row: place for place, (owner, row) in enumerate(places) if owner == lane and row in store.where}
        parts += store.parts(held)
    if fresh:
        parts.append((fresh, pack(beginning([slots[place] for place in fresh], backbone))))
    return gather(parts)


def ranks_at_start(method: Method, backbone: Backbone) -> dict[str, int]:
    """Ranks that have a gate, by "adapter/site", before any is pruned."""
    shapes = {
        f"{name}/{site}": adapter.shapes(site, backbone.sites[site])
        for name, adapter in method.adapters().items()
        for site in backbone.sites
    }
    return {key: at["gate"][0] for key, at in shapes.items() if "gate" in at}
