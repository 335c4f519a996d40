"""How far adapters can have come: the bounds of what a server averages, and of what a node takes for its order.

A step of Adam moves no number by more than `Method.longest_step` learning rates, and whatever else honest clients and
servers do to adapters (decay, thresholds, pruning, averages, FlexLoRA's SVD) makes them no longer. After n steps

    |after| <= max(|before|, |first|) + longest_step * lr * sqrt(P) * n
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low

import torch
from torch import Tensor

from feddlp.config import TrainingConfig
from feddlp.federation.flower.envelopes import RefusedError
from feddlp.methods.base import Method
from feddlp.model.adapters import Theta

USUAL, ALWAYS = 10.0, 4.0  # times the median step of clients, and learning rates a step: what an upload may take
ROUNDING, REMEMBERED = 1.01, 1_000
Adapters = Mapping[str, Theta]


def norms(adapters: Adapters, clients: bool = True) -> Tensor:
    """Of all adapters together, of each client; of a server's, without their axis. [W, ...] each -> [W]; ... -> [1]"""
    leaves = (leaf for theta in adapters.values() for leaf in theta.values())
    rows = [leaf.double().reshape(len(leaf) if clients else 1, -1).square().sum(1) for leaf in leaves]
    return torch.stack(rows).sum(0).sqrt()


@dataclass
class Proportion:
    """The bounds of one method. first: its shared adapters before the first round"""

    method: Method
    training: TrainingConfig
    first: Adapters
    max_norm: float = 0.0  # of a client's change; 0 = any
    usual: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # steps of the last rounds' clients

    def reach(self, samples: Tensor) -> Tensor:
        """The norm of a round whose every step moves every number by one learning rate. samples: [W]"""
        steps = self.training.local_epochs * (samples.double() / self.training.batch_size).ceil()
        return steps * self.method.lr * math.sqrt(sum(leaf.numel() for t in self.first.values() for leaf in t.values()))

    def limits(self, before: Adapters, way: Tensor) -> Tensor:
        return ROUNDING * (torch.maximum(norms(before, False), norms(self.first, False)) + way)

    def refused(self, uploads: Adapters, before: Adapters, samples: Tensor) -> dict[int, str]:
        """The clients of a round that are out of all proportion to their samples and to others, by place, and why."""
        if not self.first:
            return {}
        changes = {a: {leaf: v - before[a][leaf] for leaf, v in theta.items()} for a, theta in uploads.items()}
        believed = samples.clamp(max=int(USUAL * samples.median()))  # who claims more moves no further for it
        reach, moved, found = self.reach(believed), norms(changes), {}
        steps = (moved / reach).nan_to_num(0.0, 0.0).tolist()
        usual = max(ALWAYS, USUAL * median_low([*self.usual, *steps]))
        limits = self.limits(before, min(self.method.longest_step, usual) * reach)
        for place, (norm, limit, change) in enumerate(torch.stack([norms(uploads), limits, moved], 1).tolist()):
            if norm > limit:
                found[place] = (
                    f"its upload has the norm {norm:.3g}, out of all proportion to its samples (> {limit:.3g})"
                )
            elif self.max_norm and change > self.max_norm:
                found[place] = f"its change has the norm {change:.3g}, more than deployment.max_norm={self.max_norm:g}"
        self.usual += [step for place, step in enumerate(steps) if place not in found]
        return found

    def check_order(self, order: Adapters, before: Adapters, rounds: int, most_samples: int) -> None:
        """Raises RefusedError where no averages of honest clients, some rounds after `before`, can be like this."""
        way = rounds * self.method.longest_step * self.reach(torch.tensor(most_samples))
        if self.first and (norms(order, False) > self.limits(before, way) / (1 - self.method.server_momentum)).any():
            raise RefusedError(f"its norm {norms(order, False).item():.3g} is out of all proportion to what was before")
