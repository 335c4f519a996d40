"""Characters and their shapes: what the embedded CLIP was pre-trained on, and what the data set `glyphs` shows.

The fonts are the text fonts that matplotlib ships (DejaVu, STIX, Computer Modern). No handwriting and no data set of
any kind is read here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MASK_SIZE = 64
IMAGE_SIZE = 32

FONTS = (
    *(f"DejaVu{face}" for face in ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique")),
    *(f"DejaVuSansMono{face}" for face in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{face}" for face in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{face}" for face in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIGNS = {
    "!": "exclamation mark", "?": "question mark", "#": "hash sign", "$": "dollar sign", "%": "percent sign",
    "&": "ampersand", "*": "asterisk", "+": "plus sign", "=": "equals sign", "/": "slash", "@": "at sign",
    "(": "opening bracket", ")": "closing bracket",
}  # fmt: skip

COLOURS = {
    "black": (10, 10, 10), "white": (245, 245, 245), "grey": (128, 128, 128), "red": (205, 30, 35),
    "green": (30, 140, 50), "blue": (35, 65, 200), "yellow": (240, 215, 40), "orange": (240, 140, 30),
    "purple": (125, 45, 150), "brown": (115, 70, 35), "pink": (245, 150, 185),
}  # fmt: skip


@dataclass(frozen=True)
class Character:
    """One class: how it is named, and the glyphs that show it (a letter has two)."""

    glyphs: str
    names: tuple[str, ...]

    def name(self, glyph: str, rng: random.Random) -> str:
        if not glyph.isalpha():
            return rng.choice(self.names)
        case = "capital" if glyph.isupper() else "small"
        return rng.choice((*self.names, f"{case} letter {glyph.lower()}"))


def characters() -> tuple[Character, ...]:
    """The ten digits, the 26 letters in both cases, and the signs."""
    digits = (
        Character(str(value), (f"digit {word}", f"digit {word}", f"number {word}", f"digit {value}", f"number {value}"))
        for value, word in enumerate(DIGITS)
    )
    letters = (Character(chr(65 + k) + chr(97 + k), (f"letter {chr(97 + k)}",)) for k in range(26))
    signs = (Character(glyph, (name,)) for glyph, name in SIGNS.items())
    return (*digits, *letters, *signs)


def render_mask(glyph: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """The glyph in white, centred, as float in [0, 1]. (MASK_SIZE, MASK_SIZE)"""
    canvas = Image.new("L", (MASK_SIZE, MASK_SIZE))
    left, top, right, bottom = font.getbbox(glyph)
    origin = ((MASK_SIZE - right - left) / 2, (MASK_SIZE - bottom - top) / 2)
    ImageDraw.Draw(canvas).text(origin, glyph, fill=255, font=font)
    return np.asarray(canvas, dtype=np.float32) / 255


def render_masks(fonts: Sequence[str]) -> dict[str, Tensor]:
    """Every glyph in every font: glyph -> masks of shape (fonts, MASK_SIZE, MASK_SIZE)."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [ImageFont.truetype(str(folder / f"{name}.ttf"), 50) for name in fonts]
    glyphs = "".join(character.glyphs for character in characters())
    return {glyph: torch.from_numpy(np.stack([render_mask(glyph, face) for face in faces])) for glyph in glyphs}


def contrasts(ink: str, paper: str) -> bool:
    """Whether a character in one colour can be read on the other."""
    return abs(sum(COLOURS[ink]) - sum(COLOURS[paper])) > 180
