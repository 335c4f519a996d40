"""A checkpoint from its files to a `Backbone`, checked on the way: whatever is wrong with it is one clear line.

The library fills what a checkpoint lacks with random numbers and goes on; here that is an error, as are weights of
other shapes, weights that are no numbers, and an image processor that cannot be applied to images kept as bytes.
docs/checkpoints.md tells which checkpoints fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from feddlp.data.source import Resizing
from feddlp.errors import UserError
from feddlp.model import Adapt, pixels
from feddlp.model.backbone import Backbone, trained_dtype
from feddlp.model.family import FAMILIES, family_of, temperature
from feddlp.model.hub import CONFIG, UnusableError, find_folder, first_line, weights_file

BILINEAR = 2  # as Pillow counts
MOST_LAYERS = 1_000  # making more takes hours, and nobody has trained such a tower
NAFLEX = (
    "it is a SigLIP2 with NaFlex, which keeps the aspect ratio of every image, and here all images have one size; use "
    "a SigLIP2 of fixed resolution, such as google/siglip2-base-patch16-224"
)


@contextmanager
def in_one_line(checkpoint: str) -> Iterator[None]:
    """Whatever goes wrong while a checkpoint is read is the user's to put right."""
    try:
        yield
    except UnusableError as error:
        raise UserError(f"model.checkpoint={checkpoint} cannot be loaded: {error}") from error
    except Exception as error:  # the libraries raise a dozen kinds for a damaged folder
        raise UserError(
            f"model.checkpoint={checkpoint} cannot be loaded ({first_line(error)}); check or replace its files"
        ) from error


def load_config(checkpoint: str) -> PreTrainedConfig:
    """The configuration of an embedded checkpoint, a folder or a hub name; of the latter nothing else is fetched.

    Raises:
        UserError: nothing found there, or a model of another kind.
    """
    with in_one_line(checkpoint):
        return read_config(find_folder(checkpoint, (CONFIG,)))


def load_backbone(
    checkpoint: str,
    adapt: Adapt,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    resizing: Resizing = "crop",
) -> Backbone:
    """Load and freeze a CLIP or a SigLIP.

    Args:
        checkpoint: "tiny-clip" (shipped with the package), a folder, or a hub name.
        adapt: the tower that carries the adapters, or "both".
        dtype: of the frozen weights; adapters stay in float32.
        resizing: how images come to the model's size.

    Raises:
        UserError: nothing found there, a model of another kind, or a damaged checkpoint.
    """
    with in_one_line(checkpoint):
        folder = find_folder(checkpoint)
        model = read_model(folder, read_config(folder), trained_dtype(dtype))
        tokenizer = read_tokenizer(folder)
        processor = read_processor(folder, model.config.vision_config.image_size, resizing)
    scale, bias = temperature(model)
    return Backbone(model.to(device, dtype), tokenizer, processor, adapt, scale, bias)


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration, of a kind that can be used."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "nameless")
    if kind == "siglip2":
        raise UnusableError(NAFLEX)
    if kind not in FAMILIES:
        raise UnusableError(f"it is a {kind} model; a CLIP or SigLIP checkpoint with both towers is needed")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not getattr(config.vision_config, "vision_use_head", True):
        raise UnusableError("its image tower has no head (vision_use_head is false); use the complete checkpoint")
    for part in (config.vision_config, config.text_config):
        if not 0 < part.num_hidden_layers <= MOST_LAYERS:
            raise UnusableError(f"config.json says num_hidden_layers={part.num_hidden_layers}; correct it")
    widths = {tower: width(config) for tower, width in family_of(config).feature_width.items()}
    if widths["image"] != widths["text"]:
        raise UnusableError(
            f"features of images have {widths['image']} numbers and of texts {widths['text']}, which cannot be "
            "compared; correct its config.json"
        )
    return config


def read_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The weights, every one of them from the checkpoint."""
    try:
        model, report = family_of(config).model.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
        )
    except Exception as error:
        raise UnusableError(
            f"{weights_file(folder)} is damaged, or holds more than tensors ({first_line(error)}); fetch it anew"
        ) from error
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise UnusableError(
            f"{name} has the shape {list(found)} where config.json says {list(wanted)}; weights and config.json are "
            "of different models, get both from one source"
        )
    if lacking := sorted(report["missing_keys"]):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise UnusableError(f"its weights lack {', '.join(lacking[:3])}{more}; use the complete checkpoint")
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UnusableError(f"{name} has values that are not finite; fetch the checkpoint anew, or use another")
    return model


def read_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise UnusableError("its tokenizer needs sentencepiece and protobuf; pip install 'feddlp[siglip]'") from error


def read_processor(folder: Path, side: int, resizing: Resizing) -> Any:
    """The image processor, tried out for a model that reads `side` x `side` pixels."""
    square = {"height": side, "width": side}  # bilinear, as FedDLP's public code
    changed = {"do_resize": True, "size": square, "resample": BILINEAR, "do_center_crop": False}
    processor = AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **(changed if resizing == "squash" else {})
    )
    pixels.check(processor, side)
    return processor
