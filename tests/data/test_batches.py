"""Batches with a client axis, over clients of any sizes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddlp.data.batches import Batch, ClientData

CLASSES = 7


@st.composite
def ragged(draw, smallest: int = 0) -> ClientData:
    """Up to five clients with their own samples, scattered over the data; a sample's input is its own number."""
    sizes = draw(st.lists(st.integers(smallest, 13), min_size=1, max_size=5))
    total = sum(sizes) + draw(st.integers(1, 4))  # some samples belong to nobody
    order = torch.randperm(total, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    inputs = torch.arange(total)[:, None] * torch.tensor([1.0, -1.0])
    return ClientData(inputs, torch.arange(total) * 3 % CLASSES, torch.split(order, [*sizes, total - sum(sizes)])[:-1])


batch_sizes = st.integers(1, 6)
addresses = st.fixed_dictionaries({name: st.integers(0, 9) for name in ("seed", "round", "epoch")})


def rows(batches: list[Batch], client: int) -> list[int]:
    """The sample numbers of one client, in order."""
    training = [batch for batch in batches if client < len(batch.inputs)]
    return [int(x) for batch in training for x in batch.inputs[client, :, 0][batch.mask[client]]]


def both_orders(data: ClientData, size: int, address: dict[str, int]) -> list[list[Batch]]:
    return [list(data.in_order(size)), shuffled(data, size, range(len(data.indices)), address)]


def shuffled(data: ClientData, size: int, clients: Sequence[int], address: dict[str, int]) -> list[Batch]:
    owners = [(client, address["seed"]) for client in clients]
    return list(data.shuffled(size, owners, address["round"], address["epoch"]))


@given(ragged(), batch_sizes, addresses)
def test_every_sample_of_every_client_comes_exactly_once(data, size, address):
    for batches in both_orders(data, size, address):
        for client, index in enumerate(data.indices):
            assert sorted(rows(batches, client)) == sorted(index.tolist())


@given(ragged(), batch_sizes)
def test_evaluation_goes_in_stored_order(data, size):
    batches = list(data.in_order(size))
    for client, index in enumerate(data.indices):
        assert rows(batches, client) == index.tolist()


@given(ragged(), batch_sizes, addresses)
def test_rows_are_padded_on_the_right(data, size, address):
    for batches in both_orders(data, size, address):
        for batch in batches:
            lengths = batch.mask.sum(1)
            assert torch.equal(batch.mask, torch.arange(batch.mask.shape[1]) < lengths[:, None])
            assert batch.labels.shape == batch.mask.shape
            assert batch.inputs.shape[1] == batch.mask.shape[1]
            assert 1 <= batch.mask.shape[1] == lengths.max() <= size


@given(ragged(), batch_sizes, addresses)
def test_labels_belong_to_their_inputs(data, size, address):
    for batches in both_orders(data, size, address):
        for batch in batches:
            training = batch.mask[: len(batch.inputs)]
            assert torch.equal(batch.labels[batch.mask], data.labels[batch.inputs[..., 0].long()[training]])


@given(ragged(), batch_sizes, addresses)
def test_the_last_batch_is_kept_and_a_finished_client_has_an_empty_row(data, size, address):
    for batches in both_orders(data, size, address):
        assert len(batches) == -(-int(data.sizes().max()) // size)
        for step, batch in enumerate(batches):
            expected = (data.sizes() - step * size).clamp(0, size)
            assert torch.equal(batch.mask.sum(1), expected)


@given(st.data(), ragged(), batch_sizes, addresses)
def test_a_clients_order_does_not_depend_on_its_company(draws, data, size, address):
    clients = range(len(data.indices))
    chosen = draws.draw(st.lists(st.sampled_from(clients), min_size=1, unique=True))
    other_size = draws.draw(batch_sizes)
    together = shuffled(data, size, clients, address)
    alone = shuffled(data.select(chosen), other_size, chosen, address)
    for place, client in enumerate(chosen):
        assert rows(alone, place) == rows(together, client)


def order(seed: int = 0, client: int = 0, round: int = 0, epoch: int = 0) -> Tensor:
    """The order of 60 samples at one address."""
    data = ClientData(torch.arange(60)[:, None], torch.zeros(60, dtype=torch.int64), (torch.arange(60),))
    (batch,) = data.shuffled(60, [(client, seed)], round, epoch)
    return batch.inputs.flatten()


@pytest.mark.parametrize("part", ["seed", "client", "round", "epoch"])
def test_each_part_of_the_address_changes_the_order(part):
    assert not torch.equal(order(), order(**{part: 1}))


def test_the_same_address_gives_the_same_order_whatever_was_drawn_before():
    first = order()
    torch.rand(5)
    assert torch.equal(first, order())
    assert not torch.equal(first, torch.arange(60))


@given(st.data(), ragged())
def test_selected_clients_keep_their_samples(draws, data):
    chosen = draws.draw(st.lists(st.sampled_from(range(len(data.indices))), unique=True))
    part = data.select(chosen)
    assert part.sizes().tolist() == [len(data.indices[client]) for client in chosen]
    for index, client in zip(part.indices, chosen, strict=True):
        assert torch.equal(index, data.indices[client])


def test_clients_without_samples_give_no_batch():
    empty = torch.arange(0)
    data = ClientData(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), (empty, empty))
    assert list(data.in_order(4)) == []
    assert list(data.shuffled(4, [(0, 0), (1, 0)], 0, 0)) == []


def test_clients_and_ids_must_be_as_many():
    data = ClientData(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), (torch.arange(2), torch.arange(2, 3)))
    with pytest.raises(ValueError, match="zip"):
        list(data.shuffled(4, [(0, 0)], 0, 0))


def test_pixels_stay_bytes():
    data = ClientData(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), (torch.arange(3),))
    (batch,) = data.in_order(8)
    assert batch.inputs.dtype == torch.uint8
    assert batch.inputs.shape == (1, 3, 3, 4, 4)


@given(ragged(), batch_sizes, addresses)
def test_clients_at_the_end_that_have_finished_have_no_inputs(data, size, address):
    for batch in shuffled(data, size, range(len(data.indices)), address):
        assert len(batch.inputs) == batch.mask.any(1).nonzero().max() + 1
        assert len(batch.labels) == len(batch.mask) == len(data.indices)


@given(ragged(), batch_sizes)
def test_among_its_own_classes_every_sample_keeps_its_class(data, size):
    for batch in data.in_order(size):
        narrow = batch.of_its_classes()
        named = narrow.classes.gather(1, narrow.labels)
        assert torch.equal(named[batch.mask], batch.labels[batch.mask])
        held = [set(labels[mask].tolist()) for labels, mask in zip(batch.labels, batch.mask, strict=True)]
        assert narrow.classes.shape[1] == max(len(classes) for classes in held)
        for classes, row in zip(held, narrow.classes.tolist(), strict=True):
            assert classes <= set(row)
            assert len(set(row)) == len(row)
