"""Less work, the same features and the same gradients as the library's."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel
from transformers.activations import QuickGELUActivation

from feddlp.model.lean import QuickGELU, end_of_text, pool_at_end_of_text, pool_in_last_layer, use_quick_gelu

SMALL = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}


def clip(eos=49407, attention="sdpa"):
    torch.manual_seed(0)
    text = SMALL | {"eos_token_id": eos, "vocab_size": 60, "max_position_embeddings": 9}
    config = CLIPConfig(text_config=text, vision_config=SMALL | {"image_size": 8, "patch_size": 4}, projection_dim=6)
    model = CLIPModel(config).double().eval()
    model.set_attn_implementation(attention)
    for name, parameter in model.named_parameters():  # biases are 0 at the start, and would hide a forgotten one
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
        parameter.requires_grad_("q_proj" in name or "fc1" in name)
    return model


def gradients(model, features):
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(features.square().sum(), weights, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def test_quick_gelu_and_its_slope_are_the_librarys():
    x = torch.linspace(-20, 20, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(QuickGELU()(x), QuickGELUActivation()(x))
    assert torch.autograd.gradcheck(QuickGELU(), x)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pooling_in_the_last_layer_gives_the_image_towers_features_and_gradients(attention):
    ours, theirs = clip(attention=attention), clip(attention=attention)
    pool_in_last_layer(ours.vision_model)
    use_quick_gelu(ours)
    pixels = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    features = [model.get_image_features(pixel_values=pixels).pooler_output for model in (ours, theirs)]
    torch.testing.assert_close(*features)
    pairs = zip(*(gradients(model, each) for model, each in zip((ours, theirs), features, strict=True)), strict=True)
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)  # the eager one rounds to float32


@pytest.mark.parametrize("eos", [50, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pooling_in_the_last_layer_gives_the_text_towers_features_and_gradients(eos, attention):
    ours, theirs = clip(eos, attention), clip(eos, attention)
    pool_at_end_of_text(ours.text_model, eos)
    end = 50 if eos == 50 else 59
    tokens = torch.tensor([[1, 3, 4, 5, end, 0, 0], [1, end, 0, 0, 0, 0, 0], [1, 7, 8, 9, 10, 11, end]])
    assert end_of_text(tokens, eos).tolist() == [4, 1, 6]
    features = [model.get_text_features(input_ids=tokens).pooler_output for model in (ours, theirs)]
    torch.testing.assert_close(*features)
    pairs = zip(*(gradients(model, each) for model, each in zip((ours, theirs), features, strict=True)), strict=True)
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)  # the eager one rounds to float32


def test_no_name_and_no_weight_changes():
    ours, theirs = clip(), clip()
    use_quick_gelu(ours)
    pool_in_last_layer(ours.vision_model)
    before, after = theirs.state_dict(), ours.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(isinstance(module, QuickGELU) for module in ours.modules())
    assert not any(isinstance(module, QuickGELUActivation) for module in ours.modules())
    copy.deepcopy(ours)
