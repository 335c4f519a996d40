"""What the server does with the uploads: averages, and a momentum on top."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
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


def average_products(theta: Theta, weights: Tensor) -> Theta:
    """FlexLoRA (Bai et al. 2024): the weighted mean of the products B A of a LoRA, cut back to its rank by an SVD.

    sum_k w_k B_k A_k is itself a product of [d_out, K r] and [K r, d_in], so that the SVD is one of K r x K r after
    two QR decompositions. The root of the singular values goes to either factor.
    """
    shares = (weights.double() / weights.double().sum()).cpu()
    averaged = {}
    for site in [name.removesuffix(".A") for name in theta if name.endswith(".A")]:
        down, up = theta[f"{site}.A"], theta[f"{site}.B"]  # (K, r, d_in), (K, d_out, r)
        rank = down.shape[1]
        stacked = (down.double() * shares.to(down.device)[:, None, None]).flatten(0, 1)  # (K r, d_in)
        q_up, r_up = torch.linalg.qr(up.double().transpose(0, 1).flatten(1))  # (d_out, K r)
        q_down, r_down = torch.linalg.qr(stacked.mT)
        u, s, v = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
        root = s[:rank].sqrt()
        spare = rank - len(root)  # ranks that a layer narrower than the rank cannot fill
        averaged[f"{site}.A"] = F.pad(root[:, None] * (v[:rank] @ q_down.mT), (0, 0, 0, spare)).to(down.dtype)
        averaged[f"{site}.B"] = F.pad((q_up @ u[:, :rank]) * root, (0, spare)).to(up.dtype)
    return averaged


class Server:
    """The shared adapters and what the server remembers of its steps.

    Args:
        shared: the adapters before the first round, no K axis.
        momentum: FedAvgM's beta (Hsu et al. 2019): v <- beta v + (theta - average), theta <- theta - v; 0 = averaging.
    """

    def __init__(self, shared: dict[str, Theta], momentum: float = 0.0):
        self.shared, self.momentum = shared, momentum
        self.velocity = {
            name: {leaf: torch.zeros_like(value) for leaf, value in theta.items()} if momentum else {}
            for name, theta in shared.items()
        }

    def step(self, averages: dict[str, Theta]) -> None:
        """Take over the averages, with momentum where there is one."""
        for name, average in averages.items():
            for leaf, velocity in self.velocity[name].items():
                velocity.mul_(self.momentum).add_(self.shared[name][leaf] - average[leaf])
                average = {**average, leaf: self.shared[name][leaf] - velocity}
            self.shared[name] = average

    def state_dict(self) -> dict[str, Tensor]:
        """Live tensors by "shared/adapter/leaf" and "velocity/adapter/leaf"."""
        kept = {"shared": self.shared, "velocity": self.velocity}
        return {
            f"{part}/{name}/{leaf}": value
            for part, thetas in kept.items()
            for name, theta in thetas.items()
            for leaf, value in theta.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back copies of what `state_dict` gave, where and as the server keeps them."""
        for part, thetas in (("shared", self.shared), ("velocity", self.velocity)):
            for name, theta in thetas.items():
                for leaf, value in theta.items():
                    theta[leaf] = state[f"{part}/{name}/{leaf}"].to(value, copy=True)
