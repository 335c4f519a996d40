"""The frozen dual encoder: a Hugging Face CLIP whose linear layers can be adapted from outside.

Sites are the `nn.Linear` layers of the adapted tower and its projection, known by their names in the checkpoint, the
tower's output features, and every single weight. While a context is open, adapters take part in what the sites
compute; outside of it the model is the checkpoint's own, up to the rounding of `model.lean`. K clients never mean K
backbones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from feddlp.errors import UserError
from feddlp.model.adapters import FeatureSite, LinearSite, Site, WeightSite
from feddlp.model.lean import pool_in_last_layer, use_quick_gelu

Adapt = Literal["image", "text", "both"]
EMBEDDED = {"tiny-clip": Path(__file__).parents[1] / "assets" / "tiny-clip"}
MODULES = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}


class Change(Protocol):
    """What adapters do, all clients' rows together."""

    def linear(self, site: str, layer: nn.Linear, x: Tensor) -> Tensor:
        """In place of a linear layer."""
        ...

    def features(self, site: str, features: Tensor) -> Tensor:
        """On the output of a tower."""
        ...


def towers(adapt: Adapt) -> tuple[str, ...]:
    """The towers that carry adapters."""
    return ("image", "text") if adapt == "both" else (adapt,)


def find_sites(model: CLIPModel, adapt: Adapt) -> dict[str, Site]:
    """Where adapters can act, in the order of the model: linear layers, output features, single weights."""
    modules = {name for tower in towers(adapt) for name in MODULES[tower]}
    sites: dict[str, Site] = {
        name: LinearSite(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.partition(".")[0] in modules
    }
    for tower in towers(adapt):
        sites[f"{tower}.features"] = FeatureSite(model.config.projection_dim)
    for name, weight in model.named_parameters():
        if name.partition(".")[0] in modules:
            sites[name] = WeightSite(tuple(weight.shape))
    return sites


class Encoder(nn.Module):
    """One tower of a CLIP as a module of its own, so that it can be called with other weights."""

    def __init__(self, clip: CLIPModel, tower: str):
        super().__init__()
        self.clip, self.tower = clip, tower

    def forward(self, inputs: Tensor) -> Tensor:
        if self.tower == "image":
            return cast("Tensor", self.clip.get_image_features(pixel_values=inputs).pooler_output)
        return cast("Tensor", self.clip.get_text_features(input_ids=inputs).pooler_output)


class Backbone:
    """A frozen CLIP, its tokenizer and image processor, and the sites of the tower that is adapted.

    Args:
        model: the checkpoint; its parameters are frozen here.
        tokenizer, processor: as stored beside it.
        adapt: which tower carries the adapters, or both.
        logit_scale: what cosines are multiplied by, 1/temperature; read before any rounding of the weights.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any, processor: Any, adapt: Adapt, logit_scale: float):
        self.model = model.eval().requires_grad_(False)
        use_quick_gelu(model)
        pool_in_last_layer(model.vision_model)
        pool_in_last_layer(model.text_model, model.config.text_config.eos_token_id)
        if self.device.type == "cpu" and model.dtype.itemsize == 2:
            model.set_attn_implementation("eager")  # the fused one's backward pass is ten times slower there
        self.tokenizer, self.processor, self.adapt = tokenizer, processor, adapt
        self.sites = find_sites(model, adapt)
        self.logit_scale = logit_scale
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        self.pixel_mean = (mean / processor.rescale_factor)[:, None, None].to(model.device)
        self.pixel_std = (std / processor.rescale_factor)[:, None, None].to(model.device)
        self.encoders = {tower: Encoder(self.model, tower) for tower in MODULES}
        self.adapted_towers = towers(adapt)
        self._change: Change | None = None
        for name, site in self.sites.items():
            if isinstance(site, LinearSite):
                layer = model.get_submodule(name)
                layer.forward = partial(self._linear, name, layer)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def _linear(self, site: str, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight, layer.bias) if self._change is None else self._change.linear(site, layer, x)

    @contextmanager
    def adapted(self, change: Change | None) -> Iterator[None]:
        """While open, `change` acts at every site; None changes nothing. Contexts do not nest."""
        if self._change is not None:
            raise RuntimeError("the backbone is already adapted; one forward pass at a time")
        self._change = change
        try:
            yield
        finally:
            self._change = None

    def resize(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any size -> [n, 3, H, W] uint8, resized and cropped as the checkpoint's processor does."""
        arrays = [np.asarray(image) for image in images]
        pixels = self.processor(arrays, do_rescale=False, do_normalize=False, input_data_format="channels_last")
        return torch.from_numpy(np.stack(pixels["pixel_values"])).to(torch.uint8)

    def resize_settings(self) -> str:
        """What `resize` depends on, besides the images."""
        return json.dumps(self.processor.to_dict(), sort_keys=True, default=str)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids of the prompts, padded to the longest only. [n, L]

        Raises:
            UserError: where a prompt does not fit; cutting it could make two classes alike.
        """
        limit = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(list(prompts), padding="longest", return_attention_mask=True)
        for prompt, mask in zip(prompts, encoded["attention_mask"], strict=True):
            if (length := sum(mask)) > limit:
                raise UserError(
                    f"data.template: the prompt {prompt[:60]!r}... has {length} tokens, the model reads {limit}; "
                    "shorten the template or the class name"
                )
        return torch.tensor(encoded["input_ids"], device=self.device)

    def encode_images(self, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """uint8 images [n, 3, H, W] -> unit features [n, D] in `trained_dtype`.

        Args:
            weights: used in place of the checkpoint's own, by name; for full fine-tuning.
        """
        pixels = ((images.to(self.device) - self.pixel_mean) / self.pixel_std).to(self.model.dtype)
        return self._encode("image", pixels, weights)

    def encode_texts(self, tokens: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Token ids [n, L] -> unit features [n, D] in `trained_dtype`.

        Padding follows the end token, and attention is causal, so it needs no mask.
        """
        return self._encode("text", tokens, weights)

    def _encode(self, tower: str, inputs: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        encoder = self.encoders[tower]
        swapped = {f"clip.{name}": weight for name, weight in (weights or {}).items()}
        features: Tensor = functional_call(encoder, swapped, (inputs,)) if swapped else encoder(inputs)
        features = features.to(trained_dtype(features.dtype))
        if self._change is not None and tower in self.adapted_towers:
            features = self._change.features(f"{tower}.features", features)
        return F.normalize(features, dim=-1)

    def fingerprint(self) -> str:
        """A digest of the frozen weights and the sites; adapters fit a backbone with the same one."""
        digest = hashlib.sha256(self.adapt.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def trained_dtype(frozen: torch.dtype) -> torch.dtype:
    """The dtype in which adapters, logits and losses are kept over a frozen model: float32 at least."""
    return torch.promote_types(frozen, torch.float32)


def locate(checkpoint: str) -> str:
    """The folder of an embedded checkpoint or of a local one; anything else is left as a hub name."""
    folder = EMBEDDED.get(checkpoint, Path(checkpoint).expanduser())
    return str(folder) if folder.is_dir() else checkpoint


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_clip_config(checkpoint: str) -> CLIPConfig:
    """The configuration of an embedded checkpoint, a folder or a hub name.

    Raises:
        UserError: nothing found there, or not a CLIP.
    """
    try:
        config = AutoConfig.from_pretrained(locate(checkpoint))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.checkpoint={checkpoint} cannot be loaded ({first_line(error)}); "
            f"give {', '.join(EMBEDDED)}, the folder of a CLIP checkpoint, or a hub name"
        ) from error
    if not isinstance(config, CLIPConfig):
        raise UserError(f"model.checkpoint={checkpoint} is a {config.model_type} model; a CLIP checkpoint is needed")
    return config


def load_backbone(checkpoint: str, adapt: Adapt, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """Load and freeze a CLIP.

    Args:
        checkpoint: "tiny-clip" (shipped with the package), a folder, or a hub name.
        adapt: the tower that carries the adapters, or "both".
        dtype: of the frozen weights; adapters stay in float32.

    Raises:
        UserError: nothing found there, not a CLIP, or a damaged checkpoint.
    """
    config, source = load_clip_config(checkpoint), locate(checkpoint)
    try:
        model = CLIPModel.from_pretrained(source, config=config, dtype=trained_dtype(dtype))
        logit_scale = model.logit_scale.double().exp().item()
        model = model.to(device, dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source)
    except Exception as error:  # the libraries raise a dozen kinds for a damaged folder
        raise UserError(
            f"model.checkpoint={checkpoint} cannot be loaded ({first_line(error)}); check or replace its files"
        ) from error
    return Backbone(model, tokenizer, processor, adapt, logit_scale)
