"""From labels to what every client trains on, validates on and is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from feddlp.data.partition import PartitionName, partition
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
) -> list[ClientSplit]:
    """Partition and cut: what every client trains on, validates on and is tested on.

    Args:
        test_set: own = every client's own samples are cut, common = the same held-out samples for every client.
        test_share: of a client's samples, or of the whole data set.
        validation_share: of a client's training part.
        stratified: cut class by class.

    The other arguments and the errors are those of `partition`.
    """
    array = np.asarray(labels)
    strata = array if stratified else None
    remaining, common = np.arange(len(array)), None
    if test_set == "common":
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
        )
    except UserError as error:
        if common is None:
            raise
        raise UserError(f"{error} (data.test_set=common took {len(common)} of {len(array)} samples first)") from None
    shares = {"test_share": test_share if common is None else 0.0, "validation_share": validation_share}
    own = [split(remaining[held], client, **shares, seed=seed, strata=strata) for client, held in enumerate(holdings)]
    return own if common is None else [replace(client, test=common) for client in own]
