"""Images in, classes out, with one client's model.

    predictor = load_predictor("cats-and-dogs")             # a folder that `feddlp export` wrote
    predictor.predict(["a.jpg", "b.jpg"])                   # or feddlp.load_run("runs/demo").client(3)

A model keeps the form in which it was trained, adapters beside the frozen weights, so the logits are the run's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.data.datasets import Dataset
from feddlp.data.features import encode_prompts
from feddlp.data.folders import files_below
from feddlp.data.pictures import BadImage, PictureFile, to_rgb
from feddlp.data.prompts import class_prompts
from feddlp.data.source import LeftOut
from feddlp.errors import UserError, nearest
from feddlp.manifest import Manifest
from feddlp.materials import pick_device
from feddlp.methods.base import Forward as AnyForward
from feddlp.model.adapters import Adapter, FeatureSite, LoRA, Theta
from feddlp.model.backbone import Adapt, Backbone
from feddlp.model.checkpoint import load_backbone
from feddlp.model.forward import Forward
from feddlp.trained import ClientModel, Rule

BATCH = 64
Picture = str | Path | Image.Image
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
        return self.rule(self.forward, Batch(inputs[None], labels, labels == 0))[0]

    def predict(self, images: Iterable[Picture], top: int = 3) -> list[Prediction]:
        """The likeliest classes of images, given as paths or as Pillow images; see `stream`."""
        return list(self.stream(list(images), top))

    def stream(
        self, images: Sequence[Picture], top: int = 3, on_progress: OnProgress = lambda done, total: None
    ) -> Iterator[Prediction]:
        """Predictions in the order of the images, batch by batch; an image that cannot be read gets its reason."""
        for start in range(0, len(images), BATCH):
            block = images[start : start + BATCH]
            opened = [read(image) for image in block]
            good = [image for image in opened if isinstance(image, Image.Image)]
            found = iter(self._classes(good, top) if good else ())
            for name, image in zip(map(name_of, block), opened, strict=True):
                yield Prediction(name, error=image) if isinstance(image, str) else Prediction(name, next(found))
            on_progress(start + len(block), len(images))

    def _classes(self, images: Sequence[Image.Image], top: int) -> list[tuple[tuple[str, float], ...]]:
        probabilities = self.logits(self.backbone.resize(images)).softmax(-1)  # (n, C)
        best = probabilities.topk(min(top, len(self.class_names)))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [tuple((self.class_names[i], p) for i, p in zip(*row, strict=True)) for row in rows]

    def evaluate(self, dataset: Dataset, on_progress: OnProgress = lambda done, total: None) -> list[ClassScore]:
        """How many images of each class of a data set are predicted rightly, among all classes of the model.

        Raises:
            UserError: the data set has a class that the model does not know.
        """
        columns = [column_of(name, self.class_names) for name in dataset.class_names]
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


def read(image: Picture) -> Image.Image | str:
    """A picture upright and in RGB, or the reason why not."""
    try:
        return to_rgb(image) if isinstance(image, Image.Image) else PictureFile(Path(image)).open()
    except BadImage as reason:
        return str(reason)


def name_of(image: Picture) -> str:
    return (getattr(image, "filename", "") or "image") if isinstance(image, Image.Image) else str(image)


def column_of(name: str, class_names: Sequence[str]) -> int:
    if name not in class_names:
        raise UserError(f"--data: the class {name!r} is none of the model's; {nearest(name, class_names)}")
    return class_names.index(name)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files as given, and all images below the folders.

    Raises:
        UserError: a path that is not there, or no image at all.
    """
    if missing := [path for path in paths if not path.exists()]:
        raise UserError(f"{missing[0]} is not there; give image files or folders of images")
    found = [file for path in paths for file in (images_below(path) if path.is_dir() else [path])]
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no images there; give image files or folders of images")
    return found


def images_below(path: Path) -> list[Path]:
    return [found.path for found in files_below(path) if not isinstance(found, LeftOut)]


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
    backbone = load_base(source, manifest.adapt, manifest.dtype, manifest.backbone, pick_device(device))
    theta: dict[str, Theta] = {} if manifest.merged else {"adapter": read_adapter(folder, backbone)}
    adapters: dict[str, Adapter] = {name: LoRA(rank=1, lora_alpha=1) for name in theta}  # the scaling is in B

    def rule(f: AnyForward, batch: Batch) -> Tensor:
        return f.frozen(batch, dict.fromkeys(theta, 1.0))

    return Predictor(backbone, manifest.class_names, manifest.template, adapters, theta, rule)


def load_base(checkpoint: str, adapt: Adapt, dtype: str, fingerprint: str, device: str = "cpu") -> Backbone:
    """The frozen model that a client's stands on.

    Raises:
        UserError: it cannot be loaded, or has other weights.
    """
    backbone = load_backbone(checkpoint, adapt, device, getattr(torch, dtype))
    if backbone.fingerprint() != fingerprint:
        raise UserError(f"{checkpoint} has not the weights that the model was made with; give the right checkpoint")
    return backbone


def read_adapter(folder: Path, backbone: Backbone) -> Theta:
    """A PEFT adapter that we wrote, as the adapter of one client.

    Raises:
        UserError: damaged, or it does not fit the backbone.
    """
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); export it again") from error
    theta = {leaf_of(key): value[None] for key, value in tensors.items()}
    for leaf, value in theta.items():
        layer, _, kind = leaf.rpartition(".")
        rank = len(theta[f"{layer}.A"][0]) if f"{layer}.A" in theta else 0
        site = backbone.sites.get(layer, FeatureSite(0))
        if value[0].shape != LoRA(rank or 1).shapes(layer, site).get(kind):
            raise UserError(f"{file}: {leaf} does not fit the base checkpoint; export it again")
    return theta


def leaf_of(key: str) -> str:
    """base_model.model.LAYER.lora_A.weight -> LAYER.A"""
    return key.removeprefix("base_model.model.").removesuffix(".weight").replace(".lora_", ".")
