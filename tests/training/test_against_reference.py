"""The fast path against the slow twin, over several rounds, for every method, tower and objective.

In float64: Adam turns a gradient that is zero but for rounding into a full step of random sign, so in float32 two
correct programs drift apart in single entries. What float32 adds is bounded in test_cohort.py.
"""

from __future__ import annotations

import pytest
import torch

import reference
from feddlp.methods import registry
from feddlp.training.cohort import initial

ROUNDS = 3
CASES = [
    ("feddlp", "image", {"objective": "class_ce"}),
    ("feddlp", "image", {"objective": "in_batch", "gate_threshold": 0.02, "weight_decay": 0.1}),
    ("feddlp", "text", {"objective": "class_ce", "lora_init": "authors", "lr": 1e-4}),
    ("feddlp", "text", {"objective": "in_batch"}),
    ("flora", "image", {"objective": "class_ce"}),
    ("flora", "text", {"objective": "in_batch"}),
    ("local", "image", {"objective": "in_batch"}),
]


@pytest.fixture(scope="module")
def plain_clip(backbones):
    """The checkpoint's own model, without any hook of ours."""
    from transformers import CLIPModel

    from feddlp.model.backbone import locate

    return CLIPModel.from_pretrained(locate("tiny-clip"), dtype=torch.float64).eval()


def full_length_tokens(backbone, prompts):
    """The prompts padded to 77 tokens, as public implementations encode them."""
    padding = torch.full((len(prompts.tokens), 77 - prompts.tokens.shape[1]), backbone.tokenizer.pad_token_id)
    return torch.cat([prompts.tokens, padding], dim=1)


def double(theta):
    return {leaf: value.double() for leaf, value in theta.items()}


@pytest.mark.parametrize(("name", "tower", "fields"), CASES, ids=lambda value: str(value))
def test_rounds_equal_the_slow_twin(name, tower, fields, plain_clip, make_federation, prompts, digits):
    method = registry()[name](**fields)
    federation = make_federation(method, tower, exact=True)
    backbone, adapters = federation.cohort.forward.backbone, method.adapters()
    starts = [
        {
            key: double(initial(adapter, backbone, 0, key, "server" if key in method.shared else client))
            for key, adapter in adapters.items()
        }
        for client in range(3)
    ]
    pixels = (digits.images - backbone.pixel_mean) / backbone.pixel_std
    clients, server = reference.federate(
        plain_clip,
        starts,
        {key: double(theta) for key, theta in federation.servers[0].shared.items()},
        pixels,
        digits.labels,
        list(federation.data.train.indices),
        full_length_tokens(backbone, prompts),
        method,
        rounds=ROUNDS,
        batch_size=4,
        seed=0,
    )
    for _ in range(ROUNDS):
        federation.play_round()

    for key in adapters:
        for leaf, value in federation.cohort.theta[key].items():
            expected = torch.stack([client.models[key].leaves()[leaf].data for client in clients])
            torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-9)
    for key, theta in federation.servers[0].shared.items():
        for leaf, value in theta.items():
            torch.testing.assert_close(value, server[key][leaf], rtol=0, atol=1e-9)
