"""Every family gives what the library's own model gives, and every site of it acts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, SiglipConfig, SiglipModel

from checkpoints import CHECKPOINTS, POSITIONS, SENTENCES
from feddlp.data.batches import Batch
from feddlp.data.prompts import Prompts
from feddlp.errors import UserError
from feddlp.model.adapters import Dense, FeatureSite, LinearSite, LoRA, WeightSite, count_parameters
from feddlp.model.backbone import find_sites
from feddlp.model.checkpoint import load_backbone
from feddlp.model.family import temperature
from feddlp.model.forward import Forward

CASED = [*SENTENCES, "A Photo of the digit THREE!"]
SIGLIPS = ("siglip", "siglip2")
kinds = pytest.mark.parametrize("kind", CHECKPOINTS)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (16, 16), (9, 8))]


@pytest.fixture(scope="module")
def library(checkpoints, pictures):
    """What the library says with its own model, tokenizer and image processor."""

    def forward(kind, prompts=CASED):
        folder = checkpoints[kind]
        prompts = [prompt.lower() for prompt in prompts] if kind == "siglip2" else prompts
        tokens = AutoTokenizer.from_pretrained(folder)(
            prompts, padding="max_length", max_length=POSITIONS, return_tensors="pt"
        )
        pixels = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        masked = tokens if kind not in SIGLIPS else {"input_ids": tokens["input_ids"]}
        with torch.no_grad():
            return model(**masked, **pixels)

    return forward


@kinds
@pytest.mark.parametrize("adapt", ["image", "text", "both"])
def test_features_and_logits_are_the_librarys(kind, adapt, checkpoints, pictures, library):
    backbone, expected = load_backbone(str(checkpoints[kind]), adapt), library(kind)
    with torch.no_grad():
        images = backbone.encode_images(backbone.resize(pictures))
        texts = backbone.encode_texts(backbone.tokenize(CASED))
    torch.testing.assert_close(images, F.normalize(expected.image_embeds, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(texts, F.normalize(expected.text_embeds, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.logits(images, texts), expected.logits_per_image, rtol=0, atol=1e-5)
    assert expected.logits_per_image.std() > 0.1, "a model that says nothing proves nothing"


@kinds
@pytest.mark.parametrize("adapt", ["image", "text", "both"])
def test_the_forward_pass_of_clients_ends_in_the_librarys_logits(kind, adapt, checkpoints, pictures, library):
    backbone, expected = load_backbone(str(checkpoints[kind]), adapt), library(kind).logits_per_image
    images = backbone.resize(pictures)
    inputs = backbone.encode_images(images) if adapt == "text" else images
    batch = Batch(inputs[None], torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    prompts = Prompts(tokens := backbone.tokenize(CASED), backbone.encode_texts(tokens))  # two may be the same tokens
    forward = Forward(backbone, {}, {}, prompts)
    torch.testing.assert_close(forward.frozen(batch, {})[0], expected, rtol=0, atol=1e-5)


@kinds
def test_images_are_resized_as_the_processor_does_and_normalised_as_it_does(kind, checkpoints, pictures):
    backbone = load_backbone(str(checkpoints[kind]), "image")
    whole = AutoImageProcessor.from_pretrained(checkpoints[kind])(pictures, return_tensors="pt")["pixel_values"]
    ours = (backbone.resize(pictures) - backbone.pixel_mean) / backbone.pixel_std
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
    assert backbone.resize(pictures).dtype == torch.uint8


@kinds
def test_every_linear_site_acts_and_learns(kind, checkpoints, pictures):
    backbone = load_backbone(str(checkpoints[kind]), "both", dtype=torch.float64)
    linear = {name: site for name, site in backbone.sites.items() if isinstance(site, LinearSite)}
    torch.manual_seed(0)
    changes = {
        name: torch.randn(site.out_features, site.in_features, dtype=torch.float64).mul_(1e-3).requires_grad_()
        for name, site in linear.items()
    }

    class Change:
        def linear(self, site, layer, x):
            return F.linear(x, layer.weight + changes[site], layer.bias)

        def features(self, site, features):
            return features

    with backbone.adapted(Change()):
        images = backbone.encode_images(backbone.resize(pictures))
        texts = backbone.encode_texts(backbone.tokenize(CASED))
    backbone.logits(images, texts).square().sum().backward()
    asleep = [name for name, change in changes.items() if change.grad is None or change.grad.abs().max() == 0]
    assert asleep == []


@kinds
def test_every_linear_layer_that_is_called_is_a_site(kind, checkpoints, pictures):
    backbone = load_backbone(str(checkpoints[kind]), "both")
    called = set()
    for name, module in backbone.model.named_modules():
        module.register_forward_hook(
            lambda module, *_, name=name: called.add(name) if isinstance(module, torch.nn.Linear) else None
        )
    # the sites' own calls go through `_linear`, which the hooks see as well
    backbone.encode_images(backbone.resize(pictures))
    backbone.encode_texts(backbone.tokenize(CASED))
    assert called == {name for name, site in backbone.sites.items() if isinstance(site, LinearSite)}


@kinds
def test_full_fine_tuning_reaches_every_weight_that_is_used(kind, checkpoints, pictures):
    backbone = load_backbone(str(checkpoints[kind]), "both", dtype=torch.float64)
    sites = [name for name, site in backbone.sites.items() if isinstance(site, WeightSite)]
    weights = {name: backbone.model.get_parameter(name).clone().requires_grad_() for name in sites}
    images = backbone.encode_images(backbone.resize(pictures), weights)
    texts = backbone.encode_texts(backbone.tokenize(CASED), weights)
    backbone.logits(images, texts).square().sum().backward()
    assert [name for name, weight in weights.items() if weight.grad is None or weight.grad.abs().max() == 0] == []
    rest = {name for name, _ in backbone.model.named_parameters()} - set(sites)
    assert rest == {"logit_scale", *(["logit_bias"] if kind in SIGLIPS else [])}


@pytest.mark.parametrize("kind", SIGLIPS)
def test_texts_of_siglip_are_padded_to_all_positions_whatever_their_case(kind, checkpoints):
    backbone = load_backbone(str(checkpoints[kind]), "text")
    tokens = backbone.tokenize(["a cat"])
    assert tokens.shape == (1, POSITIONS)
    assert torch.equal(tokens, backbone.tokenize(["A CAT"]))
    assert torch.equal(tokens[0], backbone.tokenize(["a cat", SENTENCES[-1]])[0])


@kinds
def test_a_prompt_that_does_not_fit_is_refused_and_not_cut(kind, checkpoints):
    backbone = load_backbone(str(checkpoints[kind]), "text")
    long = "a cat " * 40
    with pytest.raises(UserError, match=rf"data.template: the prompt 'a cat .* tokens, the model reads {POSITIONS}"):
        backbone.tokenize(["a cat", long])
    words = range(1, POSITIONS)
    fitting = []
    for count in words:
        try:
            fitting.append(backbone.tokenize(["a " * count]).shape[1])
        except UserError:
            break
    assert max(fitting) == POSITIONS, "the longest prompt that fits fills all positions"


@pytest.mark.parametrize("kind", SIGLIPS)
def test_bfloat16_is_close_and_learns(kind, checkpoints, pictures):
    exact, rough = (load_backbone(str(checkpoints[kind]), "both", dtype=d) for d in (torch.float32, torch.bfloat16))
    with torch.no_grad():
        images, rounded = (each.encode_images(each.resize(pictures)) for each in (exact, rough))
        texts, said = (each.encode_texts(each.tokenize(CASED)) for each in (exact, rough))
    assert (images * rounded).sum(-1).min() > 0.995
    assert (texts * said).sum(-1).min() > 0.995
    assert (rough.logit_scale, rough.logit_bias) == (exact.logit_scale, exact.logit_bias)
    assert exact.logit_bias == pytest.approx(-3.3)


@kinds
def test_the_fingerprint_knows_every_weight_and_the_bias(kind, checkpoints):
    backbone = load_backbone(str(checkpoints[kind]), "image")
    before = {backbone.fingerprint()}
    for name in ("logit_scale", *(["logit_bias"] if kind in SIGLIPS else [])):
        with torch.no_grad():
            backbone.model.get_parameter(name).add_(0.1)
        assert backbone.fingerprint() not in before
        before.add(backbone.fingerprint())


@kinds
def test_squashed_images_keep_their_edges(kind, checkpoints):
    """As FedDLP's public code: to a square with Pillow's bilinear filter, and nothing cut off."""
    crop, squash = (load_backbone(str(checkpoints[kind]), "image", resizing=how) for how in ("crop", "squash"))
    side = squash.model.config.vision_config.image_size
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    whole = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    found = squash.resize([picture])
    assert found.shape == (1, 3, side, side)
    torch.testing.assert_close(found[0], torch.from_numpy(whole.copy()).permute(2, 0, 1), atol=1, rtol=0)
    assert not torch.equal(found, crop.resize([picture]))
    assert squash.resize_settings() != crop.resize_settings()  # so that each has prepared images of its own
    assert squash.fingerprint() == crop.fingerprint()
    torch.testing.assert_close(squash.pixel_mean, crop.pixel_mean)


@kinds
def test_a_copy_of_the_lean_model_is_independent(kind, checkpoints, pictures):
    backbone = load_backbone(str(checkpoints[kind]), "both")
    twin, tokens = copy.deepcopy(backbone.model), backbone.tokenize(CASED)
    expected = backbone.model.get_text_features(input_ids=tokens).pooler_output
    backbone.model.get_text_features(input_ids=tokens[:1])
    torch.testing.assert_close(twin.get_text_features(input_ids=tokens).pooler_output, expected)


def test_siglip_base_has_the_counts_of_its_layers():
    with torch.device("meta"):
        model = SiglipModel(SiglipConfig())  # the default configuration is google/siglip-base-patch16-224
    sites = {adapt: find_sites(model, adapt) for adapt in ("image", "text", "both")}
    linear = {adapt: [n for n, s in found.items() if isinstance(s, LinearSite)] for adapt, found in sites.items()}
    block, d, inner = 4 * 2 * 768 + 2 * (768 + 3072), 768, 3072
    assert len(linear["image"]) == 12 * 6 + 2  # the two of the head's MLP
    assert len(linear["text"]) == 12 * 6 + 1  # the head
    assert "vision_model.head.attention.out_proj" not in sites["both"]
    assert count_parameters(LoRA(2), sites["image"]) == 2 * (12 * block + 2 * (d + inner))
    assert count_parameters(LoRA(2), sites["text"]) == 2 * (12 * block + 2 * d)
    assert count_parameters(Dense(), sites["image"]) == 92_884_224
    assert count_parameters(Dense(), sites["both"]) == 203_155_970 - 2  # the published size but scale and bias
    assert (
        sites["image"]["image.features"]
        == sites["text"]["text.features"]
        == FeatureSite(768)
        == sites["both"]["image.features"]
    )


def test_the_temperature_is_what_the_library_multiplies_and_adds(checkpoints):
    for kind, bias in (("openai", 0.0), ("siglip", -3.3)):
        model = AutoModel.from_pretrained(checkpoints[kind], dtype=torch.float32)
        assert temperature(model) == pytest.approx((torch.tensor(2.5).exp().item(), bias))
