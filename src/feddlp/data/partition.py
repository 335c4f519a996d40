"""Which client holds which samples, and how each client splits them.

    dirichlet     the paper's balanced variant (facts below): label skew set by `dirichlet_beta`
    pathological  every client holds `classes_per_client` classes, as evenly shared as they go
    iid           a shuffled deal

Then every client cuts its samples 75/25 into training and test, and carves a validation share out of its
training part. Partition and splits depend on the partition seed alone, so that all run seeds share them.

The Dirichlet variant follows the paper's protocol (§VI-A): class by class, proportions ~ Dirichlet(beta), but a client
that already holds N/K samples gets nothing more, so sizes stay near each other and the last client collects the
left-overs. The draws use NumPy's legacy generator, whose stream is frozen, so a partition is the same for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from feddlp.errors import UserError
from feddlp.randomness import generator

PartitionName = Literal["dirichlet", "pathological", "iid"]
MAX_TRIES = 1000


@dataclass(frozen=True)
class ClientSplit:
    """Indices into the data set, three disjoint parts."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test)


def dirichlet_draw(
    labels: np.ndarray, clients: int, beta: float, rng: np.random.RandomState
) -> list[np.ndarray] | None:
    """One try of the balanced Dirichlet deal; None where a class finds no client to go to (tiny beta)."""
    holdings: list[list[int]] = [[] for _ in range(clients)]
    for label in range(int(labels.max()) + 1):
        indices = np.where(labels == label)[0]
        rng.shuffle(indices)
        share = rng.dirichlet(np.repeat(beta, clients))
        share = share * [len(held) < len(labels) / clients for held in holdings]
        if not share.sum() > 0:  # also catches NaN
            return None
        cuts = (np.cumsum(share / share.sum()) * len(indices)).astype(int)[:-1]
        for held, part in zip(holdings, np.split(indices, cuts), strict=True):
            held.extend(part.tolist())
    return [np.array(held, dtype=np.int64) for held in holdings]


def partition_dirichlet(labels: np.ndarray, clients: int, beta: float, min_samples: int, seed: int) -> list[np.ndarray]:
    """Repeat the deal until every client holds `min_samples`, at most MAX_TRIES times."""
    rng = np.random.RandomState(seed)
    best = 0
    for _ in range(MAX_TRIES):
        holdings = dirichlet_draw(labels, clients, beta, rng)
        smallest = min(map(len, holdings)) if holdings else 0
        if holdings and smallest >= min_samples:
            return holdings
        best = max(best, smallest)
    raise UserError(
        f"data.clients={clients} with data.dirichlet_beta={beta:g} never gave every client "
        f"data.min_samples={min_samples} of the {len(labels)} samples in {MAX_TRIES} tries (best: {best}); "
        "use fewer clients, a larger beta, or data.partition=iid"
    )


def assign_classes(classes: int, clients: int, per_client: int, rng: np.random.RandomState) -> list[list[int]]:
    """Which clients hold each class: every client takes the classes with the fewest holders, ties at random."""
    holders: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        order = sorted(rng.permutation(classes).tolist(), key=lambda label: len(holders[label]))
        for label in order[:per_client]:
            holders[label].append(client)
    return holders


def partition_pathological(labels: np.ndarray, clients: int, per_client: int, seed: int) -> list[np.ndarray]:
    """Every client holds `per_client` classes; the holders of a class share its samples evenly."""
    classes = int(labels.max()) + 1
    if per_client > classes:
        raise UserError(
            f"data.classes_per_client={per_client} is more than the {classes} classes there are; use at most {classes}"
        )
    if clients * per_client < classes:
        raise UserError(
            f"data.clients={clients} x data.classes_per_client={per_client} cover {clients * per_client} of {classes} "
            f"classes, so samples would be left out; use at least {-(-classes // clients)} classes per client"
        )
    rng = np.random.RandomState(seed)
    holdings: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label, holders in enumerate(assign_classes(classes, clients, per_client, rng)):
        members = np.where(labels == label)[0]
        if len(members) < len(holders):
            raise UserError(
                f"data.classes_per_client={per_client} with data.clients={clients} deals class {label} to "
                f"{len(holders)} clients, and it has {len(members)} sample(s); use fewer clients or fewer classes each"
            )
        parts = np.array_split(rng.permutation(members), len(holders))
        for client, part in zip(holders, parts, strict=True):
            holdings[client].append(part)
    return [np.concatenate(parts) for parts in holdings]


def partition_iid(labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
    """A shuffled deal into parts that differ by one sample at most."""
    return np.array_split(np.random.RandomState(seed).permutation(len(labels)), clients)


def partition(
    labels: np.ndarray | Sequence[int],
    name: PartitionName,
    clients: int,
    *,
    dirichlet_beta: float = 0.1,
    classes_per_client: int = 2,
    min_samples: int = 2,
    seed: int = 1,
) -> list[np.ndarray]:
    """Deal samples to clients; every sample goes to exactly one.

    Args:
        labels: class ids 0..C-1, shape (N,).
        min_samples: the fewest samples a client may hold, >= 2 (one to train on, one to test on).
        seed: the partition seed, independent of the run seed.

    Returns:
        K index arrays, disjoint, together 0..N-1.

    Raises:
        UserError: where the request cannot be met; names the option and the numbers.
    """
    array = np.asarray(labels)
    if clients * min_samples > len(array):
        raise UserError(
            f"data.clients={clients} with data.min_samples={min_samples} need {clients * min_samples} samples, "
            f"the data set has {len(array)}; use at most {len(array) // min_samples} clients, "
            "far fewer with skewed labels"
        )
    if name == "dirichlet":
        return partition_dirichlet(array, clients, dirichlet_beta, min_samples, seed)
    if name == "pathological":
        holdings = partition_pathological(array, clients, classes_per_client, seed)
    else:
        holdings = partition_iid(array, clients, seed)
    if (smallest := min(map(len, holdings))) < min_samples:
        raise UserError(
            f"data.partition={name} with data.clients={clients} leaves a client {smallest} sample(s), "
            f"data.min_samples={min_samples}; use fewer clients or more classes per client"
        )
    return holdings


def split(indices: np.ndarray, client: int, *, test_share: float, validation_share: float, seed: int) -> ClientSplit:
    """One client's samples, shuffled and cut: n_train = floor((1 - test_share) n), validation out of that.

    Training keeps at least one sample, and so does the test part.
    """
    order = torch.from_numpy(indices)[torch.randperm(len(indices), generator=generator(seed, "split", client))]
    # The small term keeps a product such as 0.9 * 10 from falling to 8 by rounding.
    kept = min(len(order) - 1, max(1, int((1 - test_share) * len(order) + 1e-9)))
    validation = min(kept - 1, int(validation_share * kept + 1e-9))
    return ClientSplit(order[validation:kept], order[:validation], order[kept:])
