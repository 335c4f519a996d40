"""Accuracy of a federation: pooled over all samples, and its spread over clients."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """In %, over K clients. Pooled = sum of correct / sum of samples; the spread weighs every client alike."""

    pooled: float
    client_mean: float
    client_std: float  # population standard deviation (ddof 0), as in the paper's Tables III and IV
    client_lowest: float
    client_p10: float  # 10th percentile, linear interpolation

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def accuracy(correct: Tensor, samples: Tensor) -> Accuracy | None:
    """Summarise K clients; those without samples or not scored are left out, None where no client is left.

    Args:
        correct, samples: [K] counts; a correct of -1 stands for not scored.
    """
    held = (samples > 0) & (correct >= 0)
    if not held.any():
        return None
    share = correct[held].double() / samples[held].double() * 100
    pooled = correct[held].sum().item() / samples[held].sum().item() * 100
    return Accuracy(
        pooled,
        share.mean().item(),
        share.std(correction=0).item(),
        share.min().item(),
        torch.quantile(share, 0.1).item(),
    )
