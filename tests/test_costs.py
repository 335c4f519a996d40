"""Costs are counted on the real tensors."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from feddlp.costs import trainable_parameters
from feddlp.federation.host import Lane
from feddlp.federation.rounds import first_shared
from feddlp.files import MIB
from feddlp.methods import registry
from feddlp.model.backbone import find_sites
from feddlp.training.cohort import initial


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", sorted(registry()))
def test_parameters_are_those_of_the_adapters_a_client_starts_with(backbones, name, tower):
    backbone, method = backbones[tower], registry()[name]()
    counted = trainable_parameters(method, backbone.sites)
    learning = {name: adapter for name, adapter in method.adapters().items() if name not in method.frozen}
    for adapter_name, adapter in learning.items():
        start = initial(adapter, backbone.sites, 0, adapter_name, 0)
        assert counted.pop(adapter_name) == sum(leaf.numel() for leaf in start.values()) > 0
    assert counted == {}


def sent_parameters(method, sites):
    """Parameters that travel in one direction."""
    shared = first_shared(Lane(0, method), sites, torch.empty(0))
    return sum(value.numel() for theta in shared.values() for value in theta.values())


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_shared_adapter_is_one_that_clients_have(name):
    method = registry()[name]()
    assert set(method.shared) <= set(method.adapters())


@pytest.mark.parametrize(
    ("name", "tower", "mib"),
    [
        ("feddlp", "text", 1.703125),
        ("feddat", "text", 1.703125),
        ("flora", "image", 2.55078125),
        ("feddlp", "image", 2.55078125),
        ("fedclip", "text", 4.0078125),
        ("fedclip", "image", 4.0078125),
    ],
)
def test_a_round_on_vit_b32_costs_what_the_paper_says(name, tower, mib):
    with torch.device("meta"):
        sites = find_sites(CLIPModel(CLIPConfig()), tower)
    assert 2 * 4 * sent_parameters(registry()[name](), sites) / MIB == mib


def test_what_stays_at_home_or_is_known_costs_nothing(backbones):
    sites = backbones["text"].sites
    whole = sent_parameters(registry()["flora"](), sites)
    only_a = sent_parameters(registry()["flora"](factors_sent="A"), sites)
    only_b = sent_parameters(registry()["flora"](factors_trained="B"), sites)
    assert only_a + only_b == whole
    assert sent_parameters(registry()["local"](), sites) == 0
