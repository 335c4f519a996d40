"""The embedded model, loaded once."""

from __future__ import annotations

import os

import pytest

from feddlp import materials
from feddlp.data import datasets

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")


@pytest.fixture(autouse=True, scope="module")
def model_loaded_once(backbones, digits):
    """The embedded model and the digits are the same for all tests."""
    from feddlp.federation.flower import node

    original = datasets.load

    def load(source, resize, *rest, **options):
        return digits if source.name == "digits" else original(source, resize, *rest, **options)

    node.load.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(materials, "load_backbone", lambda checkpoint, adapt, *rest: backbones[adapt])
        patch.setattr(datasets, "load", load)
        yield
    node.load.cache_clear()
