"""What differs between the kinds of dual encoders that one `Backbone` serves, in one place.

clip     OpenAI's, LAION's and their like (Radford et al. 2021). A class token is pooled in the image tower, the end
         token in the causal text tower, so that what is padded behind it is never read. Projections to one width.
siglip   SigLIP (Zhai et al. 2023) and SigLIP2 of fixed resolution. An attention head pools all patches. The text
         tower looks both ways without a mask and is read at its last position, a padding token nearly always: it
         was trained on lower-case text padded to all positions, and is wrong for anything else. Logits have a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipModel,
)

END_OF_TEXT: Literal["end of text"] = "end of text"


@dataclass(frozen=True)
class Family:
    """How a kind of dual encoder is built, fed and read. Mappings go by tower: "image" and "text"."""

    model: type[PreTrainedModel]
    modules: Mapping[str, tuple[str, ...]]  # where the weights of each tower are
    feature_width: Mapping[str, Callable[[Any], int]]  # from the configuration
    pooled: Mapping[str, int | Literal["end of text"]]  # the one token that is read of a tower's last layer, if one is
    image_tokens_beside_patches: int
    padding: Literal["longest", "max_length"]  # how prompts are padded
    lower_case: bool  # whether prompts are made lower-case
    processor: Callable[[int], Any]  # the authors' image processing, for the side of what the model reads


def clip_processor(side: int) -> Any:
    """The shorter edge to `side`, then the square in the middle."""
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def siglip_processor(side: int) -> Any:
    """Squeezed into a square."""
    return SiglipImageProcessorPil(size={"height": side, "width": side})


FAMILIES = {
    "clip": Family(
        model=CLIPModel,
        modules={"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")},
        feature_width={"image": attrgetter("projection_dim"), "text": attrgetter("projection_dim")},
        pooled={"image": 0, "text": END_OF_TEXT},
        image_tokens_beside_patches=1,
        padding="longest",
        lower_case=False,  # its tokenizer does that
        processor=clip_processor,
    ),
    "siglip": Family(
        model=SiglipModel,
        modules={"image": ("vision_model",), "text": ("text_model",)},
        feature_width={
            "image": attrgetter("vision_config.hidden_size"),
            "text": attrgetter("text_config.projection_size"),
        },
        pooled={"text": -1},
        image_tokens_beside_patches=0,
        padding="max_length",
        lower_case=True,  # SigLIP's tokenizer does that, SigLIP2's (Gemma's) does not
        processor=siglip_processor,
    ),
}
"""By `model_type` of the configuration."""


def family_of(config: PreTrainedConfig) -> Family:
    return FAMILIES[config.model_type]


def image_tokens(config: PreTrainedConfig) -> int:
    """Tokens of an image in its tower: patches, and the class token where there is one."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2) + family_of(config).image_tokens_beside_patches


def temperature(model: PreTrainedModel) -> tuple[float, float]:
    """What cosines are multiplied by, and what is added then: logits = scale cos + bias."""
    bias = getattr(model, "logit_bias", torch.zeros(()))
    return model.logit_scale.double().exp().item(), bias.item()
