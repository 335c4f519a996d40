"""FedDLP: dual adapters, bi-directional distillation, selective pruning (the paper, §V).

    each round, each client, each batch
        theta_l <- theta_l - grad [ CE(local)  + alpha KL(global -> local) ]    theta_g frozen      (§V-C.1, §V-F.1)
        g       <- T_xi(g)                                                      prune the gates     (§V-G)
        theta_g <- theta_g - grad [ CE(global) + KL(local -> global) ]          theta_l frozen      (§V-C.2, §V-F.2)
    server: theta_g <- sum_k n_k / n theta_g^k                                  theta_l stays home  (§V-E)
    prediction: the frozen model with theta_l

The paper's alpha is `kd_weight`. The teacher of theta_g is theta_l as just updated, as in the public code. Where we
differ: the soft threshold is the published one (the public code also zeroes gates below 2 xi), and the objective is
the paper's cross-entropy over class prompts (the public code trains with `objective = "in_batch"`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Forward, Method, NonNegative, Positive, Rank
from feddlp.model.adapters import Adapter, GatedLoRA, GateInit, LoRA, LoRAInit
from feddlp.training.losses import Direction, distillation


@dataclass(frozen=True, kw_only=True)
class FedDLP(Method):
    """Dual LoRA: a private gated one that is pruned, a small shared one, each teaching the other."""

    shared: ClassVar[tuple[str, ...]] = ("global",)

    local_rank: Rank = 4
    global_rank: Rank = 2
    lora_alpha: Positive = 16.0
    lora_init: LoRAInit = "kaiming"
    gate_init: GateInit = "normal"
    gate_threshold: NonNegative = 5e-5
    kd_weight: NonNegative = 0.1
    kd_temperature: Positive = 3.0
    kd_direction: Direction = "teacher_student"

    def adapters(self) -> dict[str, Adapter]:
        return {
            "local": GatedLoRA(self.local_rank, self.lora_alpha, self.lora_init, self.gate_threshold, self.gate_init),
            "global": LoRA(self.global_rank, self.lora_alpha, self.lora_init),
        }

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        local, glob = f(batch, "local"), f(batch, "global")
        yield "local", self.ce(local, batch) + self.kd_weight * self.kl(local, glob, batch)
        yield "global", self.ce(glob, batch) + self.kl(glob, f.frozen(batch, "local"), batch)

    def kl(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return distillation(student, teacher, batch, self.objective, self.kd_temperature, self.kd_direction)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, "local")
