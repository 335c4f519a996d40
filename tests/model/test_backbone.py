"""The frozen model is the checkpoint's own, whoever adapts it, and the paper's counts come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from feddlp.errors import UserError
from feddlp.model.adapters import Dense, FeatureAttention, LinearSite, LoRA, count_parameters
from feddlp.model.backbone import find_sites
from feddlp.model.checkpoint import load_backbone
from feddlp.model.gates import GatedLoRA
from feddlp.model.hub import EMBEDDED

PROMPTS = ["a photo of the digit three.", "a cat", "an aircraft that nobody has ever seen, in a blue sky over the sea"]


@pytest.fixture(scope="module")
def library_model():
    return CLIPModel.from_pretrained(EMBEDDED["tiny-clip"], dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (32, 32), (8, 9))]


@pytest.mark.parametrize(
    ("adapt", "adapter", "expected"),
    [
        ("text", LoRA(2), 223_232),
        ("image", LoRA(2), 334_336),
        ("text", GatedLoRA(4), 446_756),
        ("image", GatedLoRA(4), 668_964),
        ("both", LoRA(2), 223_232 + 334_336),
        ("text", LoRA(2, layers="attention_out"), 24_576),
        ("text", FeatureAttention(), 525_312),
        ("image", FeatureAttention(), 525_312),
        ("both", Dense(), 151_277_313 - 1),  # every weight of the model but the logit scale
    ],
)
def test_vit_b32_has_the_papers_parameter_counts(adapt, adapter, expected):
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig())  # the default configuration is ViT-B/32
    sites = find_sites(model, adapt)
    linear = [site for site in sites.values() if isinstance(site, LinearSite)]
    assert len(linear) == (146 if adapt == "both" else 73)
    assert count_parameters(adapter, sites) == expected


def test_the_embedded_checkpoint_is_a_small_genuine_clip():
    folder = EMBEDDED["tiny-clip"]
    from pathlib import Path

    from safetensors import safe_open

    assert sum(file.stat().st_size for file in Path(folder).iterdir()) < 4 * 2**20
    with safe_open(f"{folder}/model.safetensors", "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.tokenize("a photo of the digit three.")
    assert tokens == ["a</w>", "photo</w>", "of</w>", "the</w>", "digit</w>", "three</w>", ".</w>"]
    assert tokenizer.decode(tokenizer("Zürich № 7")["input_ids"], skip_special_tokens=True)


def test_images_are_encoded_as_the_library_does(backbones, library_model, pictures):
    processor = AutoImageProcessor.from_pretrained(EMBEDDED["tiny-clip"])
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = F.normalize(library_model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        encoded = backbones["image"].encode_images(backbones["image"].resize(pictures))
    torch.testing.assert_close(encoded, expected, rtol=0, atol=1e-5)


def test_prompts_cut_to_the_longest_equal_prompts_padded_to_77(backbones, library_model):
    tokens = AutoTokenizer.from_pretrained(EMBEDDED["tiny-clip"])(PROMPTS, padding="max_length", return_tensors="pt")
    cut = backbones["text"].tokenize(PROMPTS)
    assert cut.shape[1] < tokens["input_ids"].shape[1] == 77
    with torch.no_grad():
        expected = F.normalize(library_model.get_text_features(**tokens).pooler_output, dim=-1)
        torch.testing.assert_close(backbones["text"].encode_texts(cut), expected, rtol=0, atol=1e-5)


def test_a_prompt_that_does_not_fit_is_refused_and_not_cut(backbones):
    with pytest.raises(UserError, match=r"has 79 tokens, the model reads 77"):
        backbones["text"].tokenize(["a photo", "a " * 77])
    assert backbones["text"].tokenize(["a photo", "a " * 75]).shape == (2, 77)


class Ones:
    def linear(self, site, layer, x):
        return torch.ones(*x.shape[:-1], layer.out_features)

    def features(self, site, features):
        return features


class Broken:
    def linear(self, site, layer, x):
        raise ZeroDivisionError


@pytest.mark.parametrize("adapt", ["image", "text"])
def test_after_an_adapted_pass_the_model_is_the_checkpoint_again(adapt, pictures):
    backbone = load_backbone("tiny-clip", adapt)
    images, tokens = backbone.resize(pictures), backbone.tokenize(PROMPTS)
    before = backbone.encode_images(images), backbone.encode_texts(tokens)
    with backbone.adapted(Ones()):
        during = backbone.encode_images(images), backbone.encode_texts(tokens)
    with pytest.raises(ZeroDivisionError), backbone.adapted(Broken()):
        backbone.encode_images(images) if adapt == "image" else backbone.encode_texts(tokens)
    after = backbone.encode_images(images), backbone.encode_texts(tokens)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(before, during, strict=True)]
    assert changed == [adapt == "image", adapt == "text"]


def test_nothing_of_the_backbone_is_trainable(backbones):
    assert not any(parameter.requires_grad for parameter in backbones["image"].model.parameters())


def test_bfloat16_is_close_to_float32(backbones, digits):
    rough = load_backbone("tiny-clip", "image", dtype=torch.bfloat16)
    with torch.no_grad():
        exact, approximate = (kind.encode_images(digits.images[:64]) for kind in (backbones["image"], rough))
    assert approximate.dtype == torch.float32
    assert (exact * approximate).sum(-1).min() > 0.999
    assert rough.logit_scale == backbones["image"].logit_scale  # read before it was rounded


def test_the_fingerprint_knows_weights_and_tower():
    first, again, other = (load_backbone("tiny-clip", adapt) for adapt in ("image", "image", "text"))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    with torch.no_grad():
        again.model.visual_projection.weight[0, 0] += 1e-3
    assert first.fingerprint() != again.fingerprint()


def test_zero_shot_on_the_digits_is_far_above_chance_and_leaves_room(backbones, digits, prompts):
    backbone = backbones["image"]
    with torch.no_grad():
        predicted = (backbone.encode_images(digits.images) @ backbone.encode_texts(prompts.tokens).T).argmax(-1)
    share = (predicted == digits.labels).float().mean().item()
    assert 0.5 < share < 0.9
