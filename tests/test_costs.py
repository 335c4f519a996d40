"""Costs are counted on the real tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddlp.costs import MIB, payload_bytes, trainable_parameters
from feddlp.methods import registry
from feddlp.training.cohort import initial

SIZES = {torch.float32: 4, torch.bfloat16: 2, torch.float64: 8, torch.int8: 1}
leaves = st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(list(SIZES)))


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), leaves, max_size=3), max_size=3))
def test_a_payload_is_the_bytes_of_its_tensors(shared):
    tensors = {
        name: {leaf: torch.zeros(shape, dtype=kind) for leaf, (shape, kind) in theta.items()}
        for name, theta in shared.items()
    }
    contents = [leaf.contiguous().view(-1) for theta in tensors.values() for leaf in theta.values()]
    assert payload_bytes(tensors) == sum(len(leaf) * SIZES[leaf.dtype] for leaf in contents)


def test_nothing_shared_costs_nothing():
    assert payload_bytes({}) == 0


def test_a_view_costs_what_it_would_send():
    wide = torch.zeros(1000, 1000)
    assert payload_bytes({"a": {"x": wide[:4, :8]}}) == 4 * 8 * 4


def test_a_mebibyte():
    assert payload_bytes({"a": {"x": torch.zeros(512, 512)}}) == MIB


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", sorted(registry()))
def test_parameters_are_those_of_the_adapters_a_client_starts_with(backbones, name, tower):
    backbone, method = backbones[tower], registry()[name]()
    counted = trainable_parameters(method, backbone.sites)
    for adapter_name, adapter in method.adapters().items():
        start = initial(adapter, backbone, 0, adapter_name, 0)
        assert counted.pop(adapter_name) == sum(leaf.numel() for leaf in start.values()) > 0
    assert counted == {}


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_shared_adapter_is_one_that_clients_have(name):
    method = registry()[name]()
    assert set(method.shared) <= set(method.adapters())
