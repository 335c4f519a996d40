"""Operations counted as they run, against closed formulas."""

from __future__ import annotations

import pytest
import torch

from feddlp.bench.counts import attention_backward_flops, counter, nominal_flops, passes, tower_flops
from feddlp.bench.options import BenchOptions
from feddlp.bench.synthetic import model_config, random_model
from feddlp.bench.workload import make_workload
from feddlp.hyperparameters import build_method
from feddlp.methods.base import Method
from feddlp.methods.feddlp import FedDLP

CONFIG = model_config("tiny-clip")


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


def test_attention_backward_is_five_products():
    shape = (2, 3, 7, 4)
    assert attention_backward_flops(shape, shape, shape, shape) == 5 * 2 * (2 * 3) * 7 * 7 * 4


def test_vit_b_32_takes_what_the_literature_says():
    """4.4 billion multiply-adds an image (ViT-B/32 at 224)."""
    assert tower_flops(model_config("vit-b-32"), "image", 0) / 2e9 == pytest.approx(4.4, rel=0.02)
    assert tower_flops(model_config("vit-b-16"), "image", 0) / 2e9 == pytest.approx(17.5, rel=0.02)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FedDLP(), (2, 1)),
        (FedDLP(update_order="simultaneous"), (2, 0)),
        (build_method("flora", {}), (1, 0)),
        (build_method("feddat", {}), (2, 1)),
        (build_method("zero_shot", {}), (0, 0)),
    ],
)
def test_passes_of_a_step(method: Method, expected):
    assert passes(method) == expected


@pytest.mark.parametrize("adapt", ["image", "text", "both"])
def test_a_step_takes_about_what_the_algorithm_asks_for(adapt):
    """Adapters come on top; an engine that leaves out what nobody needs stays below."""
    options = BenchOptions(model="tiny-clip", adapt=adapt, clients=2, batch_size=4, classes=5, classes_per_client=2)
    load = make_workload(options, torch.device("cpu"))
    batch = next(load.data.train.select([0]).in_order(4))
    executed = counted(lambda: load.first_client().fit([batch]))
    nominal = nominal_flops(CONFIG, load.method, adapt, 4, 5, load.prompts.tokens.shape[1])
    assert 0.3 * nominal < executed < 1.4 * nominal
