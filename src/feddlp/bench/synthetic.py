"""A federation made of nothing: a CLIP or SigLIP of any shape with random weights, random photographs, made-up prompts.

Speed depends on shapes and not on values, so nothing is downloaded but, for a hub name, its configuration. The
photographs exist as JPEG files in memory, larger than the model reads, as a data set on a disk would hold them; the
fast path reads them once, the naive twin anew in every epoch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, PreTrainedConfig, PreTrainedModel

from feddlp.bench.options import MOST_CLIENTS, BenchOptions
from feddlp.data.batches import ClientData
from feddlp.data.features import image_features
from feddlp.data.prompts import Prompts
from feddlp.errors import UserError
from feddlp.federation.host import FederatedData
from feddlp.materials import pick_device
from feddlp.methods.base import Method
from feddlp.model import Adapt
from feddlp.model.backbone import Backbone
from feddlp.model.checkpoint import load_config
from feddlp.model.family import END_OF_TEXT, family_of
from feddlp.randomness import generator
from feddlp.training.cohort import Cohort, Slot

PATCHES = {"vit-b-32": 32, "vit-b-16": 16}
LOGIT_SCALE = 100.0
PROMPT_TOKENS = (9, 12)  # "a photo of a {}, a type of pet." with its start and end
POOL = 512  # photographs that all clients share
PHOTOGRAPH = (2.2, 1.7)  # width and height in units of what the model reads: 493 x 381 at 224


def model_config(model: str) -> PreTrainedConfig:
    """The configuration of a name in PATCHES, the embedded checkpoint, a folder or a hub name."""
    if model in PATCHES:
        return CLIPConfig(vision_config={"patch_size": PATCHES[model]})
    return load_config(model)


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, always the same, in float32; in a second where the library's own start takes 20."""
    kind = family_of(config).model
    with torch.device("meta"):
        shapes = kind(config).state_dict()
    draw = generator(0, "bench", "weights")
    weights = {name: random_weight(name, shape, draw) for name, shape in shapes.items()}
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)


def random_weight(name: str, like: Tensor, draw: torch.Generator) -> Tensor:
    """Biases 0, norms 1, everything else uniform with the variance that keeps activations of one size."""
    if like.dim() < 2:
        return torch.zeros(like.shape) if name.endswith("bias") else torch.ones(like.shape)
    bound = (3 / like[0].numel()) ** 0.5
    return torch.empty(like.shape).uniform_(-bound, bound, generator=draw)


def image_processor(config: PreTrainedConfig) -> Any:
    """The authors' own, for the size that the model reads."""
    return family_of(config).processor(config.vision_config.image_size)


def random_backbone(config: PreTrainedConfig, adapt: Adapt, device: str, dtype: torch.dtype) -> Backbone:
    """The model of `random_model` as the fast path holds it."""
    return Backbone(random_model(config).to(device, dtype), None, image_processor(config), adapt, LOGIT_SCALE)


def random_tokens(config: PreTrainedConfig, classes: int) -> Tensor:
    """Prompts of a few lengths, padded as the family pads, with the end token. [C, L]"""
    text, draw = config.text_config, generator(0, "bench", "prompts")
    causal = family_of(config).pooled["text"] == END_OF_TEXT
    words = min(text.bos_token_id, text.eos_token_id) if causal else text.vocab_size - 1
    start, end = (text.bos_token_id, text.eos_token_id) if causal else (0, text.vocab_size - 1)
    short, long = (min(length, text.max_position_embeddings) for length in PROMPT_TOKENS)
    tokens = torch.randint(0, words, (classes, long), generator=draw)
    ends = torch.randint(short, long + 1, (classes, 1), generator=draw) - 1
    ends[0] = long - 1
    tokens[torch.arange(long) >= ends] = end
    tokens[:, 0] = start
    return tokens if causal else F.pad(tokens, (0, text.max_position_embeddings - long), value=end)


def random_prompts(backbone: Backbone, classes: int) -> Prompts:
    """The class prompts of a data set that does not exist."""
    tokens = random_tokens(backbone.model.config, classes).to(backbone.device)
    with torch.no_grad():
        return Prompts(tokens, backbone.encode_texts(tokens))


def photographs(count: int, side: int) -> list[bytes]:
    """JPEG files of soft random colours under a little noise, for a model that reads `side` x `side` pixels."""
    width, height = (round(scale * side) for scale in PHOTOGRAPH)
    draw = generator(0, "bench", "photographs")
    return [photograph(width, height, draw) for _ in range(count)]


def photograph(width: int, height: int, draw: torch.Generator) -> bytes:
    soft = F.interpolate(torch.rand(1, 3, 12, 16, generator=draw), (height, width), mode="bilinear")[0]
    grain = torch.rand(1, height, width, generator=draw) * 0.1
    pixels = ((soft * 0.9 + grain) * 255).to(torch.uint8).permute(1, 2, 0)  # (H, W, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def deal(sizes: Sequence[int], labels: Tensor, classes_per_client: int) -> tuple[Tensor, ...]:
    """Rows of the pool for each client: as many as it holds, of its own few classes, repeated if they run out."""
    classes = int(labels.max()) + 1
    held = []
    for client, size in enumerate(sizes):
        own = torch.randperm(classes, generator=generator(0, "bench", "classes", client))[:classes_per_client]
        rows = torch.isin(labels, own).nonzero()[:, 0]
        held.append(rows.repeat(-(-size // len(rows)))[:size])
    return tuple(held)


@dataclass(frozen=True)
class Pool:
    """The photographs that all clients share, as files and as the model reads them."""

    files: list[bytes]
    images: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N]


def random_pool(backbone: Backbone, classes: int, count: int) -> Pool:
    """`count` photographs, but of every class one and of no more than POOL or the classes."""
    count = max(classes, min(count, POOL))
    files = photographs(count, backbone.model.config.vision_config.image_size)
    images = torch.cat([backbone.resize([decode(file)]) for file in files])
    return Pool(files, images.to(backbone.device), (torch.arange(count) % classes).to(backbone.device))


def random_data(backbone: Backbone, pool: Pool, sizes: Sequence[int], classes_per_client: int) -> FederatedData:
    """Training samples as `sizes` says and a third as many test samples, as the paper's split leaves; no validation."""
    inputs = pool.images
    if backbone.adapt == "text":
        inputs = image_features(backbone, inputs, lambda done, total: None)
    labels = pool.labels.cpu()
    counts = (sizes, [0] * len(sizes), [-(-size // 3) for size in sizes])
    parts = (ClientData(inputs, pool.labels, deal(part, labels, classes_per_client)) for part in counts)
    return FederatedData(tuple(range(len(sizes))), *parts)


class Workload:
    """What is measured: a model with random weights, made-up prompts and photographs; the same for the same options.

    Args:
        options: with a dtype and a device of their own.
    """

    def __init__(self, options: BenchOptions, method: Method):
        self.options, self.method, self.device = options, method, torch.device(options.device)
        dtype = getattr(torch, options.dtype)
        self.backbone = random_backbone(model_config(options.model), options.adapt, options.device, dtype)
        images = (options.clients or MOST_CLIENTS) * options.steps * options.batch_size
        self.pool = random_pool(self.backbone, options.classes, images)
        self.prompts = random_prompts(self.backbone, options.classes)

    def first_client(self) -> Cohort:
        """The first client alone, as it begins."""
        return Cohort([Slot(0, 0, self.method)], self.backbone, self.prompts)

    def data(self, clients: int) -> FederatedData:
        """The samples of some clients, all with as many."""
        sizes = [self.options.steps * self.options.batch_size] * clients
        return random_data(self.backbone, self.pool, sizes, self.options.classes_per_client)


def find_device(name: str) -> torch.device:
    try:
        return torch.device(pick_device(name))
    except UserError as error:
        raise UserError(str(error).removeprefix("model.")) from error
