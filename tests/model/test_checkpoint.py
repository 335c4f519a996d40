"""Whatever is wrong with a checkpoint is said in one line that names it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPConfig, CLIPTextConfig, ViTConfig

from checkpoints import change, copy, siglip_config, write
from feddlp.errors import UserError
from feddlp.model.checkpoint import load_backbone, load_config


@pytest.fixture
def spoilt(checkpoints, tmp_path):
    """A copy of a checkpoint, to be spoilt."""
    return lambda kind="siglip": copy(checkpoints[kind], tmp_path / kind)


def mistake(checkpoint: Path | str) -> str:
    """The one line that is said of a checkpoint."""
    with pytest.raises(UserError) as raised:
        load_backbone(str(checkpoint), "image")
    line = str(raised.value)
    assert line.startswith(f"model.checkpoint={checkpoint} cannot be loaded")
    assert "\n" not in line
    return line


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Put other tensors into a checkpoint; None removes one. Names with _ for the dots."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    known = {name.replace(".", "_"): name for name in weights}
    for name, value in tensors.items():
        weights.pop(known.get(name, name), None)
        if value is not None:
            weights[known.get(name, name)] = value
    save_file(weights, file, metadata={"format": "pt"})


# Files


@pytest.mark.parametrize(
    ("kind", "file", "told"),
    [
        ("openai", "config.json", "config.json is missing in "),
        ("siglip", "model.safetensors", "model.safetensors or model.safetensors.index.json or pytorch_model.bin or "),
        ("laion", "tokenizer.json", "tokenizer.json or spiece.model or vocab.json and merges.txt is missing in "),
        ("siglip", "spiece.model", "tokenizer.json or spiece.model or "),
        ("siglip", "preprocessor_config.json", "preprocessor_config.json or processor_config.json is missing in "),
    ],
)
def test_a_missing_file_is_named(spoilt, kind, file, told):
    folder = spoilt(kind)
    (folder / file).unlink()
    assert told in mistake(folder)


def test_a_file_is_no_folder(checkpoints):
    assert "it is a file; give tiny-clip, the folder of " in mistake(checkpoints["siglip"] / "model.safetensors")


def test_a_repository_of_open_clip_is_told_apart(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    assert "open_clip's files only" in mistake(tmp_path)


@pytest.mark.parametrize("keep", [100, 5000, -4])
@pytest.mark.parametrize("kind", ["openai", "siglip"])
def test_truncated_weights_are_damaged(spoilt, kind, keep):
    file = spoilt(kind) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors is damaged" in mistake(file.parent)


def test_pickled_weights_are_read_without_running_them(spoilt, tmp_path):
    folder = spoilt()
    expected = load_backbone(str(folder), "image").model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    found = load_backbone(str(folder), "image").model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    torch.save({**expected, "code": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin is damaged, or holds more than tensors" in mistake(folder)
    assert not (tmp_path / "sprung").exists()
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    assert "pytorch_model.bin is damaged" in mistake(folder)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_missing_shard_is_named(spoilt):
    folder = spoilt()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(weights)}
    for part in set(parts.values()):
        held = {name: weights[name] for name, file in parts.items() if file == part}
        save_file(held, folder / part, metadata={"format": "pt"})
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": parts})
    load_backbone(str(folder), "image")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing in " in mistake(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    mistake(folder)


# Weights


def test_missing_tensors_are_named_and_not_drawn_at_random(spoilt):
    folder = spoilt()
    rewrite(folder, logit_bias=None)
    assert "its weights lack logit_bias; use the complete checkpoint" in mistake(folder)
    rewrite(folder, text_model_head_weight=None, text_model_head_bias=None, logit_scale=None)
    assert "lack logit_bias, logit_scale, text_model.head.bias and 1 more" in mistake(folder)


def test_tensors_of_another_shape_are_named(spoilt):
    folder = spoilt("openai")
    rewrite(folder, visual_projection_weight=torch.zeros(7, 24), text_projection_weight=torch.zeros(7, 16))
    assert "text_projection.weight has the shape [7, 16] where config.json says [20, 16]" in mistake(folder)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_named(spoilt, value):
    folder = spoilt("laion")
    rewrite(folder, visual_projection_weight=torch.full((14, 24), float(value)))
    assert "visual_projection.weight has values that are not finite" in mistake(folder)


def test_tensors_that_nobody_asked_for_are_harmless(spoilt, checkpoints):
    folder = spoilt("openai")
    rewrite(folder, **{"text_model.embeddings.position_ids": torch.arange(40)[None], "extra": torch.ones(3)})
    found, expected = (load_backbone(str(each), "image") for each in (folder, checkpoints["openai"]))
    assert found.fingerprint() == expected.fingerprint()


# Other models


@pytest.mark.parametrize(
    "config",
    [BertConfig(), ViTConfig(), CLIPTextConfig(), CLIPConfig().vision_config, siglip_config(60).text_config],
    ids=lambda config: config.model_type,
)
def test_a_model_of_another_kind_is_named(spoilt, config):
    folder = spoilt()
    (folder / "config.json").write_text(config.to_json_string())
    assert f"it is a {config.model_type} model; a CLIP or SigLIP checkpoint with both towers" in mistake(folder)


def test_naflex_is_told_which_siglip2_to_use(spoilt):
    folder = spoilt()
    change(folder / "config.json", model_type="siglip2")
    assert "NaFlex" in mistake(folder)
    assert "such as google/siglip2-base-patch16-224" in mistake(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "siglip", "text_config": {"hidden_size": "x"}}'])
def test_a_damaged_configuration_is_one_line(spoilt, content):
    folder = spoilt()
    (folder / "config.json").write_text(content)
    mistake(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_config(str(folder))


def test_towers_whose_features_cannot_be_compared(spoilt):
    folder = spoilt()
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder / "config.json", text_config=text | {"projection_size": 20})
    assert "features of images have 24 numbers and of texts 20" in mistake(folder)


def test_an_image_tower_without_its_head(spoilt):
    folder = spoilt()
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    change(folder / "config.json", vision_config=vision | {"vision_use_head": False})
    assert "has no head" in mistake(folder)


@pytest.mark.parametrize("layers", [10_000_000, 0, -1])
@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_a_number_of_layers_that_nobody_has_is_refused_at_once(spoilt, tower, layers):
    folder = spoilt()
    table = json.loads((folder / "config.json").read_text())[tower]
    change(folder / "config.json", **{tower: table | {"num_hidden_layers": layers}})
    assert f"num_hidden_layers={layers}" in mistake(folder)


# Tokenizers


def test_a_damaged_tokenizer_is_one_line(spoilt):
    folder = spoilt()
    (folder / "spiece.model").write_bytes(b"junk")
    mistake(folder)


@pytest.mark.parametrize(("kind", "other"), [("siglip", "laion"), ("laion", "siglip2")])
def test_the_tokenizer_of_another_model_is_found_out(spoilt, checkpoints, kind, other):
    folder = spoilt(kind)
    for file in ("tokenizer.json", "tokenizer_config.json", "spiece.model"):
        (folder / file).unlink(missing_ok=True)
        if (checkpoints[other] / file).exists():
            shutil.copy(checkpoints[other] / file, folder)
    with pytest.raises(UserError, match=r"model.checkpoint: its tokenizer \(.*\) does not belong to its text model"):
        load_backbone(str(folder), "text").tokenize(["a cat in the sky"])


def test_a_tokenizer_that_sets_no_end_is_found_out(spoilt):
    folder = spoilt("siglip2")
    change(folder / "tokenizer.json", post_processor=None)
    with pytest.raises(UserError, match="ends a prompt in another way"):
        load_backbone(str(folder), "text").tokenize(["a cat"])


def test_a_missing_sentencepiece_names_the_extra(checkpoints):
    program = (
        "import sys; sys.modules['sentencepiece'] = None; from feddlp.model.checkpoint import load_backbone;"
        f"load_backbone('{checkpoints['siglip2']}', 'image'); load_backbone('{checkpoints['siglip']}', 'image')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"feddlp.errors.UserError: model.checkpoint={checkpoints['siglip']} cannot be loaded: ")
    assert last.endswith("its tokenizer needs sentencepiece and protobuf; pip install 'feddlp[siglip]'")


# Image processors


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("laion", {"do_center_crop": False}, "makes 31 x 16 pixels, and the model reads 16 x 16"),
        ("laion", {"crop_size": {"height": 12, "width": 12}}, "makes 12 x 12 pixels, and the model reads 16 x 16"),
        ("siglip", {"size": {"height": 24, "width": 24}}, "makes 24 x 24 pixels, and the model reads 16 x 16"),
        ("siglip", {"do_resize": False}, "makes 37 x 19 pixels"),
        ("siglip", {"image_mean": [0.5, 0.5]}, "cannot be loaded ("),
        ("siglip", {"image_processor_type": "NoSuchProcessor"}, "cannot be loaded ("),
        ("siglip", {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "does more than"),
        ("siglip", {"do_pad": True, "pad_size": {"height": 20, "width": 20}}, "makes 20 x 20 pixels"),
    ],
)
def test_an_image_processor_that_does_not_fit(spoilt, kind, fields, told):
    folder = spoilt(kind)
    change(folder / "preprocessor_config.json", **fields)
    assert told in mistake(folder)


@pytest.mark.parametrize(
    "fields",
    [{"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"image_mean": None}],
    ids=str,
)
def test_an_image_processor_that_does_less_is_followed(spoilt, fields):
    folder = spoilt()
    change(folder / "preprocessor_config.json", **fields)
    backbone = load_backbone(str(folder), "image")
    pixels = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    whole = backbone.processor(pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close((pixels - backbone.pixel_mean) / backbone.pixel_std, whole, rtol=1e-5, atol=1e-5)
