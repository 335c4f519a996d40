"""Rendered characters in any number, for tests of speed and scale.

The embedded model was pre-trained on renderings of the same characters in the same fonts, so accuracies on them say
nothing about a method. The images themselves are others: drawn from addresses of their own, by a plainer and much
faster renderer (no elastic warp, no change of stroke or resolution).

    shapes    every (character, case, font) once as a smoothed mask            [C, S, 64, 64] uint8
    place     an affine look-up: scale, aspect, slant, rotation, shift         [n, 32, 32] uint8
    paint     two contrasting colours and some noise                           [n, 3, 32, 32] uint8

Image i shows character i mod C. Its block is always drawn whole, from the block's own address, and coordinates and
pixels are integers: neither the number of images nor that of threads changes any.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from feddlp.data.characters import COLOURS, FONTS, IMAGE_SIZE, MASK_SIZE, characters, contrasts, render_masks
from feddlp.data.source import Source
from feddlp.errors import UserError
from feddlp.randomness import generator

CHARACTERS = characters()
DEFAULT_COUNT, MOST = 10_000, 10_000_000
BLOCK = 20 * len(CHARACTERS)  # part of an image's address: another size means other images
PALETTE = [(COLOURS[ink], COLOURS[paper]) for ink, paper in permutations(COLOURS, 2) if contrasts(ink, paper)]
BITS = 12  # of the fraction, in the coordinates


def rendered(argument: str) -> Source:
    """The source `glyphs:COUNT`."""
    try:
        count = int(argument or DEFAULT_COUNT)
    except ValueError:
        count = 0
    if not len(CHARACTERS) <= count <= MOST:
        raise UserError(
            f"data.dataset=glyphs:{argument} is not a number of images from {len(CHARACTERS)} (one for each character) "
            f"to {MOST}; write for example data.dataset=glyphs:{DEFAULT_COUNT}"
        )
    labels = [index % len(CHARACTERS) for index in range(count)]
    names = tuple(character.names[0] for character in CHARACTERS)
    return Source("glyphs", labels, names, "a photo of the {}.", blocks=partial(blocks, count))


def blocks(count: int) -> Iterator[Tensor]:
    """The first `count` images, in blocks [n, 3, 32, 32] uint8."""
    shapes = render_shapes()
    for start in range(0, count, BLOCK):
        yield render_block(shapes, start // BLOCK)[: count - start]


def render_shapes() -> Tensor:
    """Each character in both cases and all fonts, smoothed for sampling at half its size. [C, S, 64, 64] uint8"""
    masks = render_masks(FONTS)
    shapes = [torch.cat([masks[character.glyphs[0]], masks[character.glyphs[-1]]]) for character in CHARACTERS]
    return F.avg_pool2d(torch.stack(shapes) * 255, 3, stride=1, padding=1).round().to(torch.uint8)


def render_block(shapes: Tensor, number: int) -> Tensor:
    """Block `number` of the endless data set. shapes [C, S, 64, 64] -> [BLOCK, 3, 32, 32] uint8"""
    draws = generator(0, "glyphs", number)
    character = torch.arange(BLOCK) % len(shapes)
    shape = torch.randint(shapes.shape[1], (BLOCK,), generator=draws)
    return paint(place(shapes.flatten(0, 1), character * shapes.shape[1] + shape, draws), draws)


def place(shapes: Tensor, chosen: Tensor, draws: torch.Generator) -> Tensor:
    """The chosen shapes scaled, stretched, slanted, turned and shifted. [S, 64, 64], [n] -> [n, 32, 32] uint8"""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(chosen)).uniform_(low, high, generator=draws)

    angle, slant, height = uniform(-0.25, 0.25), uniform(-0.3, 0.3), uniform(0.9, 1.5)
    width = height * uniform(0.75, 1.25)  # a larger glyph takes smaller steps through its mask
    x = locate(uniform(-5, 5), angle.cos() / width, (slant - angle.sin()) / width)
    y = locate(uniform(-5, 5), angle.sin() / height, angle.cos() / height)
    index = (chosen.int()[:, None, None] * MASK_SIZE + y) * MASK_SIZE + x
    return shapes.flatten().index_select(0, index.flatten()).view_as(index)


def locate(shift: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Where in the mask each pixel lies, along one axis. Mask pixels, and these per step: [n] -> [n, 32, 32] int32"""
    middle = shift + (MASK_SIZE - 1) / 2
    middle, across, down = (torch.stack([middle, across, down]) * 2**BITS).round().int()[..., None, None]
    steps = torch.arange(IMAGE_SIZE, dtype=torch.int32) * 2 - (IMAGE_SIZE - 1)
    located: Tensor = (middle + across * steps + down * steps[:, None]) >> BITS
    return located.clamp_(0, MASK_SIZE - 1)


def paint(strokes: Tensor, draws: torch.Generator) -> Tensor:
    """Strokes in one colour on paper of another, with noise. [n, 32, 32] uint8 -> [n, 3, 32, 32] uint8"""
    count = len(strokes)
    pairs = torch.tensor(PALETTE, dtype=torch.int32)  # [P, 2, 3]
    pairs = pairs[torch.randint(len(pairs), (count,), generator=draws)]
    ink, paper = (pairs + torch.randint(-15, 16, pairs.shape, generator=draws)).int()[..., None, None].unbind(1)
    noise = torch.randint(-128, 128, (count, 3, *strokes.shape[1:]), dtype=torch.int8, generator=draws)
    level = torch.randint(0, 32, (count, 1, 1, 1), dtype=torch.int32, generator=draws)
    pixels = (paper * 256 + (ink - paper) * strokes[:, None].int() + noise * level) >> 8
    return pixels.clamp_(0, 255).to(torch.uint8)
