"""Which client holds which samples.

    dirichlet              the paper's balanced variant (facts below): label skew set by `dirichlet_beta`
    pathological           every client holds `classes_per_client` classes, as evenly shared as they go
    iid                    a shuffled deal
    few_shot_iid           every client holds `shots` samples of every class (FLoRA, arXiv 2404.15182)
    few_shot_pathological  every class belongs to one client, which holds `shots` samples of it
    natural                every client holds what the data say is its own

The first three deal every sample; the few-shot ones leave the others unused, and natural those of other clients. How
a client then cuts its samples is told in `splits`. Partition and splits depend on the partition seed alone, so that
all run seeds share them.

The Dirichlet variant follows the paper's protocol (§VI-A): class by class, proportions ~ Dirichlet(beta), but a client
that already holds N/K samples gets nothing more, so sizes stay near each other and the last client collects the
left-overs. The draws use NumPy's legacy generator, whose stream is frozen, so a partition is the same for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from feddlp.errors import UserError

PartitionName = Literal["dirichlet", "pathological", "iid", "few_shot_iid", "few_shot_pathological", "natural"]
Splits = Literal["merged", "official"]
MAX_TRIES = 1000


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


def partition_pathological(
    labels: np.ndarray, classes: int, clients: int, per_client: int, seed: int
) -> list[np.ndarray]:
    """Every client holds `per_client` classes; the holders of a class share its samples evenly."""
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


def check_shots(labels: np.ndarray, classes: int, shots: int, clients: int, shared: bool) -> None:
    """Refuse where the smallest class has not enough samples, and say what would do.

    Args:
        shared: every client wants its own samples of every class; otherwise one client does.
    """
    sizes = np.bincount(labels, minlength=classes)
    label, size, holders = int(sizes.argmin()), int(sizes.min()), clients if shared else 1
    if size >= holders * shots:
        return
    ways = [f"data.shots={size // holders}"] if size >= holders else []
    if shared and size >= shots:
        ways.append(f"data.clients={size // shots}")
    if not ways and size:
        ways = [f"data.shots=1 with data.clients={size}"]
    raise UserError(
        f"data.shots={shots} with data.clients={clients} takes {holders * shots} samples of every class, "
        f"class {label} has {size}; use " + (f"at most {' or '.join(ways)}" if ways else "more samples of that class")
    )


def few_shot_iid(labels: np.ndarray, classes: int, clients: int, shots: int, seed: int) -> list[np.ndarray]:
    """Every client holds `shots` samples of every class. More shots add samples and keep the ones there were."""
    check_shots(labels, classes, shots, clients, shared=True)
    rng = np.random.RandomState(seed)
    drawn = [rng.permutation(np.where(labels == label)[0])[: shots * clients] for label in range(classes)]
    return [np.concatenate([members[client::clients] for members in drawn]) for client in range(clients)]


def few_shot_pathological(labels: np.ndarray, classes: int, clients: int, shots: int, seed: int) -> list[np.ndarray]:
    """Every class belongs to one client, which holds `shots` samples of it; class numbers differ by one at most."""
    if clients > classes:
        raise UserError(
            f"data.clients={clients} is more than the {classes} classes that data.partition=few_shot_pathological "
            f"gives to one client each; use at most {classes} clients"
        )
    check_shots(labels, classes, shots, clients, shared=False)
    rng = np.random.RandomState(seed)
    owned = np.array_split(rng.permutation(classes), clients)
    drawn = [rng.permutation(np.where(labels == label)[0])[:shots] for label in range(classes)]
    return [np.concatenate([drawn[label] for label in own]) for own in owned]


def natural_clients(owners: Sequence[str], clients: int, min_samples: int, seed: int) -> list[str]:
    """Who takes part: of those with `min_samples` or more as many as asked for, drawn by the seed, in order of names.

    Raises:
        UserError: the data name no clients, or too few.
    """
    if not owners:
        raise UserError(
            "data.partition=natural needs data that say who owns each image: csv: with a column client, or clients:PATH"
        )
    names, sizes = np.unique(np.asarray(owners), return_counts=True)
    enough = [str(name) for name, size in zip(names, sizes, strict=True) if size >= min_samples]
    if len(enough) < clients:
        raise UserError(
            f"data.clients={clients} is more than the {len(enough)} natural clients with at least "
            f"data.min_samples={min_samples} images ({len(names)} in all); set data.clients={len(enough)}"
        )
    drawn = np.random.RandomState(seed).permutation(len(enough))[:clients]
    return [enough[place] for place in sorted(drawn)]


def partition_natural(owners: Sequence[str], clients: int, min_samples: int, seed: int) -> list[np.ndarray]:
    """Every client holds what is its own; clients that do not take part are left out."""
    array = np.asarray(owners)
    return [np.flatnonzero(array == name) for name in natural_clients(owners, clients, min_samples, seed)]


def check_enough(samples: int, clients: int, min_samples: int) -> None:
    """Refuse more clients than `samples` could serve."""
    if clients * min_samples > samples:
        raise UserError(
            f"data.clients={clients} with data.min_samples={min_samples} need {clients * min_samples} samples, "
            f"the data set has {samples}; use at most {samples // min_samples} clients, "
            "far fewer with skewed labels"
        )


def check_smallest(holdings: list[np.ndarray], name: str, min_samples: int, way_out: str) -> list[np.ndarray]:
    """The holdings, if every client has enough."""
    if (smallest := min(map(len, holdings))) < min_samples:
        raise UserError(
            f"data.partition={name} with data.clients={len(holdings)} leaves a client {smallest} sample(s), "
            f"data.min_samples={min_samples}; use {way_out}"
        )
    return holdings


def partition(
    labels: np.ndarray | Sequence[int],
    name: PartitionName,
    clients: int,
    *,
    dirichlet_beta: float = 0.1,
    classes_per_client: int = 2,
    shots: int = 16,
    min_samples: int = 2,
    seed: int = 1,
    classes: int | None = None,
    owners: Sequence[str] = (),
) -> list[np.ndarray]:
    """Deal samples to clients, each to one at most; the few-shot partitions leave some out, the others none.

    Args:
        labels: class ids 0..C-1, shape (N,).
        shots: samples of each of its classes that a client holds (few-shot partitions).
        min_samples: the fewest samples a client may hold, >= 2 (one to train on, one to test on).
        seed: the partition seed, independent of the run seed.
        classes: C, where `labels` may lack the last classes.
        owners: the natural client of each sample (natural).

    Returns:
        K disjoint index arrays; together 0..N-1 unless the partition is a few-shot one.

    Raises:
        UserError: where the request cannot be met; names the option and the numbers.
    """
    array = np.asarray(labels)
    total = classes or int(array.max(initial=-1)) + 1
    if name == "natural":
        return partition_natural(owners, clients, min_samples, seed)
    if name == "few_shot_iid":
        return check_smallest(few_shot_iid(array, total, clients, shots, seed), name, min_samples, "more data.shots")
    if name == "few_shot_pathological":
        holdings = few_shot_pathological(array, total, clients, shots, seed)
        return check_smallest(holdings, name, min_samples, "more data.shots or fewer clients")
    check_enough(len(array), clients, min_samples)
    if name == "dirichlet":
        return partition_dirichlet(array, clients, dirichlet_beta, min_samples, seed)
    if name == "pathological":
        holdings = partition_pathological(array, total, clients, classes_per_client, seed)
    else:
        holdings = partition_iid(array, clients, seed)
    return check_smallest(holdings, name, min_samples, "fewer clients or more classes per client")
