"""What the server does with the uploads."""

from __future__ import annotations

import torch
from torch import Tensor

from feddlp.model.adapters import Theta


def weighted_mean(theta: Theta, weights: Tensor) -> Theta:
    """FedAvg (McMahan et al. 2017): sum_k w_k theta_k / sum_k w_k, each leaf by itself.

    Args:
        theta: leaves [K, ...].
        weights: [K] >= 0, for example training samples.

    Returns:
        The leaves without the K axis; summed in float64, so that the order of clients hardly matters.
    """
    shares = (weights.double() / weights.double().sum()).cpu()
    return {
        name: torch.tensordot(shares.to(leaf.device), leaf.double(), dims=1).to(leaf.dtype)
        for name, leaf in theta.items()
    }
