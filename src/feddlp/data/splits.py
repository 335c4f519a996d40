"""How samples are cut into training, validation and test, by each client or once for all.

    own     every client cuts its samples 75/25 into training and test (the paper's protocol)
    common  a test set is held out of the whole data set before anything is dealt, the same for every client

Either way, a client carves a validation share out of its training part. Every cut is a shuffle at an address of its
own. A stratified cut has the same sizes as a plain one, and draws class by class (largest remainder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from feddlp.data.partition import Samples, partition
from feddlp.data.source import PARTS, Part
from feddlp.errors import UserError, counted
from feddlp.randomness import generator

if TYPE_CHECKING:
    from feddlp.config import DataConfig


@dataclass(frozen=True)
class ClientSplit:
    """Indices into the data set, three disjoint parts."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test)


def whole_part(share: float, count: int) -> int:
    """floor(share * count); the small term keeps a product such as 0.9 * 10 from falling to 8 by rounding."""
    return int(share * count + 1e-9)


def kept_for_training(count: int, test_share: float) -> int:
    """floor((1 - test_share) n), but 1 at least and n - 1 at most; all n where nothing is asked for testing."""
    return max(0, min(count - 1, max(1, whole_part(1 - test_share, count)))) if test_share else count


def first_of_each(groups: np.ndarray, count: int) -> np.ndarray:
    """A mask of `count` samples, from each group the first ones, in number by largest remainder.

    Equal remainders go to the group that appears first, which is chance where the samples were shuffled.
    """
    if not count:
        return np.zeros(len(groups), dtype=bool)
    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    quota, remainder = np.divmod(sizes * count, len(groups))
    quota[np.lexsort((first, -remainder))[: count - quota.sum()]] += 1
    together = np.argsort(group, kind="stable")
    rank = np.empty(len(groups), dtype=np.int64)
    rank[together] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.asarray(rank < quota[group])


def cut(order: Tensor, strata: np.ndarray | None, test: int, validation_share: float) -> ClientSplit:
    """From shuffled samples the last (of each class) for testing, the first for validation, the others for training."""
    # One group for all makes the plain cut: order[:validation], order[validation:kept], order[kept:].
    groups = np.zeros(len(order), dtype=np.int64) if strata is None else strata[order.numpy()]
    kept = torch.from_numpy(np.ascontiguousarray(~first_of_each(groups[::-1], test)[::-1]))
    rest = order[kept]
    validation = max(0, min(len(rest) - 1, whole_part(validation_share, len(rest))))
    chosen = torch.from_numpy(first_of_each(groups[kept.numpy()], validation))
    return ClientSplit(rest[~chosen], rest[chosen], order[~kept])


def split(
    indices: np.ndarray,
    client: int,
    *,
    test_share: float,
    validation_share: float,
    seed: int,
    strata: np.ndarray | None = None,
) -> ClientSplit:
    """One client's samples, shuffled and cut: n_train = floor((1 - test_share) n), validation out of that.

    Training keeps at least one sample, and so does the test part unless `test_share` is 0.

    Args:
        strata: the class ids of the whole data set. Where given, the test part keeps the class shares of the
            client's samples, and the validation part those of what is left, each to within one sample.
    """
    order = torch.from_numpy(indices)[torch.randperm(len(indices), generator=generator(seed, "split", client))]
    return cut(order, strata, len(order) - kept_for_training(len(order), test_share), validation_share)


def hold_out(
    samples: int, *, test_share: float, seed: int, strata: np.ndarray | None = None
) -> tuple[np.ndarray, Tensor]:
    """The indices left to deal, in order, and the common test set; sizes and `strata` as in `split`."""
    order = torch.randperm(samples, generator=generator(seed, "common_test"))
    parts = cut(order, strata, samples - kept_for_training(samples, test_share), 0.0)
    return np.sort(parts.train.numpy()), parts.test


def split_clients(
    labels: np.ndarray | torch.Tensor | Sequence[int],
    data: DataConfig,
    owners: Sequence[str] = (),
    parts: Sequence[Part] = (),
    ids: Sequence[int] = (),
) -> list[ClientSplit]:
    """Partition and cut: what every client trains on, validates on and is tested on.

    Args:
        owners: the natural client of each sample, for the natural partition.
        parts: the official split of each sample. Where `data.splits` keeps it, its test part is every client's test
            set (of a natural client, its own samples in it), and the others are dealt; `data.test_set` has no say.
        ids: who the clients are, by which their cuts are addressed; 0, 1, ... where left out.

    Raises:
        UserError: where the request cannot be met; names the option and the numbers.
    """
    check_request(data, parts)
    array, seed = np.asarray(labels), data.partition_seed
    strata = array if data.stratified else None
    remaining, common, official = np.arange(len(array)), None, np.empty(0, dtype=np.int64)
    if data.splits == "official":
        official = official_test(parts)
    if data.splits == "official" and data.partition != "natural":
        remaining, common = np.setdiff1d(remaining, official), torch.from_numpy(official)
    elif data.splits != "official" and data.test_set == "common":
        remaining, common = hold_out(len(array), test_share=data.test_share, seed=seed, strata=strata)
    own = [owners[int(index)] for index in remaining] if owners else ()
    try:
        holdings = partition(Samples(array[remaining], int(array.max(initial=-1)) + 1, own), data)
    except UserError as error:
        if common is None:
            raise
        raise UserError(f"{error} (the common test set took {len(common)} of {len(array)} samples first)") from None
    found = []
    for client, held in zip(ids or range(data.clients), holdings, strict=True):
        mine, test = remaining[held], common
        if len(official) and common is None:  # a natural client has its own samples of the official test part
            mine, test = np.setdiff1d(mine, official), torch.from_numpy(np.intersect1d(mine, official))
            if not len(mine) or not len(test):
                raise UserError(
                    f"data.splits=official leaves natural client {client} {counted(len(mine), 'sample')} to train "
                    f"on and {len(test)} to test on; use data.splits=merged"
                )
        share = data.test_share if test is None else 0.0
        cut = split(mine, client, test_share=share, validation_share=data.validation_share, seed=seed, strata=strata)
        found.append(cut if test is None else replace(cut, test=test))
    return found


def check_request(data: DataConfig, parts: Sequence[Part]) -> None:
    if data.newcomers >= data.clients:
        raise UserError(
            f"data.newcomers={data.newcomers} leaves none of data.clients={data.clients} for the federation; "
            f"use at most {data.clients - 1}"
        )
    if data.splits == "official" and not parts:
        raise UserError(
            f"data.splits=official: {data.dataset} has no official splits; use data.splits=merged, "
            "or csv: with a column split"
        )


def official_test(parts: Sequence[Part]) -> np.ndarray:
    """Where the test part lies.

    Raises:
        UserError: official splits without one, or with nothing else.
    """
    places = np.flatnonzero(np.asarray(parts) == "test")
    if not 0 < len(places) < len(parts):
        raise UserError(
            f"data.splits=official: the test part has {len(places)} of {counted(len(parts), 'image')}, which leaves "
            f"{'none to train on' if len(places) else 'none to test on'}; use data.splits=merged"
        )
    return places


def class_counts(
    splits: Sequence[ClientSplit], labels: np.ndarray | Sequence[int], classes: int
) -> list[dict[str, list[int]]]:
    """For each client and part, how many samples of each class it holds."""
    array = np.asarray(labels)
    return [
        {part: np.bincount(array[getattr(client, part).numpy()], minlength=classes).tolist() for part in PARTS}
        for client in splits
    ]
