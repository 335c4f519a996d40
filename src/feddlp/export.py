"""One client's model as files that other people's code reads: a PEFT adapter, or a whole checkpoint.

    adapter_config.json + adapter_model.safetensors    loads with `peft` and with `AutoModel...load_adapter`
    config.json + model.safetensors + tokenizer + ...  with `merge`: loads with `AutoModel.from_pretrained`
    README.md                                          a model card
    feddlp.json                                        what `feddlp predict` needs beside them

Gates, scaling and weights are folded into A and B, so a layer's alpha is its rank, and pruned ranks are gone
(`rank_pattern`). Layers without a rank left are not named at all; where no layer is left, PEFT, which refuses an empty
adapter, gets one layer of rank 1 with zeros. PEFT itself is not needed here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from feddlp.card import model_card, place_of
from feddlp.config import Config, load_config
from feddlp.data.datasets import FROM_DISK
from feddlp.errors import UserError
from feddlp.files import sync_folder
from feddlp.inference import load_base
from feddlp.manifest import FILE, Manifest
from feddlp.model.adapters import Dense, sites_of
from feddlp.model.backbone import trained_dtype
from feddlp.records import RunFolder
from feddlp.trained import ClientModel, Factors, classes_of, differences, is_low_rank, low_rank

CARD = "README.md"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        ranks: linear layer -> ranks that are left; empty where all were pruned, and for a merged checkpoint.
    """

    folder: Path
    manifest: Manifest
    ranks: dict[str, int]


def export(folder: RunFolder, model: ClientModel, to: Path, merge: bool = False) -> Exported:
    """Write a client's model to a new folder, which appears whole or not at all.

    Args:
        merge: a whole checkpoint in place of an adapter.

    Raises:
        UserError: a model that has no such form, or a folder that is taken or cannot be written.
    """
    check_form(model, merge)
    config = load_config(folder.config)
    manifest = describe(folder, config, model)
    with new_folder(to) as draft:
        if merge:
            manifest = write_merged(draft, manifest, model)
            ranks = {}
        else:
            factors = low_rank(model)
            write_adapter(draft, config, factors or zero_layer(model))
            ranks = {site: len(down) for site, (down, _) in factors.items()}
        (draft / FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        (draft / CARD).write_text(model_card(folder, config, model, manifest, ranks), encoding="utf-8")
    return Exported(to, manifest, ranks)


def check_form(model: ClientModel, merge: bool) -> None:
    """Whether the model can be written in this form.

    Raises:
        UserError: it cannot; the line says what can be done.
    """
    if is_low_rank(model):
        return
    from_python = f"feddlp.load_run(RUN).client({model.client}, method={model.method!r}) predicts with it"
    if not model.algorithm.adapters():
        raise UserError(f"--method {model.method} trains nothing: its model is the base checkpoint")
    if model.view is None:
        raise UserError(
            f"--method {model.method} predicts with the mean of several models, which no single one is; "
            f"use --adapter global, or {from_python}"
        )
    if not all(isinstance(model.algorithm.adapters()[name], Dense) for name in model.weights):
        raise UserError(
            f"--method {model.method} changes more than linear layers, which neither PEFT nor a checkpoint can "
            f"hold; choose a LoRA method, or {from_python}"
        )
    if not merge:
        raise UserError(f"--method {model.method} trains all weights, which is no adapter; add --merge")


def describe(folder: RunFolder, config: Config, model: ClientModel) -> Manifest:
    """The manifest of a model on top of its base."""
    class_names, template = classes_of(folder)
    return Manifest(
        checkpoint=config.model.checkpoint,
        adapt=config.model.adapt,
        dtype=config.model.dtype,
        backbone=folder.read_environment().get("backbone", ""),
        class_names=class_names,
        template=template,
        data=without_folders(config.data.dataset),
        method=model.method,
        client=model.client,
        seed=model.seed,
        round=model.round,
        adapter=model.which,
    )


def without_folders(dataset: str) -> str:
    """A data set as it may be told to others: where it lies on this machine is nobody's business."""
    kind, _, argument = dataset.partition(":")
    return f"{kind}:{Path(argument).name}" if kind in FROM_DISK else dataset


def zero_layer(model: ClientModel) -> Factors:
    """A first layer with one rank that does nothing."""
    name = next(iter(model.weights))
    site = min(sites_of(model.theta[name]))
    width, height = model.theta[name][f"{site}.A"].shape[2], model.theta[name][f"{site}.B"].shape[1]
    return {site: (torch.zeros(1, width), torch.zeros(height, 1))}


def write_adapter(folder: Path, config: Config, factors: Factors) -> None:
    """The two files of a PEFT adapter."""
    tensors = {}
    for site, (down, up) in factors.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = down.contiguous()
        tensors[f"{PREFIX}{site}.lora_B.weight"] = up.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    ranks = {site: len(down) for site, (down, _) in factors.items()}
    content = json.dumps(peft_config(place_of(config.model.checkpoint), ranks), indent=1)
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")


def peft_config(base: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """adapter_config.json; alpha = rank everywhere, for the scaling is in the weights."""
    highest = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": highest,
        "lora_alpha": highest,
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(ranks),
        "target_modules": list(ranks),
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "modules_to_save": None,
    }


def write_merged(folder: Path, manifest: Manifest, model: ClientModel) -> Manifest:
    """Checkpoint, tokenizer and image processor; what prediction needs, seen from there."""
    backbone = load_base(manifest.checkpoint, manifest.adapt, manifest.dtype, manifest.backbone)
    merged = backbone.model.to(trained_dtype(backbone.model.dtype))
    add(merged, differences(model))
    merged.logit_scale.fill_(math.log(backbone.logit_scale))  # the base's own, where its weights were rounded
    if backbone.logit_bias:
        merged.logit_bias.fill_(backbone.logit_bias)
    merged.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    dtype = str(merged.dtype).removeprefix("torch.")
    changes = {"checkpoint": ".", "dtype": dtype, "backbone": backbone.fingerprint()}
    return manifest.model_copy(update=changes)


@torch.no_grad()
def add(model: torch.nn.Module, changes: Mapping[str, Tensor]) -> None:
    for name, change in changes.items():
        model.get_parameter(name).add_(change)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A draft of a folder, which takes its name when all is written and flushed.

    Raises:
        UserError: the name is taken, or nothing can be written there.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--to {path} is there already and not an empty folder; give a new one")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
            draft = Path(place) / path.name
            draft.mkdir()
            yield draft
            flush(draft)
            draft.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--to {path}: cannot write there ({reason}); choose another folder") from error


def flush(folder: Path) -> None:
    """Have a folder's files on the disk, all as readable as the card; safetensors would keep its own private."""
    for file in folder.iterdir():
        shutil.copymode(folder / CARD, file)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)
