"""The naive twin against the fast path: the same losses and adapters, step by step."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedConfig

from feddlp.bench.naive import NaiveClient
from feddlp.bench.synthetic import (
    LOGIT_SCALE,
    image_processor,
    model_config,
    random_data,
    random_model,
    random_pool,
    random_prompts,
)
from feddlp.methods.feddlp import FedDLP
from feddlp.model.backbone import Backbone
from feddlp.training.cohort import Cohort, Slot

CONFIG = model_config("tiny-clip")
SIZES = (11, 6)
BATCH = 4


class Rounded:
    """The image processor, rounding as the backbone does: the library normalises in float32 whatever the model."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def __call__(self, images, return_tensors):
        pixels = self.backbone.resize(images)
        return {"pixel_values": (pixels - self.backbone.pixel_mean) / self.backbone.pixel_std}


def both(adapt: str, objective: str, dtype: torch.dtype, config: PreTrainedConfig = CONFIG):
    """Two clients side by side, the second of them in the naive way as well, and their samples."""
    method = FedDLP(objective=objective, lr=0.01, gate_threshold=0.02)
    backbone = Backbone(random_model(config).to(dtype), None, image_processor(config), adapt, LOGIT_SCALE)
    pool, prompts = random_pool(backbone, 7, 20), random_prompts(backbone, 7)
    train = random_data(backbone, pool, SIZES, 3).train
    cohort = Cohort([Slot(0, 0, method), Slot(1, 0, method)], backbone, prompts)
    start = {name: {leaf: v[1].detach() for leaf, v in theta.items()} for name, theta in cohort.theta.items()}
    twin = NaiveClient(
        random_model(config).to(dtype),
        Rounded(backbone) if dtype == torch.float64 else image_processor(config),
        method,
        {name: {leaf: value.to(dtype) for leaf, value in theta.items()} for name, theta in start.items()},
        prompts.tokens,
        pool.files,
        pool.labels,
    )
    return cohort, twin, train


@pytest.mark.parametrize("adapt", ["image", "text"])
@pytest.mark.parametrize("objective", ["class_ce", "in_batch"])
@pytest.mark.parametrize("kind", ["tiny-clip", "siglip"])
def test_the_naive_twin_learns_the_same(kind, adapt, objective, checkpoints):
    cohort, twin, train = both(adapt, objective, torch.float64, model_config(str(checkpoints.get(kind, kind))))
    order = train.indices[1]
    for batch, rows in zip(train.in_order(BATCH), order.split(BATCH), strict=False):
        ours, theirs = cohort.fit([batch]), twin.step(rows)
        for name, loss in theirs.items():
            assert loss == pytest.approx(ours[name][1].item(), abs=1e-9)
    for name, theta in cohort.theta.items():
        for leaf, value in theta.items():
            site, _, kind = leaf.rpartition(".")
            learned = twin.clip.get_submodule(site).paths[name].leaves[kind]
            torch.testing.assert_close(learned, value[1], rtol=0, atol=1e-8)


def test_gates_are_pruned_and_both_adapters_move():
    """Else the test above would compare two programs that do nothing."""
    _, twin, train = both("image", "class_ce", torch.float64)
    before = [value.detach().clone() for name in ("local", "global") for value in twin.parameters(name)]
    for rows in train.indices[1].split(BATCH):
        twin.step(rows)
    after = [value for name in ("local", "global") for value in twin.parameters(name)]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert any((gate == 0).any() for gate in twin.parameters("local", ("gate",)))


def test_in_float32_the_first_losses_agree_too():
    cohort, twin, train = both("image", "class_ce", torch.float32)
    batch, rows = next(train.in_order(BATCH)), train.indices[1][:BATCH]
    ours, theirs = cohort.fit([batch]), twin.step(rows)
    assert {name: pytest.approx(loss, abs=1e-4) for name, loss in theirs.items()} == {
        name: loss[1].item() for name, loss in ours.items()
    }


def test_prompts_are_read_at_full_length():
    _, twin, _ = both("image", "class_ce", torch.float32)
    assert twin.tokens.shape == (7, CONFIG.text_config.max_position_embeddings)


def test_pixels_are_those_of_the_fast_path_up_to_rounding():
    cohort, twin, train = both("image", "class_ce", torch.float32)
    batch, rows = next(train.in_order(BATCH)), train.indices[1][:BATCH]
    ours = (batch.inputs[1] - cohort.backbone.pixel_mean) / cohort.backbone.pixel_std
    torch.testing.assert_close(twin.read(rows), ours, rtol=0, atol=1e-6)
