"""The made-up federation: of the right shapes, the same every time, and not degenerate."""

from __future__ import annotations

import pytest
import torch

from feddlp.bench.synthetic import (
    deal,
    decode,
    model_config,
    photographs,
    random_backbone,
    random_data,
    random_model,
    random_pool,
    random_prompts,
    random_tokens,
)
from feddlp.errors import UserError

CONFIG = model_config("tiny-clip")


def test_weights_are_random_and_the_same_every_time():
    first, second = random_model(CONFIG).state_dict(), random_model(CONFIG).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    matrices = [value for value in first.values() if value.dim() > 1]
    assert len({value.sum().item() for value in matrices}) == len(matrices)


def test_names_and_unknown_names():
    assert model_config("vit-b-16").vision_config.patch_size == 16
    with pytest.raises(UserError, match="/no/such/model cannot be loaded"):
        model_config("/no/such/model")


def test_images_and_prompts_are_told_apart():
    """A model whose outputs are all alike would hide mistakes from the comparison with the naive twin."""
    backbone = random_backbone(CONFIG, "image", "cpu", torch.float32)
    pool, prompts = random_pool(backbone, 5, 9), random_prompts(backbone, 5)
    logits = backbone.logit_scale * backbone.encode_images(pool.images) @ prompts.features.T
    assert logits.isfinite().all()
    assert (logits.std(0) > 0.05).all()
    assert (logits.std(1) > 0.05).all()


def test_prompts_have_one_end_each_and_different_lengths():
    tokens = random_tokens(CONFIG, 37)
    end = CONFIG.text_config.eos_token_id
    lengths = (tokens == end).int().argmax(1) + 1
    assert tokens.shape == (37, 12)
    assert {9, 12} <= set(lengths.tolist()) <= {9, 10, 11, 12}
    assert (tokens[:, 0] == CONFIG.text_config.bos_token_id).all()
    for row, length in zip(tokens, lengths, strict=True):
        assert (row[length - 1 :] == end).all()


def test_photographs_are_larger_than_the_model_reads():
    (file,) = photographs(1, 224)
    assert decode(file).size == (493, 381)
    assert decode(file).mode == "RGB"


def test_clients_hold_their_own_few_classes():
    labels = torch.arange(40) % 10
    held = deal([7, 30], labels, 3)
    assert [len(rows) for rows in held] == [7, 30]
    assert all(labels[rows].unique().numel() == 3 for rows in held)
    assert set(labels[held[0]].tolist()) != set(labels[held[1]].tolist())


@pytest.mark.parametrize(("adapt", "shape"), [("image", (3, 32, 32)), ("text", (96,))])
def test_batches_hold_images_or_features(adapt, shape):
    backbone = random_backbone(CONFIG, adapt, "cpu", torch.float32)
    data = random_data(backbone, random_pool(backbone, 4, 6), (6, 3), 2)
    assert next(data.train.in_order(4)).inputs.shape == (2, 4, *shape)
    assert (data.train.sizes().tolist(), data.test.sizes().tolist()) == ([6, 3], [2, 1])
    assert data.validation.sizes().sum() == 0
