"""A federation in one process: the server's adapters, the cohort of all clients, and one round after another.

    round:  download the shared adapters -> local epochs -> evaluate -> upload -> aggregate

Clients are evaluated after their local epochs and before the server averages, as in the paper's protocol: what is
scored is the model that a client would use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.costs import payload_bytes
from feddlp.data.batches import Batch, ClientData
from feddlp.methods.base import Method
from feddlp.model.adapters import Theta, active_ranks, gates
from feddlp.model.backbone import Backbone
from feddlp.training.cohort import Cohort, initial

EVALUATION_BATCH = 128


def planned_rounds(method: Method, rounds: int) -> int:
    """How many rounds there are to play; a method that trains nothing is scored once."""
    return rounds if method.adapters() else 1


@dataclass(frozen=True)
class FederatedData:
    """The three parts of every client's samples."""

    train: ClientData
    validation: ClientData
    test: ClientData


@dataclass(frozen=True)
class RoundResult:
    """What one round did; every tensor [K]."""

    round: int
    seconds: float
    losses: Mapping[str, Tensor]  # by adapter, mean over the last local epoch
    validation_correct: Tensor
    test_correct: Tensor
    active_ranks: Tensor | None  # gates that are not zero, None without gates
    bytes_down: int  # for each client
    bytes_up: int


class Federation:
    """One method, one seed.

    Args:
        method: the algorithm.
        backbone: frozen; shared by all clients.
        prompts: token ids of the class prompts, [C, L].
        data: of all clients, ids 0..K-1.
        training: rounds, local epochs, batch size.
        seed: the run seed.
    """

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        prompts: Tensor,
        data: FederatedData,
        training: TrainingConfig,
        seed: int,
    ):
        self.method, self.data, self.training, self.seed = method, data, training, seed
        self.cohort = Cohort(method, backbone, prompts, range(len(data.train.indices)), seed)
        adapters = method.adapters()
        self.shared: dict[str, Theta] = {
            name: initial(adapters[name], backbone, seed, name, "server") for name in method.shared
        }
        self.round = 0

    @property
    def rounds(self) -> int:
        return planned_rounds(self.method, self.training.rounds)

    def steps(self) -> int:
        """Training steps of a round."""
        longest = int(self.data.train.sizes().max())
        return self.training.local_epochs * -(-longest // self.training.batch_size)

    def play_round(self, on_step: Callable[[], None] = lambda: None) -> RoundResult:
        """The next round."""
        started = time.perf_counter()
        bytes_down = payload_bytes(self.shared)
        self.cohort.download(self.shared)
        losses: dict[str, Tensor] = {}
        for epoch in range(self.training.local_epochs if self.method.adapters() else 0):
            losses = self.cohort.fit(self._epoch(epoch), on_step)
        validation = self.cohort.correct(self.data.validation, EVALUATION_BATCH)
        test = self.cohort.correct(self.data.test, EVALUATION_BATCH)
        uploads = self.cohort.upload()
        bytes_up = payload_bytes(uploads) // len(self.cohort.clients)
        self.shared = self.method.aggregate(uploads, self.data.train.sizes())
        self.round += 1
        seconds = time.perf_counter() - started
        return RoundResult(self.round, seconds, losses, validation, test, self._active_ranks(), bytes_down, bytes_up)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        return self.data.train.shuffled(self.training.batch_size, self.seed, self.cohort.clients, self.round, epoch)

    def _active_ranks(self) -> Tensor | None:
        """Of each client, over all gated adapters. [K]"""
        counts = [count for theta in self.cohort.theta.values() if (count := active_ranks(theta)) is not None]
        return torch.stack(counts).sum(0).cpu() if counts else None

    def gates(self) -> int:
        """How many gates a client has."""
        return sum(gate[0].numel() for theta in self.cohort.theta.values() for gate in gates(theta).values())

    def state_dict(self) -> dict[str, Tensor]:
        """All clients and the server."""
        server = {
            f"server/{name}/{leaf}": value for name, theta in self.shared.items() for leaf, value in theta.items()
        }
        return server | {f"cohort/{name}": value for name, value in self.cohort.state_dict().items()}

    def load_state_dict(self, round: int, state: Mapping[str, Tensor]) -> None:
        """Go on after `round` from what `state_dict` gave then."""
        self.round = round
        self.cohort.load_state_dict({name.removeprefix("cohort/"): value for name, value in state.items()})
        self.shared = {
            name: {leaf: state[f"server/{name}/{leaf}"] for leaf in theta} for name, theta in self.shared.items()
        }
