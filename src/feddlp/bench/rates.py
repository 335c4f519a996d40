"""What this machine can do at best: the rate of its matrix products, measured on the model's own linear layers.

Every achieved rate is told as a share of the one measured here in the same run, with the same library, threads and
precision, on random numbers (zeros draw less power, and some processors run them faster).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer
from transformers import PreTrainedConfig

ROWS = {"cpu": (512, 8192), "cuda": (8192, 65536)}  # one that the caches hold, and one as long as a cohort's batch


class Rate(NamedTuple):
    """The best median over the shapes."""

    flops: float  # per second
    shape: tuple[int, int, int]  # rows, d_in, d_out


def layer_shapes(config: PreTrainedConfig, tower: str) -> list[tuple[int, int]]:
    """(d_in, d_out) of the linear layers of a tower's blocks: attention, and the two of the MLP."""
    part = config.text_config if tower == "text" else config.vision_config
    width, inner = part.hidden_size, part.intermediate_size
    return [(width, width), (width, inner), (inner, width)]


def matrix_rate(layers: list[tuple[int, int]], dtype: torch.dtype, device: torch.device, seconds: float = 0.25) -> Rate:
    """The machine's rate in FLOP/s, a multiplication and an addition being two.

    Args:
        layers: (d_in, d_out) to be tried, each with a small and a large number of rows.
        seconds: how long each shape is measured, at least; a median of many products, or of few long ones.
    """
    shapes = [(rows, *layer) for rows in ROWS.get(device.type, ROWS["cpu"]) for layer in layers]
    return max(Rate(rate_of(shape, dtype, device, seconds), shape) for shape in shapes)


def rate_of(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    rows, d_in, d_out = shape
    x, w = (torch.randn(size, d_in, device=device).to(dtype) for size in (rows, d_out))
    timer = Timer("linear(x, w)", globals={"linear": F.linear, "x": x, "w": w}, num_threads=torch.get_num_threads())
    return float(2 * rows * d_in * d_out / timer.blocked_autorange(min_run_time=seconds).median)
