"""From labels to what every client trains on, validates on and is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from feddlp.data.partition import PartitionName, partition
from feddlp.data.source import Part
from feddlp.data.splits import ClientSplit, TestSetName, hold_out, split
from feddlp.errors import UserError


def deal(
    labels: np.ndarray | Sequence[int],
    name: PartitionName,
    clients: int,
    *,
    test_set: TestSetName = "own",
    test_share: float = 0.25,
    validation_share: float = 0.1,
    stratified: bool = False,
    dirichlet_beta: float = 0.1,
    classes_per_client: int = 2,
    shots: int = 16,
    min_samples: int = 2,
    seed: int = 1,
    owners: Sequence[str] = (),
    parts: Sequence[Part] = (),
    ids: Sequence[int] = (),
) -> list[ClientSplit]:
    """Partition and cut: what every client trains on, validates on and is tested on.

    Args:
        test_set: own = every client's own samples are cut, common = the same held-out samples for every client.
        test_share: of a client's samples, or of the whole data set.
        validation_share: of a client's training part.
        stratified: cut class by class.
        owners: the natural client of each sample, for the natural partition.
        parts: the official split of each sample, where that is to be kept. Its test part is every client's test set
            (of a natural client, its own samples in it), and the others are dealt; `test_set` has no say then.
        ids: who the clients are, by which their cuts are addressed; 0, 1, ... where left out.

    The other arguments and the errors are those of `partition`.
    """
    array = np.asarray(labels)
    strata = array if stratified else None
    remaining, common = np.arange(len(array)), None
    official = official_test(parts)
    if parts and name != "natural":
        remaining, common = np.setdiff1d(remaining, official), torch.from_numpy(official)
    elif test_set == "common" and not parts:
        remaining, common = hold_out(len(array), test_share=test_share, seed=seed, strata=strata)
    try:
        holdings = partition(
            array[remaining],
            name,
            clients,
            dirichlet_beta=dirichlet_beta,
            classes_per_client=classes_per_client,
            shots=shots,
            min_samples=min_samples,
            seed=seed,
            classes=int(array.max(initial=-1)) + 1,
            owners=[owners[int(index)] for index in remaining] if owners else (),
        )
    except UserError as error:
        if common is None:
            raise
        raise UserError(f"{error} (the common test set took {len(common)} of {len(array)} samples first)") from None
    known = ids or range(clients)
    shares = {"test_share": test_share if common is None else 0.0, "validation_share": validation_share}
    if parts and name == "natural":
        return [
            keep_test(held, client, official, validation_share, seed, strata)
            for client, held in zip(known, holdings, strict=True)
        ]
    own = [
        split(remaining[held], client, **shares, seed=seed, strata=strata)
        for client, held in zip(known, holdings, strict=True)
    ]
    return own if common is None else [replace(client, test=common) for client in own]


def official_test(parts: Sequence[Part]) -> np.ndarray:
    """Where the test part lies.

    Raises:
        UserError: official splits without one, or with nothing else.
    """
    places = np.flatnonzero(np.asarray(parts) == "test")
    if parts and not 0 < len(places) < len(parts):
        raise UserError(
            f"data.splits=official: {len(places)} of {len(parts)} images are in the test part, which leaves "
            f"{'none to train on' if len(places) else 'none to test on'}; use data.splits=merged"
        )
    return places


def keep_test(
    held: np.ndarray, client: int, official: np.ndarray, validation_share: float, seed: int, strata: np.ndarray | None
) -> ClientSplit:
    """A natural client's own samples, those of the official test part for testing."""
    test = np.intersect1d(held, official)
    rest = np.setdiff1d(held, official)
    if not len(rest) or not len(test):
        raise UserError(
            f"data.splits=official leaves natural client {client} {len(rest)} samples to train on and {len(test)} to "
            "test on; use data.splits=merged"
        )
    own = split(rest, client, test_share=0.0, validation_share=validation_share, seed=seed, strata=strata)
    return replace(own, test=torch.from_numpy(test))
