"""The server, and one round after another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feddlp.federation.participation import draw
from feddlp.randomness import generator
from reference.client import Client, Samples
from reference.training import TRAIN, predict, train_one

SHARED = {  # what travels; everything else stays with its client
    "combined": {"global"},
    "fedavg": {"weights"},
    "fedclip": {"attention"},
    "feddat": {"global"},
    "feddlp": {"global"},
    "feddlp_shared": {"global", "local"},
    "flora": {"adapter"},
    "local": set(),
    "sora_local": set(),
    "zero_shot": set(),
}


class Server:
    """What the server holds, and how it averages."""

    def __init__(self, theta: dict[str, dict[str, Tensor]], method):
        self.theta, self.method = theta, method
        self.velocity = {name: dict.fromkeys(leaves, 0.0) for name, leaves in theta.items()}

    def aggregate(self, name: str, uploads: list[dict[str, Tensor]], samples: list[int]) -> None:
        counts = samples if self.method.averaging == "samples" else [1] * len(samples)
        shares = [count / sum(counts) for count in counts]
        if getattr(self.method, "average_of", "factors") == "products":
            self.theta[name] = average_products(uploads, shares)
            return
        for leaf, old in self.theta[name].items():
            average = sum(share * upload[leaf] for share, upload in zip(shares, uploads, strict=True))
            self.velocity[name][leaf] = self.method.server_momentum * self.velocity[name][leaf] + (old - average)
            self.theta[name][leaf] = old - self.velocity[name][leaf]


def average_products(uploads: list[dict[str, Tensor]], shares: list[float]) -> dict[str, Tensor]:
    """FlexLoRA: the mean of B A, the best approximation of rank r, the root of the singular values to either factor."""
    averaged = {}
    for site in {leaf.removesuffix(".A") for leaf in uploads[0] if leaf.endswith(".A")}:
        products = [upload[f"{site}.B"] @ upload[f"{site}.A"] for upload in uploads]
        mean = sum(share * product for share, product in zip(shares, products, strict=True))
        u, s, vh = torch.linalg.svd(mean, full_matrices=False)
        rank = len(uploads[0][f"{site}.A"])
        averaged[f"{site}.A"] = s[:rank, None].sqrt() * vh[:rank]
        averaged[f"{site}.B"] = u[:, :rank] * s[:rank].sqrt()
    return averaged


class Task(NamedTuple):
    """The data of all clients, and the protocol."""

    pixels: Tensor  # [N, 3, H, W], normalised
    labels: Tensor  # [N]
    tokens: Tensor  # [C, L]
    train: list[Tensor]  # indices of each client's samples
    test: list[Tensor]
    protocol: object  # rounds, local_epochs, batch_size, participation, report_rate
    seed: int

    def samples(self, rows: Tensor) -> Samples:
        return Samples(self.pixels[rows], self.labels[rows], self.tokens)

    def batches(self, number: int, round: int, epoch: int) -> list[Samples]:
        """Every training sample of a client once, in its own order."""
        rows, at = self.train[number], generator(self.seed, "shuffle", number, round, epoch)
        shuffled = rows[torch.randperm(len(rows), generator=at)]
        return [self.samples(part) for part in shuffled.split(self.protocol.batch_size)]


def federate(clients: list[Client], server: Server, task: Task) -> list[int]:
    """The whole federation, client by client; what each client got right in the last round that it took part in."""
    protocol, scores = task.protocol, [score(client, task, k) for k, client in enumerate(clients)]
    for round in range(protocol.rounds):
        joins, reports = draw(task.seed, round, range(len(clients)), protocol)
        for k in [k for k, joined in enumerate(joins) if joined]:
            clients[k].receive(server.theta)
            for epoch in range(protocol.local_epochs):
                for batch in task.batches(k, round, epoch):
                    TRAIN.get(clients[k].kind, train_one)(clients[k], batch, round)
            scores[k] = score(clients[k], task, k)
        heard = [k for k, reported in enumerate(reports) if reported]
        for name in SHARED[clients[0].kind] if heard else ():
            uploads = [clients[k].upload(name) for k in heard]
            server.aggregate(name, uploads, [len(task.train[k]) for k in heard])
        for client in clients if getattr(clients[0].method, "compact", False) else ():
            client.cut_dead_ranks()
    return scores


def score(client: Client, task: Task, number: int) -> int:
    """How many of its test samples a client gets right."""
    batch = task.samples(task.test[number])
    return int((predict(client, batch).argmax(-1) == batch.labels).sum())
