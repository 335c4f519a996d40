"""Costs are counted on the real tensors."""

from __future__ import annotations

import pytest

from feddlp.costs import trainable_parameters
from feddlp.methods import registry
from feddlp.training.cohort import initial


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", sorted(registry()))
def test_parameters_are_those_of_the_adapters_a_client_starts_with(backbones, name, tower):
    backbone, method = backbones[tower], registry()[name]()
    counted = trainable_parameters(method, backbone.sites)
    learning = {name: adapter for name, adapter in method.adapters().items() if name not in method.frozen}
    for adapter_name, adapter in learning.items():
        start = initial(adapter, backbone, 0, adapter_name, 0)
        assert counted.pop(adapter_name) == sum(leaf.numel() for leaf in start.values()) > 0
    assert counted == {}


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_shared_adapter_is_one_that_clients_have(name):
    method = registry()[name]()
    assert set(method.shared) <= set(method.adapters())
