"""Batches with a client axis: index gathers from tensors that already lie in memory.

One step of a cohort takes B samples of each of its K clients. Clients differ in size, so rows are padded on the
right and masked; a client whose samples are used up has an all-False row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from feddlp.randomness import generator


@dataclass(frozen=True)
class Batch:
    """K clients x B samples, right-padded; K' <= K leaves out the clients at the end that have finished."""

    inputs: Tensor  # [K', B, 3, H, W] uint8 images, or [K', B, D] features of the frozen image tower
    labels: Tensor  # [K, B] class ids; columns of the logits
    mask: Tensor  # [K, B] True = sample; an all-False row = a client that has finished
    classes: Tensor | None = None  # [K, C'] the class that each column of the logits stands for; None: all, in order

    def of_its_classes(self) -> Batch:
        """The same samples among the classes that each client's samples have, C' being the most of any client.

        For objectives that look at no other class (`in_batch`), so that no other prompt need be encoded. Clients with
        fewer classes get some of the others as filling.
        """
        samples = torch.where(self.mask, self.labels, self.labels[:, :1])
        present = torch.zeros(len(samples), int(samples.max()) + 1, dtype=torch.int8, device=samples.device)
        present.scatter_(1, samples, 1)  # (K, C)
        classes = present.argsort(dim=1, descending=True, stable=True)[:, : int(present.sum(1).max())]
        columns = (present.cumsum(1) - 1).gather(1, samples)
        return replace(self, labels=columns, classes=classes)


@dataclass(frozen=True)
class ClientData:
    """The samples of K clients: indices into shared tensors, which may be images or features."""

    inputs: Tensor  # [N, ...]
    labels: Tensor  # [N]
    indices: tuple[Tensor, ...]  # K index tensors

    def sizes(self) -> Tensor:
        """Samples of each client. [K]"""
        return self._sizes

    @cached_property
    def _sizes(self) -> Tensor:
        return torch.tensor([len(index) for index in self.indices])

    def select(self, clients: Sequence[int]) -> ClientData:
        """The same data for some of the clients, in the given order."""
        return ClientData(self.inputs, self.labels, tuple(self.indices[client] for client in clients))

    def gather(self, rows: Sequence[Tensor]) -> Batch:
        """One batch from K index tensors of at most B entries."""
        index = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # [K, B], padded with sample 0
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(index.shape[1]) < lengths[:, None]
        training = int(lengths.nonzero().max()) + 1 if lengths.any() else 0
        index = index.to(self.labels.device)
        return Batch(self.inputs[index[:training]], self.labels[index], mask.to(self.labels.device))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once, in stored order: for evaluation."""
        return self._steps(self.indices, batch_size)

    def shuffled(self, batch_size: int, owners: Sequence[tuple[int, int]], round: int, epoch: int) -> Iterator[Batch]:
        """Every sample once, in an order that depends on (seed, client id, round, epoch) alone; last batches kept.

        Args:
            owners: (client id, seed) of each of the K clients.
        """
        orders = []
        for (client, seed), index in zip(owners, self.indices, strict=True):
            address = generator(seed, "shuffle", client, round, epoch)
            orders.append(index[torch.randperm(len(index), generator=address)])
        return self._steps(orders, batch_size)

    def _steps(self, orders: Sequence[Tensor], batch_size: int) -> Iterator[Batch]:
        longest = max((len(order) for order in orders), default=0)
        for start in range(0, longest, batch_size):
            yield self.gather([order[start : start + batch_size] for order in orders])
