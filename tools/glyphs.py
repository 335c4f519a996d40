"""Characters distorted, coloured and captioned.

The pre-training material of the embedded CLIP (`tools/pretrain_tiny_clip.py`). Three steps:

    masks     every (character, font) once as a 64 x 64 grey mask (`feddlp.data.characters`)  [F, C, 64, 64]
    distort   affine + elastic warp, stroke width, resolution, colours, noise                 [N, 3, 32, 32] uint8
    caption   a sentence that names the character and sometimes its colours

No data set of any kind is read here, and the distortions were not tuned on one. One thing is known of what the model
will meet: pictures may be as small as 8 pixels, so resolutions from 8 pixels up are among the distortions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from feddlp.data.characters import COLOURS, IMAGE_SIZE, characters, contrasts, render_masks

HELD_OUT_FONTS = ("DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
COLOUR_NAMES = tuple(COLOURS)

TEMPLATES = (
    "a photo of the {}.", "a photo of the {}.", "a photo of a {}.", "an image of the {}.", "a picture of the {}.",
    "the {}.", "{}", "this is the {}.", "a drawing of the {}.", "a rendering of a {}.", "a sign that shows the {}.",
)  # fmt: skip
COLOUR_TEMPLATES = (
    "a photo of the {0} in {1} on a {2} background.", "a {1} {0} on a {2} background.", "the {1} {0}.",
    "a photo of a {1} {0}.",
)  # fmt: skip


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def warp(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Random scale, aspect, slant, rotation, shift and a smooth elastic field. (N, 64, 64) -> (N, 32, 32)"""
    count = len(masks)
    angle, slant = uniform(count, -0.25, 0.25, generator), uniform(count, -0.35, 0.35, generator)
    size = uniform(count, 0.85, 1.75, generator)
    width, height = size * uniform(count, 0.7, 1.3, generator), size
    # The sampling grid maps output to input, so a larger glyph has smaller factors.
    matrix = torch.stack(
        [
            torch.stack(
                [angle.cos() / width, (slant - angle.sin()) / width, uniform(count, -0.12, 0.12, generator)], 1
            ),
            torch.stack([angle.sin() / height, angle.cos() / height, uniform(count, -0.12, 0.12, generator)], 1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = F.affine_grid(matrix, [count, 1, IMAGE_SIZE * 2, IMAGE_SIZE * 2], align_corners=False)
    field = torch.randn(count, 2, 4, 4, generator=generator) * uniform(count, 0.0, 0.11, generator)[:, None, None, None]
    field = F.interpolate(field, size=IMAGE_SIZE * 2, mode="bicubic", align_corners=True)
    warped = F.grid_sample(masks[:, None], grid + field.permute(0, 2, 3, 1), align_corners=False)
    return F.avg_pool2d(warped, 2)[:, 0]


def restroke(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Make the strokes thinner or thicker: blur, then cut at a random level. (N, 32, 32) -> same"""
    kernel = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    kernel = torch.outer(kernel, kernel)
    blurred = F.conv2d(masks[:, None], (kernel / kernel.sum())[None, None], padding=2)[:, 0]
    level = uniform(len(masks), 0.12, 0.5, generator)[:, None, None]
    sharpness = uniform(len(masks), 6.0, 20.0, generator)[:, None, None]
    return torch.sigmoid((blurred - level) * sharpness)


def pixelate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pass each image through one of several resolutions. (N, 3, 32, 32) -> same"""
    sizes = torch.tensor([8, 10, 12, 16, 24, IMAGE_SIZE])
    choice = sizes[torch.randint(len(sizes), (len(images),), generator=generator)]
    result = images.clone()
    for size in sizes[:-1].tolist():
        rows = choice == size
        small = F.interpolate(images[rows], size=size, mode="area")
        result[rows] = F.interpolate(small, size=IMAGE_SIZE, mode="bicubic", align_corners=False)
    return result


def distort(masks: Tensor, ink: Tensor, paper: Tensor, generator: torch.Generator) -> Tensor:
    """Glyph masks become small colour pictures.

    masks (N, 64, 64) in [0, 1]; ink and paper (N, 3) in [0, 1] -> (N, 3, 32, 32) uint8
    """
    strokes = restroke(warp(masks, generator), generator)[:, None]  # (N, 1, 32, 32)
    images = paper[:, :, None, None] * (1 - strokes) + ink[:, :, None, None] * strokes
    images = pixelate(images, generator)
    noise = torch.randn(images.shape, generator=generator)
    images = images + noise * uniform(len(images), 0.0, 0.08, generator)[:, None, None, None]
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def pick_colours(rng: random.Random) -> tuple[str, str]:
    """Ink and paper with enough contrast; half of the time black and white, either way round."""
    if rng.random() < 0.5:
        return rng.choice((("black", "white"), ("white", "black")))
    while True:
        ink, paper = rng.sample(COLOUR_NAMES, 2)
        if contrasts(ink, paper):
            return ink, paper


def pick_caption(name: str, ink: str, paper: str, rng: random.Random) -> str:
    if rng.random() < 0.2:
        return rng.choice(COLOUR_TEMPLATES).format(name, ink, paper)
    return rng.choice(TEMPLATES).format(name)


class GlyphBatches:
    """An endless, seeded stream of batches; in each group of a batch every character occurs exactly once.

    So a group has no two captions for one character, and the contrastive loss no false negatives.
    """

    def __init__(self, fonts: Sequence[str], groups: int, seed: int):
        self.masks = render_masks(fonts)
        self.groups = groups
        self.characters = characters()
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, list[str]]:
        """Images (groups * characters, 3, 32, 32) uint8 and their captions, group by group."""
        masks, captions, colours = [], [], []
        for character in self.characters * self.groups:
            glyph = self.rng.choice(character.glyphs)
            ink, paper = pick_colours(self.rng)
            masks.append(self.rng.choice(self.masks[glyph]))
            colours.append((COLOURS[ink], COLOURS[paper]))
            captions.append(pick_caption(character.name(glyph, self.rng), ink, paper, self.rng))
        palette = torch.tensor(colours) / 255  # (N, 2, 3)
        palette = (palette + torch.randn(palette.shape, generator=self.generator) * 0.04).clamp(0, 1)
        return distort(torch.stack(masks), palette[:, 0], palette[:, 1], self.generator), captions
