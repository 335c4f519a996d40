"""Clients that live in one place: all of a federation in this process, or those of one machine.

    round:  in waves of those who take part
    wave:   out of the store -> download the shared adapters -> local epochs -> evaluate -> upload -> into the store

Clients are evaluated after their local epochs and before the server averages, as in the paper's protocol: what is
scored is the model that a client would use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.data.batches import Batch, ClientData
from feddlp.data.prompts import Prompts
from feddlp.errors import UserError
from feddlp.federation.clients import ClientStore, Part, gather, pack
from feddlp.federation.participation import count_joining
from feddlp.federation.results import Found, join
from feddlp.federation.waves import EVALUATION_BATCH, Plan, Wave, make_plan, split
from feddlp.methods.base import Method, stacked
from feddlp.model.adapters import Dense, LoRA, Site, Theta
from feddlp.model.backbone import Backbone, trained_dtype
from feddlp.model.forward import Forward
from feddlp.model.gates import active_by_site
from feddlp.states import ClientsPiece
from feddlp.training.cohort import Cohort, Slot, beginning


@dataclass(frozen=True)
class FederatedData:
    """The three parts of every client's samples."""

    ids: tuple[int, ...]
    train: ClientData
    validation: ClientData
    test: ClientData
    names: Mapping[int, str] = field(default_factory=dict, kw_only=True)  # of clients that have any

    def select(self, rows: Sequence[int]) -> FederatedData:
        """The data of some of the clients, in the given order; repeats are welcome."""
        parts = (part.select(rows) for part in (self.train, self.validation, self.test))
        return FederatedData(tuple(self.ids[row] for row in rows), *parts)


@dataclass(frozen=True)
class Roster:
    """Who the clients are, and how many samples each has. [K] each"""

    ids: tuple[int, ...]
    train: Tensor
    validation: Tensor
    test: Tensor
    names: dict[int, str] = field(default_factory=dict, kw_only=True)  # of clients that have any


class Lane(NamedTuple):
    """One run of the federation."""

    seed: int
    method: Method


class Order(NamedTuple):
    """What the clients are told when a round begins."""

    round: int  # counted from 0
    shared: Sequence[Mapping[str, Theta]]  # what the server of each lane holds
    joins: Tensor  # who takes part: bool [lanes, K]


class Report(NamedTuple):
    """What comes back from a wave of clients."""

    found: Found
    uploads: Mapping[str, Theta]  # [W, ...]


def joined(reports: Sequence[Report]) -> Report:
    """Several waves, or the reports of several machines, as one."""
    uploads = {
        name: {leaf: torch.cat([report.uploads[name][leaf] for report in reports]) for leaf in theta}
        for name, theta in reports[0].uploads.items()
    }
    return Report(join([report.found for report in reports]), uploads)


class Host:
    """The clients of all lanes, with their data and their store.

    Args:
        lanes: seeds, and trials of the method that differ in `methods.base.STACKABLE` fields only.
        backbone: frozen; shared by all clients and lanes.
        prompts: of the classes.
        data: of all clients.
        training: local epochs, batch size, and how much memory there is.
        folders: where each lane's clients may wait between rounds; in memory where left out.
    """

    max_share = 1.0  # of the weight in an average: here nobody's number of samples is in doubt

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
        self.stores = [ClientStore(folder, self.plan.on_disk) for folder in folders] or [ClientStore() for _ in lanes]
        self.wave = training.wave  # clients side by side; 0: not decided yet

    @property
    def roster(self) -> Roster:
        data = self.data
        sizes = (part.sizes() for part in (data.train, data.validation, data.test))
        return Roster(data.ids, *sizes, names=dict(data.names))

    @property
    def sites(self) -> Mapping[str, Site]:
        return self.backbone.sites

    @property
    def like(self) -> Tensor:
        """Where and in which dtype adapters are kept. [0]"""
        return torch.empty(0, device=self.backbone.device, dtype=trained_dtype(self.backbone.model.dtype))

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

    def play(self, order: Order, on_step: Callable[[], None] = lambda: None) -> Iterator[Report]:
        """One round of those who take part, wave by wave."""
        for number, wave in enumerate(self.waves(order.joins)):
            yield self._play(order, wave, number, on_step)

    def _play(self, order: Order, wave: Wave, number: int, on_step: Callable[[], None]) -> Report:
        cohort, data = self.cohort(wave, self.stores), self.data.select(wave.rows.tolist())
        self.download(cohort, wave, order)
        diagnostics = self._received(cohort, data)
        bytes_down = cohort.payload()
        losses = self._train(cohort, data, order.round, on_step)
        correct = score(cohort, data)
        if self.training.diagnostics:
            diagnostics |= cohort.correct(data.test, EVALUATION_BATCH, cohort.method.inferences)
        if diagnostics:
            diagnostics["predicted"] = correct["test"]
        uploads, bytes_up = cohort.upload(), cohort.payload()
        check_finite(cohort, losses, uploads, order.round)
        cohort.compact()
        self._keep(cohort, wave, f"round-{order.round + 1:04d}-{number}.safetensors")
        return Report(Found(*wave, losses, diagnostics, correct, active(cohort), bytes_down, bytes_up), uploads)

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

    def download(self, cohort: Cohort, wave: Wave, order: Order) -> None:
        """Give a cohort what the servers of its lanes hold, and start its round."""
        for lane, shared in enumerate(order.shared):
            cohort.download(shared, wave.of(lane) if len(self.lanes) > 1 else slice(None))
        cohort.start_round(float(order.round))

    def _received(self, cohort: Cohort, data: FederatedData) -> dict[str, Tensor]:
        """How many test samples the shared adapter gets right as it arrives, before any local step."""
        shared = cohort.method.shared
        if not self.training.diagnostics or not shared:
            return {}

        def arrives(f: Forward, batch: Batch) -> dict[str, Tensor]:
            return {"received": f.frozen(batch, shared[0])}

        return cohort.correct(data.test, EVALUATION_BATCH, arrives)

    def _train(self, cohort: Cohort, data: FederatedData, round: int, on_step: Callable[[], None]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for epoch in range(self.training.local_epochs if cohort.adapters else 0):
            batches = data.train.shuffled(self.training.batch_size, cohort.owners, round, epoch)
            losses = cohort.fit(batches, on_step)
        return losses

    def _keep(self, cohort: Cohort, wave: Wave, name: str) -> None:
        """Put a wave's clients back into the stores of their lanes."""
        state = cohort.state_dict()
        for lane, store in enumerate(self.stores):
            places = wave.of(lane)
            mine = state if len(places) == len(wave.rows) else {key: v[places] for key, v in state.items()}
            if len(places):
                store.put(name, wave.rows[places].tolist(), mine)

    def load(self) -> dict[str, float]:
        """Clients side by side, and what one of them takes."""
        return {"wave": self.side_by_side, "activation_mib": round(self.plan.activation_mib, 3)}

    def describe(self) -> str:
        """How the clients are played, in words."""
        return self.plan.describe(self.side_by_side)

    def keep(self, lane: int) -> tuple[list[ClientsPiece], int, int]:
        """Have a lane's clients in files: their list, how many trained side by side, and how many commits stay."""
        return self.stores[lane].flush(), self.wave, 1

    def restore(self, lane: int, blocks: Sequence[ClientsPiece], wave: int) -> None:
        """Go on from what `keep` gave."""
        self.stores[lane].load(blocks)
        self.wave = self.wave or wave

    def begin(self, chosen: Tensor) -> Iterator[tuple[Wave, dict[str, Tensor]]]:
        """Samples that clients get right as they begin, by part of the data; none are kept. chosen: bool [lanes, K]"""
        if begin_alike(self.lanes[0].method):
            yield from self._one_for_all()
        else:
            for wave in self.waves(chosen):
                yield wave, score(self.cohort(wave, self.stores), self.data.select(wave.rows.tolist()))

    def _one_for_all(self) -> Iterator[tuple[Wave, dict[str, Tensor]]]:
        """Clients that begin alike: one stands in for all of its lane."""
        rows = torch.arange(len(self.data.ids))
        for lane in range(len(self.lanes)):
            anyone = self.cohort(Wave(torch.tensor([lane]), torch.tensor([0])), ())
            parts = {"validation": self.data.validation, "test": self.data.test}
            correct = {part: anyone.correct_for_all(samples, EVALUATION_BATCH) for part, samples in parts.items()}
            yield Wave(torch.full_like(rows, lane), rows), correct


def check_finite(cohort: Cohort, losses: Mapping[str, Tensor], uploads: Mapping[str, Theta], round: int) -> None:
    """Raises UserError where a number that a client keeps, reports or sends is NaN or infinite."""
    moments = [moment for optimizer in cohort.optimizers.values() for moment in (optimizer.m, optimizer.v)]
    leaves = [leaf for thetas in (cohort.theta, uploads) for theta in thetas.values() for leaf in theta.values()]
    numbers = (torch.zeros(len(cohort.slots)), *losses.values(), *moments, *leaves)
    finite = torch.stack([value.isfinite()[:, None].flatten(1).all(1).cpu() for value in numbers]).all(0)
    for slot, well in zip(cohort.slots, finite.tolist(), strict=True):
        if not well:
            raise UserError(
                f"{type(slot.method).__name__}, round {round + 1}: client {slot.client} diverged to NaN or infinity; "
                "nothing of this round is kept; begin a new run with a smaller learning rate (method.lr)"
            )


def score(cohort: Cohort, data: FederatedData) -> dict[str, Tensor]:
    """Samples that each client gets right, by part of the data. [W] each"""
    parts = {"validation": data.validation, "test": data.test}
    return {part: cohort.correct(samples, EVALUATION_BATCH)[""] for part, samples in parts.items()}


def active(cohort: Cohort) -> dict[str, Tensor]:
    """Gates that are not zero, by "adapter/site". [W] each"""
    return {
        f"{name}/{site}": count.cpu().int()
        for name, theta in cohort.theta.items()
        for site, count in active_by_site(theta).items()
    }


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


def begin_alike(method: Method) -> bool:
    """Whether all clients predict the same before they learn: private adapters have no effect yet."""
    adapters = method.adapters().items()
    return all(name in method.shared or isinstance(adapter, LoRA | Dense) for name, adapter in adapters)
