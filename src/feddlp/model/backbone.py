"""The frozen dual encoder: a Hugging Face CLIP or SigLIP whose linear layers can be adapted from outside.

Sites are the `nn.Linear` layers of the adapted tower and its projection or head, known by their names in the
checkpoint, the tower's output features, and every single weight. While a context is open, adapters take part in what
the sites compute; outside of it the model is the checkpoint's own, up to the rounding of `model.lean`. K clients never
mean K backbones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from feddlp.errors import UserError
from feddlp.model import Adapt, pixels
from feddlp.model.adapters import FeatureSite, LinearSite, Site, WeightSite
from feddlp.model.family import END_OF_TEXT, family_of
from feddlp.model.lean import end_of_text, pool_at_end_of_text, pool_in_last_layer, use_quick_gelu

TOWERS = ("image", "text")


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
    return TOWERS if adapt == "both" else (adapt,)


def find_sites(model: PreTrainedModel, adapt: Adapt) -> dict[str, Site]:
    """Where adapters can act, in the order of the model: linear layers, output features, single weights.

    A subclass of `nn.Linear` is no linear layer: `nn.MultiheadAttention` has one, reads its weight and never calls it.
    """
    family = family_of(model.config)
    modules = {name for tower in towers(adapt) for name in family.modules[tower]}
    sites: dict[str, Site] = {
        name: LinearSite(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.partition(".")[0] in modules
    }
    for tower in towers(adapt):
        sites[f"{tower}.features"] = FeatureSite(family.feature_width[tower](model.config))
    for name, weight in model.named_parameters():
        if name.partition(".")[0] in modules:
            sites[name] = WeightSite(tuple(weight.shape))
    return sites


def make_lean(model: PreTrainedModel) -> None:
    """The rewrites of `model.lean` that fit this kind of model, and attention that is fast in both directions."""
    use_quick_gelu(model)
    family = family_of(model.config)
    for tower, at in family.pooled.items():
        module = model.get_submodule(family.modules[tower][0])
        if at == END_OF_TEXT:
            pool_at_end_of_text(module, model.config.text_config.eos_token_id)
        else:
            pool_in_last_layer(module, at)
    if torch.device(model.device).type == "cpu" and model.dtype.itemsize == 2:
        model.set_attn_implementation("eager")  # the fused one's backward pass is ten times slower there


class Encoder(nn.Module):
    """One tower as a module of its own, so that it can be called with other weights."""

    def __init__(self, model: PreTrainedModel, tower: str):
        super().__init__()
        self.model, self.tower = model, tower

    def forward(self, inputs: Tensor) -> Tensor:
        if self.tower == "image":
            return cast("Tensor", self.model.get_image_features(pixel_values=inputs).pooler_output)
        return cast("Tensor", self.model.get_text_features(input_ids=inputs).pooler_output)


class Backbone:
    """A frozen dual encoder, its tokenizer and image processor, and the sites of the tower that is adapted.

    Args:
        model: the checkpoint; its parameters are frozen here.
        tokenizer, processor: as stored beside it.
        adapt: which tower carries the adapters, or both.
        logit_scale, logit_bias: what cosines are multiplied by, 1/temperature, and what is added then; read before any
            rounding of the weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        processor: Any,
        adapt: Adapt,
        logit_scale: float,
        logit_bias: float = 0.0,
    ):
        self.model = model.eval().requires_grad_(False)
        make_lean(model)
        self.family = family_of(model.config)
        self.tokenizer, self.processor, self.adapt = tokenizer, processor, adapt
        self.sites = find_sites(model, adapt)
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.pixel_mean, self.pixel_std = (each.to(model.device) for each in pixels.normalisation(processor))
        self.encoders = {tower: Encoder(self.model, tower) for tower in TOWERS}
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
        return pixels.resize(self.processor, images)

    def resize_settings(self) -> str:
        """What `resize` depends on, besides the images."""
        return json.dumps(self.processor.to_dict(), sort_keys=True, default=str)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids of the prompts, padded as the family needs it: to the longest, or to all positions. [n, L]

        Raises:
            UserError: where a prompt does not fit (cutting it could make two classes alike), or the tokenizer is not
                the model's.
        """
        limit = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(
            [prompt.lower() if self.family.lower_case else prompt for prompt in prompts],
            padding=self.family.padding,
            max_length=limit if self.family.padding == "max_length" else None,
            padding_side="right",
            return_attention_mask=True,
        )
        lengths = [sum(mask) for mask in encoded["attention_mask"]]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > limit:
                raise UserError(
                    f"data.template: the prompt {prompt[:60]!r}... has {length} tokens, the model reads {limit}; "
                    "shorten the template or the class name"
                )
        tokens = torch.tensor(encoded["input_ids"])
        self._check_tokens(tokens, torch.tensor(lengths) - 1)
        return tokens.to(self.device)

    def _check_tokens(self, tokens: Tensor, ends: Tensor) -> None:
        """Every prompt must end with the end token, where the model looks for it, and have tokens that it knows."""
        text = self.model.config.text_config
        ended = tokens[torch.arange(len(tokens)), ends] == self.tokenizer.eos_token_id
        found = self.family.pooled["text"] != END_OF_TEXT or bool(
            (end_of_text(tokens, text.eos_token_id) == ends).all()
        )
        if not (ended.all() and found and tokens.max() < text.vocab_size):
            raise UserError(
                f"model.checkpoint: its tokenizer ({type(self.tokenizer).__name__}) does not belong to its text model, "
                "which knows other tokens or ends a prompt in another way; get both from one source"
            )

    def encode_images(self, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """uint8 images [n, 3, H, W] -> unit features [n, D] in `trained_dtype`.

        Args:
            weights: used in place of the checkpoint's own, by name; for full fine-tuning.
        """
        inputs = ((images.to(self.device) - self.pixel_mean) / self.pixel_std).to(self.model.dtype)
        return self._encode("image", inputs, weights)

    def encode_texts(self, tokens: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Token ids [n, L] -> unit features [n, D] in `trained_dtype`.

        Padding needs no mask: it follows the end token of a causal tower, or belongs to the text (`model.family`).
        """
        return self._encode("text", tokens, weights)

    def _encode(self, tower: str, inputs: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        encoder = self.encoders[tower]
        swapped = {f"model.{name}": weight for name, weight in (weights or {}).items()}
        features: Tensor = functional_call(encoder, swapped, (inputs,)) if swapped else encoder(inputs)
        features = features.to(trained_dtype(features.dtype))
        if self._change is not None and tower in self.adapted_towers:
            features = self._change.features(f"{tower}.features", features)
        return F.normalize(features, dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """What the model says of unit features. [..., n, D] and [..., C, D] -> [..., n, C]"""
        return self.logit_scale * (images @ texts.mT) + self.logit_bias

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
