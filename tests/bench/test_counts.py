"""Operations counted as they run, against closed formulas."""

from __future__ import annotations

import pytest
import torch

from feddlp.bench.measure import counter, one_step
from feddlp.bench.options import BenchOptions
from feddlp.bench.synthetic import Workload, model_config, random_model
from feddlp.model.family import family_of, image_tokens

CONFIG = model_config("tiny-clip")


def tower_flops(config, tower: str, tokens: int) -> int:
    """One image or prompt through a frozen tower: blocks of four projections of attention, its two products, an MLP."""
    part, family = config.text_config if tower == "text" else config.vision_config, family_of(config)
    width, inner, embedding = part.hidden_size, part.intermediate_size, 0
    if tower == "image":
        tokens = image_tokens(config)
        patches = tokens - family.image_tokens_beside_patches
        embedding = 2 * patches * part.num_channels * part.patch_size**2 * width
    block = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width
    head = 2 * width * family.feature_width[tower](config)
    if tower not in family.pooled:  # a head that attends to all tokens with one query
        head = 4 * tokens * width**2 + 4 * width**2 + 4 * tokens * width + 4 * width * inner
    return embedding + part.num_hidden_layers * block + head


def counted(run) -> int:
    with counter() as count:
        run()
    return count.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["tiny-clip", "siglip"])
def test_a_forward_pass_of_either_tower_is_the_closed_formula(kind, dtype, checkpoints):
    config = model_config(str(checkpoints.get(kind, kind)))
    model, side, words = random_model(config).to(dtype), config.vision_config.image_size, config.text_config.vocab_size
    pixels, tokens = torch.randn(3, 3, side, side, dtype=dtype), torch.randint(0, words, (5, 12))
    with torch.no_grad():
        assert counted(lambda: model.get_image_features(pixels)) == 3 * tower_flops(config, "image", 0)
        assert counted(lambda: model.get_text_features(tokens)) == 5 * tower_flops(config, "text", 12)


def test_a_pass_back_to_the_inputs_of_all_blocks_is_the_closed_formula():
    """Weights are frozen, so each linear layer costs as much as forward, and attention two and a half times that."""
    clip, vision = random_model(CONFIG).eval().requires_grad_(False), CONFIG.vision_config
    first: list[torch.Tensor] = []

    def wake(module, inputs, output):
        first.append(output.requires_grad_())

    clip.vision_model.pre_layrnorm.register_forward_hook(wake)
    features = clip.get_image_features(torch.randn(2, 3, vision.image_size, vision.image_size)).pooler_output
    back = counted(lambda: torch.autograd.grad(features.sum(), first))

    patches = (vision.image_size // vision.patch_size) ** 2
    width, tokens = vision.hidden_size, patches + 1
    embedding = 2 * patches * 3 * vision.patch_size**2 * width
    attention = vision.num_hidden_layers * 4 * tokens**2 * width
    assert back == 2 * (tower_flops(CONFIG, "image", 0) - embedding + 1.5 * attention)


def test_vit_b_32_takes_what_the_literature_says():
    """4.4 billion multiply-adds an image (ViT-B/32 at 224)."""
    assert tower_flops(model_config("vit-b-32"), "image", 0) / 2e9 == pytest.approx(4.4, rel=0.02)
    assert tower_flops(model_config("vit-b-16"), "image", 0) / 2e9 == pytest.approx(17.5, rel=0.02)


@pytest.mark.parametrize("adapt", ["image", "text", "both"])
def test_a_step_takes_about_what_the_algorithm_asks_for(adapt):
    """Two passes that learn and one that teaches, less what nobody needs, and the adapters on top."""
    words = {"classes": 5, "classes_per_client": 2, "dtype": "float32", "device": "cpu", "clients": 2}
    options = BenchOptions(model="tiny-clip", adapt=adapt, batch_size=4, **words)
    flops, seconds = one_step(Workload(options, options.build_method()))
    towers = {"image": tower_flops(CONFIG, "image", 0), "text": 5 / 4 * tower_flops(CONFIG, "text", 12)}
    asked = 5 * sum(amount for tower, amount in towers.items() if adapt in (tower, "both"))
    assert 0.3 * asked < flops < 1.4 * asked
    assert 0 < seconds < 60
