"""Images in, classes out, with one client's model.

    predictor = load_predictor("cats-and-dogs")             # a folder that `feddlp export` wrote
    predictor.predict(["a.jpg", "b.jpg"])                   # or feddlp.load_run("runs/demo").client(3)

A model keeps the form in which it was trained, adapters beside the frozen weights, so the logits are the run's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.data.datasets import Dataset
from feddlp.data.features import encode_prompts
from feddlp.data.folders import files_below
from feddlp.data.pictures import PictureFile, to_rgb
from feddlp.data.preparation import open_all, thread_pool
from feddlp.data.prompts import class_prompts
from feddlp.data.source import LeftOut, Picture, Resizing
from feddlp.errors import UserError, nearest
from feddlp.files import read_given
from feddlp.manifest import Manifest
from feddlp.materials import pick_device
from feddlp.methods.base import Forward as AnyForward
from feddlp.model import Adapt
from feddlp.model.adapters import Adapter, FeatureSite, LoRA, Site, Theta
from feddlp.model.backbone import Backbone
from feddlp.model.checkpoint import load_backbone
from feddlp.model.forward import Forward
from feddlp.trained import ClientModel, Rule

T = TypeVar("T")
BATCH = 64
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
Given = str | Path | Image.Image
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, best first; or why there are none."""

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class ClassScore:
    """How many images of one class were predicted rightly."""

    name: str
    images: int
    correct: int


@dataclass(frozen=True, eq=False)
class PictureInMemory:
    """A Pillow image that somebody has opened."""

    image: Image.Image

    @property
    def name(self) -> str:
        return getattr(self.image, "filename", "") or "image"

    def identity(self) -> str:
        return self.name

    def open(self) -> Image.Image:
        return to_rgb(self.image)


class Predictor:
    """One client's model.

    Args:
        backbone: frozen; may be shared with other predictors.
        class_names, template: of the prompts.
        adapters, theta: by name, one client's, [1, ...] each.
        rule: how they predict.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        template: str,
        adapters: Mapping[str, Adapter],
        theta: Mapping[str, Theta],
        rule: Rule,
    ):
        self.backbone, self.class_names, self.rule = backbone, tuple(class_names), rule
        prompts = encode_prompts(backbone, class_prompts(class_names, template))
        placed = {name: {leaf: v.to(backbone.device) for leaf, v in leaves.items()} for name, leaves in theta.items()}
        self.forward = Forward(backbone, adapters, placed, prompts)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Class logits. [n, 3, H, W] uint8 at model size (`Backbone.resize`) -> [n, C]"""
        inputs = pixels.to(self.backbone.device)
        if "image" not in self.backbone.adapted_towers:
            inputs = self.backbone.encode_images(inputs)
        labels = torch.zeros(1, len(inputs), dtype=torch.int64, device=inputs.device)
        logits = self.rule(self.forward, Batch(inputs[None], labels, labels == 0))[0]
        if not logits.isfinite().all():
            raise UserError(
                "the model predicts numbers that are not finite, so its weights are damaged; export it again"
            )
        return logits

    def predict(self, images: Given | Iterable[Given], top: int = 3) -> list[Prediction]:
        """The likeliest classes of images, or of a single one, given as paths or as Pillow images; see `stream`."""
        several = [images] if isinstance(images, str | Path | Image.Image) else list(images)
        return list(self.stream(several, top))

    def stream(
        self, images: Sequence[Given], top: int = 3, on_progress: OnProgress = lambda done, total: None
    ) -> Iterator[Prediction]:
        """Predictions in the order of the images, batch by batch; an image that cannot be read gets its reason."""
        pictures: list[Picture] = [
            PictureInMemory(image) if isinstance(image, Image.Image) else PictureFile(Path(image)) for image in images
        ]
        with thread_pool() as pool:
            for start in range(0, len(pictures), BATCH):
                block = pictures[start : start + BATCH]
                rows = open_all(pool, block, lambda image: self.backbone.resize([image])[0])
                good = [row for row in rows if isinstance(row, Tensor)]
                found = iter(self._classes(torch.stack(good), top) if good else ())
                for picture, row in zip(block, rows, strict=True):
                    classes, error = ((), row) if isinstance(row, str) else (next(found), "")
                    yield Prediction(picture.name, classes, error)
                on_progress(start + len(block), len(images))

    def _classes(self, pixels: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
        probabilities = self.logits(pixels).softmax(-1)  # (n, C)
        best = probabilities.topk(min(top, len(self.class_names)))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [tuple((self.class_names[i], p) for i, p in zip(*row, strict=True)) for row in rows]

    def columns_of(self, class_names: Sequence[str]) -> list[int]:
        """Where the classes of a data set stand in the model's logits.

        Raises:
            UserError: the model does not know one of them.
        """
        for name in class_names:
            if name not in self.class_names:
                raise UserError(f"--data: the class {name!r} is none of the model's; {nearest(name, self.class_names)}")
        return [self.class_names.index(name) for name in class_names]

    def evaluate(self, dataset: Dataset, on_progress: OnProgress = lambda done, total: None) -> list[ClassScore]:
        """How many images of each class of a data set are predicted rightly, among all classes of the model.

        Raises:
            UserError: the data set has a class that the model does not know.
        """
        columns = self.columns_of(dataset.class_names)
        labels, predicted = torch.tensor(columns)[dataset.labels], torch.empty_like(dataset.labels)
        for start in range(0, len(labels), BATCH):
            block = dataset.images[start : start + BATCH]
            predicted[start : start + BATCH] = self.logits(block).argmax(-1).cpu()
            on_progress(start + len(block), len(labels))
        right = predicted == labels
        return [
            ClassScore(name, int((labels == column).sum()), int(right[labels == column].sum()))
            for name, column in zip(dataset.class_names, columns, strict=True)
        ]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files as given, and all images below the folders.

    Raises:
        UserError: a path that is not there, or no image at all.
    """
    found = [file for path in paths for file in images_at(path)]
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no images there; give image files or folders of images")
    return found


def images_at(path: Path) -> list[Path]:
    """A file itself, or all images below a folder; opening tells why one cannot be reached."""
    try:
        if not path.exists():
            raise UserError(f"{path} is not there; give image files or folders of images")
        folder = path.is_dir()
    except OSError:
        folder = False
    return [found.path for found in files_below(path) if not isinstance(found, LeftOut)] if folder else [path]


def of_client(model: ClientModel, backbone: Backbone, class_names: Sequence[str], template: str) -> Predictor:
    """The predictor of a client of a run."""
    adapters = {name: adapter for name, adapter in model.algorithm.adapters().items() if name in model.theta}
    return Predictor(backbone, class_names, template, adapters, model.theta, model.predict)


def load_predictor(folder: str | Path, checkpoint: str | None = None, device: str = "auto") -> Predictor:
    """The model that `feddlp export` wrote to a folder.

    Args:
        checkpoint: where the base lies, if it is no longer where the run found it.
        device: auto, cpu, cuda, ...

    Raises:
        UserError: not such a folder, a damaged one, or a base that is missing or another.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    source = str(folder) if manifest.merged else checkpoint or manifest.checkpoint
    backbone = load_base(
        source, manifest.adapt, manifest.dtype, manifest.backbone, pick_device(device), manifest.resize
    )
    theta: dict[str, Theta] = {} if manifest.merged else {"adapter": read_adapter(folder, backbone)}
    adapters: dict[str, Adapter] = {name: LoRA(rank=1, lora_alpha=1) for name in theta}  # the scaling is in B

    def rule(f: AnyForward, batch: Batch) -> Tensor:
        return f.frozen(batch, dict.fromkeys(theta, 1.0))

    return Predictor(backbone, manifest.class_names, manifest.template, adapters, theta, rule)


def load_base(
    checkpoint: str, adapt: Adapt, dtype: str, fingerprint: str, device: str = "cpu", resizing: Resizing = "crop"
) -> Backbone:
    """The frozen model that a client's stands on.

    Raises:
        UserError: it cannot be loaded, or has other weights.
    """
    backbone = load_backbone(checkpoint, adapt, device, getattr(torch, dtype), resizing)
    if backbone.fingerprint() != fingerprint:
        raise UserError(f"{checkpoint} has not the weights that the model was made with; give the right checkpoint")
    return backbone


def read_adapter(folder: Path, backbone: Backbone) -> Theta:
    """A PEFT adapter that we wrote, as the adapter of one client.

    Raises:
        UserError: damaged, not finite, or it does not fit the backbone.
    """
    file, about = folder / WEIGHTS, folder / CONFIG
    tensors, config = parsed(file, load), parsed(about, lambda content: dict(json.loads(content)))
    layers = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors})
    if fault := next(faults(tensors, layers, backbone.sites), ""):
        raise UserError(f"{file} {fault}; export it again")
    expected = peft_config(config.get("base_model_name_or_path"), {at: len(tensors[key_of(at, "A")]) for at in layers})
    if any(config.get(key) != value for key, value in expected.items()):
        raise UserError(f"{about} does not describe the layers in {file.name}; export it again")
    return {f"{layer}.{kind}": tensors[key_of(layer, kind)][None] for layer in layers for kind in "AB"}


def parsed(file: Path, parse: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
    try:
        return parse(read_given(file, sys.maxsize))
    except (OSError, ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); export it again") from error


def faults(tensors: Mapping[str, Tensor], layers: Sequence[str], sites: Mapping[str, Site]) -> Iterator[str]:
    """What is wrong with the tensors of a file. An adapter whose ranks are all pruned still has one layer, of zeros."""
    if not tensors:
        yield "holds no layer"
    if tensors.keys() != {key_of(layer, kind) for layer in layers for kind in "AB"}:
        yield "holds other tensors than an A and a B of each layer"
    for layer in layers:
        factors = {kind: tensors[key_of(layer, kind)] for kind in "AB"}
        rank = len(factors["A"]) if factors["A"].ndim else 0
        shapes = LoRA(rank or 1).shapes(layer, sites.get(layer, FeatureSite(0)))
        if {kind: value.shape for kind, value in factors.items()} != shapes:
            yield f"does not fit the base checkpoint at {layer}"
        if not all(value.dtype == torch.float32 and value.isfinite().all() for value in factors.values()):
            yield f"holds values at {layer} that are not finite float32 numbers"


def key_of(layer: str, kind: str) -> str:
    """What PEFT calls the A or B of a layer."""
    return f"{PREFIX}{layer}.lora_{kind}.weight"


def peft_config(base: object, ranks: Mapping[str, int]) -> dict[str, Any]:
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
        "target_modules": sorted(ranks),
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "modules_to_save": None,
    }
