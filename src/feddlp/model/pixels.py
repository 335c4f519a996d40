"""Images as the checkpoint's processor makes them, in two halves: resized once and kept as bytes, normalised anew.

    x = (resize(image) - mean) / std

with rescaling by 1/255 taken into mean and std. `check` holds that both halves together are the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from feddlp.model.hub import UnusableError

ALIKE = 1e-4  # of normalised pixels, where one of 255 levels is about 1e-2


def resize(processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """RGB images of any size -> [n, 3, H, W] uint8, resized and cropped as the processor does."""
    arrays = [np.asarray(image) for image in images]
    pixels = processor(arrays, do_rescale=False, do_normalize=False, input_data_format="channels_last")
    return torch.from_numpy(np.stack(pixels["pixel_values"])).to(torch.uint8)


def normalisation(processor: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation for pixels of 0 to 255, as the processor is set. [3, 1, 1] each"""
    factor = processor.rescale_factor if processor.do_rescale else 1
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return (torch.tensor(mean) / factor)[:, None, None], (torch.tensor(std) / factor)[:, None, None]


def check(processor: Any, side: int) -> None:
    """Try a picture.

    Args:
        side: of the square that the model reads, in pixels.

    Raises:
        UnusableError: the processor makes images of another size, or cannot be taken apart.
    """
    noise = np.random.default_rng(0).integers(0, 256, (side + 3, 2 * side + 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pixels, (mean, std) = resize(processor, [picture]), normalisation(processor)
    if pixels.shape[1:] != (3, side, side):
        height, width = pixels.shape[2:]
        raise UnusableError(
            f"of a wide picture its image processor makes {width} x {height} pixels, and the model reads "
            f"{side} x {side}; correct size and crop_size in preprocessor_config.json"
        )
    whole = torch.as_tensor(np.stack(processor([picture])["pixel_values"]))
    if not torch.allclose((pixels - mean) / std, whole, atol=ALIKE):
        raise UnusableError(
            f"its image processor ({type(processor).__name__}) does more than resize, crop, rescale and normalise; "
            "correct preprocessor_config.json"
        )
