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

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from feddlp.errors import UserError, counted

if TYPE_CHECKING:
    from feddlp.config import DataConfig

PartitionName = Literal["dirichlet", "pathological", "iid", "few_shot_iid", "few_shot_pathological", "natural"]
Splits = Literal["merged", "official"]
MAX_TRIES = 1000


class Samples(NamedTuple):
    """What is dealt."""

    labels: np.ndarray  # class ids 0..C-1 [N]
    classes: int  # C, where `labels` may lack the last ones
    owners: Sequence[str] = ()  # the natural client of each sample, where the data say so

    def of(self, label: int) -> np.ndarray:
        """Where the samples of a class are."""
        return np.where(self.labels == label)[0]


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


def dirichlet(samples: Samples, data: DataConfig, rng: np.random.RandomState) -> list[np.ndarray]:
    """Repeat the balanced deal until every client holds `min_samples`, at most MAX_TRIES times."""
    check_enough(samples, data)
    best = 0
    for _ in range(MAX_TRIES):
        holdings = dirichlet_draw(samples.labels, data.clients, data.dirichlet_beta, rng)
        smallest = min(map(len, holdings)) if holdings else 0
        if holdings and smallest >= data.min_samples:
            return holdings
        best = max(best, smallest)
    raise UserError(
        f"data.clients={data.clients} with data.dirichlet_beta={data.dirichlet_beta:g} never gave every client "
        f"data.min_samples={data.min_samples} of the {len(samples.labels)} samples in {MAX_TRIES} tries (best: {best})"
        "; use fewer clients, a larger beta, or data.partition=iid"
    )


def assign_classes(classes: int, clients: int, per_client: int, rng: np.random.RandomState) -> list[list[int]]:
    """Which clients hold each class: every client takes the classes with the fewest holders, ties at random."""
    holders: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        order = sorted(rng.permutation(classes).tolist(), key=lambda label: len(holders[label]))
        for label in order[:per_client]:
            holders[label].append(client)
    return holders


def pathological(samples: Samples, data: DataConfig, rng: np.random.RandomState) -> list[np.ndarray]:
    """Every client holds `classes_per_client` classes; the holders of a class share its samples evenly."""
    check_enough(samples, data)
    clients, each, classes = data.clients, data.classes_per_client, samples.classes
    if each > classes:
        raise UserError(
            f"data.classes_per_client={each} exceeds the {counted(classes, 'class')} of the data; use at most {classes}"
        )
    if clients * each < classes:
        raise UserError(
            f"data.clients={clients} x data.classes_per_client={each} cover {clients * each} of {classes} "
            f"classes, so samples would be left out; use at least {counted(-(-classes // clients), 'class')} per client"
        )
    holdings: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label, holders in enumerate(assign_classes(classes, clients, each, rng)):
        members = samples.of(label)
        if len(members) < len(holders):
            raise UserError(
                f"data.classes_per_client={each} with data.clients={clients} deals class {label} to {len(holders)} "
                f"clients, and it has {counted(len(members), 'sample')}; use fewer clients or fewer classes each"
            )
        parts = np.array_split(rng.permutation(members), len(holders))
        for client, part in zip(holders, parts, strict=True):
            holdings[client].append(part)
    return [np.concatenate(parts) for parts in holdings]


def iid(samples: Samples, data: DataConfig, rng: np.random.RandomState) -> list[np.ndarray]:
    """A shuffled deal into parts that differ by one sample at most."""
    check_enough(samples, data)
    return np.array_split(rng.permutation(len(samples.labels)), data.clients)


def check_enough(samples: Samples, data: DataConfig) -> None:
    """Refuse more clients than the samples could serve."""
    total, needed = len(samples.labels), data.clients * data.min_samples
    if needed > total:
        raise UserError(
            f"data.clients={data.clients} with data.min_samples={data.min_samples} need {needed} samples, the data "
            f"set has {total}; use at most {counted(total // data.min_samples, 'client')}, far fewer with skewed labels"
        )


def check_shots(samples: Samples, data: DataConfig, holders: int) -> None:
    """Refuse where the smallest class has not enough samples, and say what would do.

    Args:
        holders: clients that each want their own samples of a class.
    """
    sizes, shots, clients = np.bincount(samples.labels, minlength=samples.classes), data.shots, data.clients
    label, size = int(sizes.argmin()), int(sizes.min())
    if size >= holders * shots:
        return
    ways = [f"data.shots={size // holders}"] if size >= holders else []
    if holders > 1 and size >= shots:
        ways.append(f"data.clients={size // shots}")
    if not ways and size:
        ways = [f"data.shots=1 with data.clients={size}"]
    raise UserError(
        f"data.shots={shots} with data.clients={clients} takes {holders * shots} samples of every class, "
        f"class {label} has {size}; use " + (f"at most {' or '.join(ways)}" if ways else "more samples of that class")
    )


def few_shot_iid(samples: Samples, data: DataConfig, rng: np.random.RandomState) -> list[np.ndarray]:
    """Every client holds `shots` samples of every class. More shots add samples and keep the ones there were."""
    check_shots(samples, data, holders=data.clients)
    most = data.shots * data.clients
    drawn = [rng.permutation(samples.of(label))[:most] for label in range(samples.classes)]
    return [np.concatenate([members[client :: data.clients] for members in drawn]) for client in range(data.clients)]


def few_shot_pathological(samples: Samples, data: DataConfig, rng: np.random.RandomState) -> list[np.ndarray]:
    """Every class belongs to one client, which holds `shots` samples of it; class numbers differ by one at most."""
    if data.clients > samples.classes:
        raise UserError(
            f"data.clients={data.clients} is more than the {counted(samples.classes, 'class')} that "
            f"data.partition=few_shot_pathological gives to one client each; use at most {samples.classes}"
        )
    check_shots(samples, data, holders=1)
    owned = np.array_split(rng.permutation(samples.classes), data.clients)
    drawn = [rng.permutation(samples.of(label))[: data.shots] for label in range(samples.classes)]
    return [np.concatenate([drawn[label] for label in own]) for own in owned]


def natural(samples: Samples, data: DataConfig, rng: np.random.RandomState) -> list[np.ndarray]:
    """Every client holds what is its own, in order of names.

    Of those with `min_samples` or more, as many take part as asked for, drawn by the seed; the others are left out.

    Raises:
        UserError: the data name no clients, or too few.
    """
    if not samples.owners:
        raise UserError(
            "data.partition=natural needs data that say who owns each image: csv: with a column client, or clients:PATH"
        )
    owners = np.asarray(samples.owners)
    names, sizes = np.unique(owners, return_counts=True)
    enough = names[sizes >= data.min_samples]
    if len(enough) < data.clients:
        raise UserError(
            f"data.clients={data.clients} is more than the {counted(len(enough), 'natural client')} with at least "
            f"data.min_samples={data.min_samples} images ({len(names)} in all); set data.clients={len(enough)}"
        )
    drawn = sorted(rng.permutation(len(enough))[: data.clients])
    return [np.flatnonzero(owners == enough[place]) for place in drawn]


PARTITIONS: dict[str, Callable[[Samples, DataConfig, np.random.RandomState], list[np.ndarray]]] = {
    "dirichlet": dirichlet,
    "pathological": pathological,
    "iid": iid,
    "few_shot_iid": few_shot_iid,
    "few_shot_pathological": few_shot_pathological,
    "natural": natural,
}


def partition(samples: Samples, data: DataConfig) -> list[np.ndarray]:
    """Deal samples to clients, each to one at most; the few-shot partitions leave some out, the others none.

    Returns:
        K disjoint index arrays; together 0..N-1 unless the partition is a few-shot or the natural one.

    Raises:
        UserError: where the request cannot be met; names the option and the numbers.
    """
    holdings = PARTITIONS[data.partition](samples, data, np.random.RandomState(data.partition_seed))
    if (smallest := min(map(len, holdings))) < data.min_samples:
        way_out = (
            "more data.shots or fewer clients" if "shot" in data.partition else "fewer clients or more classes each"
        )
        raise UserError(
            f"data.partition={data.partition} with data.clients={data.clients} leaves a client "
            f"{counted(smallest, 'sample')}, data.min_samples={data.min_samples}; use {way_out}"
        )
    return holdings
