"""The client store: what goes in comes out to the bit, from memory and from files, and nothing is kept for nobody."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.errors import UserError
from feddlp.federation.clients import ClientStore, gather, pack, unpack
from feddlp.states import ClientsPiece

PLACES = ["memory", "disk"]


def state_of(rows, rank=2, tag=0.0):
    """States that tell clients, leaves and rounds apart."""
    base = torch.tensor(rows, dtype=torch.float32)[:, None, None] * 100 + tag
    return {
        "local/theta/x.A": base + torch.arange(rank * 3.0).view(rank, 3),
        "local/theta/x.B": base + torch.arange(4.0 * rank).view(4, rank) / 10,
        "local/theta/x.gate": base[:, 0] + torch.arange(1.0, rank + 1),
        "local/m/x.A": base + 7 + torch.zeros(rank, 3),
        "local/steps": torch.tensor(rows) + 2**40,
    }


def store_at(place, folder):
    return ClientStore(folder, on_disk=place == "disk")


def taken(store, rows):
    return gather(store.parts({row: place for place, row in enumerate(rows)}))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_packing_loses_nothing_and_copies():
    state = state_of([3, 1])
    packed = pack(state)
    assert_equal(unpack(packed), state)
    assert len(packed.matrices) == 3, "few tensors, however many layers"
    state["local/theta/x.A"].zero_()
    assert unpack(packed)["local/theta/x.A"].any()


@settings(max_examples=30, deadline=None)
@given(puts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), min_size=1), data=st.data())
@pytest.mark.parametrize("place", PLACES)
def test_the_latest_state_of_every_client_comes_back_in_any_company_and_order(place, puts, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store, latest = store_at(place, folder), {}
    for number, rows in enumerate(puts):
        store.put(f"round-{number}.safetensors", rows, state_of(rows, tag=float(number)))
        latest |= dict.fromkeys(rows, number)
    asked = data.draw(st.lists(st.sampled_from(sorted(latest)), min_size=1, unique=True))
    expected = [state_of([row], tag=float(latest[row])) for row in asked]
    whole = {name: torch.cat([state[name] for state in expected]) for name in expected[0]}
    assert_equal(taken(store, asked), whole)
    again = store_at(place, folder)
    again.load([ClientsPiece.model_validate_json(piece.model_dump_json()) for piece in store.flush()])
    assert_equal(taken(again, asked), whole)
    held = {row for block in store.blocks.values() for row in block.rows if store.where[row][0] is block}
    assert held == set(latest)
    assert all(any(store.where[row][0] is block for row in block.rows) for block in store.blocks.values())


@pytest.mark.parametrize("place", PLACES)
def test_clients_with_fewer_ranks_get_dead_ones(place, tmp_path):
    store = store_at(place, tmp_path)
    store.put("wide.safetensors", [0], state_of([0], rank=3))
    store.put("narrow.safetensors", [1], state_of([1], rank=1))
    store.put("none.safetensors", [2], state_of([2], rank=0))
    found = taken(store, [2, 0, 1])
    for place_, (row, rank) in enumerate([(2, 0), (0, 3), (1, 1)]):
        own = state_of([row], rank=rank)
        assert torch.equal(found["local/theta/x.A"][place_, :rank], own["local/theta/x.A"][0])
        assert torch.equal(found["local/theta/x.B"][place_, :, :rank], own["local/theta/x.B"][0])
        assert not found["local/theta/x.A"][place_, rank:].any()
        assert not found["local/theta/x.B"][place_, :, rank:].any()
        assert not found["local/theta/x.gate"][place_, rank:].any()
        assert found["local/steps"][place_] == row + 2**40


def test_a_block_in_order_is_not_copied():
    store = ClientStore()
    store.put("block", [4, 2], state_of([4, 2]))
    memory = store.blocks["block"].packed.matrices["local/theta"].untyped_storage().data_ptr()
    assert taken(store, [4, 2])["local/theta/x.A"].untyped_storage().data_ptr() == memory
    assert taken(store, [2, 4])["local/theta/x.A"].untyped_storage().data_ptr() != memory


@pytest.mark.parametrize("place", PLACES)
def test_no_more_than_twice_what_clients_need_is_kept(place, tmp_path):
    store, draw = store_at(place, tmp_path), torch.Generator().manual_seed(0)
    for number in range(30):
        rows = torch.randperm(40, generator=draw)[:8].tolist()
        store.put(f"{number}.safetensors", rows, state_of(rows, tag=number))
        assert sum(len(block.rows) for block in store.blocks.values()) <= 2 * len(store.where)


def test_only_new_blocks_are_written(tmp_path):
    store = ClientStore(tmp_path)
    store.put("a.safetensors", [0, 1], state_of([0, 1]))
    store.flush()
    before = (tmp_path / "a.safetensors").stat()
    store.put("b.safetensors", [1], state_of([1]))
    assert [piece.file for piece in store.flush()] == ["a.safetensors", "b.safetensors"]
    after = (tmp_path / "a.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_on_the_disk_nothing_stays_in_memory(tmp_path):
    store = ClientStore(tmp_path, on_disk=True)
    store.put("a.safetensors", [0], state_of([0]))
    assert store.blocks["a.safetensors"].packed is None
    assert (tmp_path / "a.safetensors").is_file()


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_file_is_named_before_it_is_used(place, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store = ClientStore(folder)
    store.put("round-0001-0.safetensors", [0, 1], state_of([0, 1]))
    listed, file = store.flush(), folder / "round-0001-0.safetensors"
    content = bytearray(file.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= data.draw(st.integers(1, 255))
    else:
        del content[where:]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"round-0001-0\.safetensors is damaged"):
        load_and_use(store_at(place, folder), listed)


def load_and_use(store, listed):
    store.load(listed)
    store.parts({1: 0})


def test_a_missing_file_is_named(tmp_path):
    store = ClientStore(tmp_path, on_disk=True)
    store.put("a.safetensors", [0], state_of([0]))
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read .*No such file"):
        store.parts({0: 0})


def test_a_method_without_state_keeps_nothing():
    store = ClientStore()
    store.put("a", [0, 1], {})
    assert not store.blocks
    assert not store.where
