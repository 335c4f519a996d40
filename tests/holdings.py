"""What a federation holds of its clients, looked at from outside, and put into another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from feddlp.federation.rounds import Federation
from feddlp.federation.waves import Wave
from feddlp.training.cohort import Cohort


def everyone(federation: Federation, lane: int = 0) -> Cohort:
    """All clients of a lane side by side, as they are now; a copy."""
    rows = torch.arange(len(federation.clients.data.ids))
    return federation.clients.cohort(Wave(torch.full_like(rows, lane), rows), federation.clients.stores)


def whole_state(federation: Federation, lane: int = 0) -> dict[str, torch.Tensor]:
    """Copies of everything that a lane keeps, clients that never took part included."""
    state = federation.state_dict(lane) | everyone(federation, lane).state_dict()
    return {name: value.clone() for name, value in state.items()}


def restore(federation: Federation, round: int, states: Sequence[dict[str, torch.Tensor]]) -> None:
    """Go on from what `whole_state` gave of each lane."""
    federation.load_state_dict(round, states)
    for lane, state in enumerate(states):
        own = federation.state_dict(lane)
        clients = {name: value for name, value in state.items() if name not in own}
        federation.clients.stores[lane].put("restored", range(len(federation.clients.data.ids)), clients)


def resume(fresh: Federation, stopped: Federation, folder: Path) -> Federation:
    """A federation that goes on from another's files, as a new process would."""
    for lane, (store, old) in enumerate(zip(fresh.clients.stores, stopped.clients.stores, strict=True)):
        store.folder = old.folder = folder / str(lane)
        store.load(old.flush())
    states = [dict(stopped.state_dict(lane)) for lane in range(len(fresh.clients.stores))]
    fresh.load_state_dict(stopped.round, states)
    fresh.clients.wave = stopped.clients.wave
    return fresh
