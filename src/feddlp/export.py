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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from feddlp.card import model_card, place_of
from feddlp.config import Config, load_config
from feddlp.data.datasets import FROM_DISK
from feddlp.errors import UserError
from feddlp.files import sync_folder
from feddlp.inference import CONFIG, WEIGHTS, key_of, load_base, peft_config
from feddlp.manifest import FILE, Manifest
from feddlp.model.adapters import Dense, sites_of
from feddlp.model.backbone import Backbone, trained_dtype
from feddlp.records import RunFolder
from feddlp.trained import ClientModel, Factors, classes_of, differences, is_low_rank, low_rank, names_of

CARD = "README.md"


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
    check_free(to)
    config = load_config(folder.config)
    manifest = describe(folder, config, model)
    factors, parts = ({} if merge else low_rank(model)), []
    if merge:
        backbone = merged(manifest, model)
        parts = [backbone.model, backbone.tokenizer, backbone.processor]
        dtype = str(backbone.model.dtype).removeprefix("torch.")
        changed = {"checkpoint": ".", "dtype": dtype, "backbone": backbone.fingerprint()}
        manifest = manifest.model_copy(update=changed)  # the folder itself is the base
    ranks = {site: len(down) for site, (down, _) in factors.items()}
    card = model_card(folder, config, model, manifest, ranks)
    with new_folder(to) as draft:
        for part in parts:
            part.save_pretrained(draft)
        if not merge:
            write_adapter(config, factors or zero_layer(model), draft)
        (draft / FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        (draft / CARD).write_text(card, encoding="utf-8")
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
    own_data = (folder.read_partition() or {}).get("own_data")
    return Manifest(
        checkpoint=config.model.checkpoint,
        adapt=config.model.adapt,
        dtype=config.model.dtype,
        resize=config.data.resize,
        backbone=folder.read_environment().get("backbone", ""),
        class_names=class_names,
        template=template,
        data="the sites' own images" if own_data else without_folders(config.data.dataset),
        method=model.method,
        client=model.client,
        client_name=(names_of(folder) or [""] * config.data.clients)[model.client],
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


def write_adapter(config: Config, factors: Factors, folder: Path) -> None:
    """The two files of a PEFT adapter."""
    tensors = {}
    for site, (down, up) in factors.items():
        tensors[key_of(site, "A")], tensors[key_of(site, "B")] = down.contiguous(), up.contiguous()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    ranks = {site: len(down) for site, (down, _) in factors.items()}
    content = json.dumps(peft_config(place_of(config.model.checkpoint), ranks), indent=1)
    (folder / CONFIG).write_text(content, encoding="utf-8")


@torch.no_grad()
def merged(manifest: Manifest, model: ClientModel) -> Backbone:
    """The base with the client's changes in its weights."""
    backbone = load_base(
        manifest.checkpoint, manifest.adapt, manifest.dtype, manifest.backbone, resizing=manifest.resize
    )
    weights = backbone.model.to(trained_dtype(backbone.model.dtype))
    for name, change in differences(model).items():
        weights.get_parameter(name).add_(change)
    weights.logit_scale.fill_(math.log(backbone.logit_scale))  # the base's own, where its weights were rounded
    if backbone.logit_bias:
        weights.logit_bias.fill_(backbone.logit_bias)
    return backbone


def check_free(path: Path) -> None:
    """Refuse a folder that holds something, before minutes are spent."""
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UserError(f"--to {path}: cannot write there ({error.strerror}); choose another folder") from error
    if taken:
        raise UserError(f"--to {path} is there already and not an empty folder; give a new one")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A draft of a folder, which takes its name when all is written and flushed.

    Raises:
        UserError: nothing can be written there.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as place:
            draft = Path(place) / target.name
            draft.mkdir()
            yield draft
            for file in draft.iterdir():
                shutil.copymode(draft / CARD, file)  # safetensors would keep its own private
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            sync_folder(draft)
            draft.replace(target)
            sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--to {path}: cannot write there ({reason}); choose another folder") from error
