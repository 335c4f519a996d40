"""FedDLP: dual adapters, bi-directional distillation, selective pruning (the paper, §V).

    each round, each client, each batch
        theta_l <- theta_l - grad [ CE(local)  + alpha KL(global -> local) ]    theta_g frozen      (§V-C.1, §V-F.1)
        g       <- T_xi(g)                                                      prune the gates     (§V-G)
        theta_g <- theta_g - grad [ CE(global) + KL(local -> global) ]          theta_l frozen      (§V-C.2, §V-F.2)
    server: theta_g <- sum_k n_k / n theta_g^k                                  theta_l stays home  (§V-E)
    prediction: the frozen model with theta_l

The paper's alpha is `kd_weight`. The teacher of theta_g is theta_l as just updated, as in the public code. Where we
differ: the soft threshold is the published one (the public code also zeroes gates below 2 xi), and the objective is
the paper's cross-entropy over class prompts (the public code trains with `objective = "in_batch"`). Everything that the
paper leaves open is a field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Count, Forward, GatedMethod, NonNegative, Positive
from feddlp.model.adapters import Adapter, View
from feddlp.training.losses import Direction, distillation, ensemble


@dataclass(frozen=True, kw_only=True)
class FedDLP(GatedMethod):
    """Dual LoRA: a private gated one that is pruned, a small shared one, each teaching the other.

    Attributes:
        update_order: who steps first; "simultaneous" computes both losses before either steps (2 passes, not 3).
        inference: what predicts: one adapter, both added ("combined"), or the mean of their probabilities.
    """

    shared: ClassVar[tuple[str, ...]] = ("global",)

    local_rank: Count = 4
    global_rank: Count = 2
    kd_weight: NonNegative = 0.1
    kd_temperature: Positive = 3.0
    kd_direction: Direction = "teacher_student"
    update_order: Literal["local_first", "global_first", "simultaneous"] = "local_first"
    inference: Literal["local", "global", "combined", "ensemble"] = "local"

    def adapters(self) -> dict[str, Adapter]:
        return {"local": self.gated(self.local_rank), "global": self.lora(self.global_rank)}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        first, second = ("global", "local") if self.update_order == "global_first" else ("local", "global")
        logits = {name: f(batch, self.views[name]) for name in (first, second)}
        yield first, self.loss(first, logits[first], logits[second], batch)
        teacher = logits[first] if self.update_order == "simultaneous" else f.frozen(batch, self.views[first])
        yield second, self.loss(second, logits[second], teacher, batch)

    def loss(self, name: str, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        kl = distillation(student, teacher, batch, self.objective, self.kd_temperature, self.kd_direction)
        return self.ce(student, batch) + (self.kd_weight if name == "local" else 1.0) * kl

    @property
    def views(self) -> dict[str, View]:
        """How each of the two acts: alone."""
        return {"local": "local", "global": "global"}

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        if view := self.views.get(self.inference):
            return f.frozen(batch, view)
        return self.inferences(f, batch)[self.inference]

    def inferences(self, f: Forward, batch: Batch) -> dict[str, Tensor]:
        alone = {name: f.frozen(batch, view) for name, view in self.views.items()}
        combined = f.frozen(batch, {"local": 1.0, "global": 1.0})
        return {**alone, "combined": combined, "ensemble": ensemble(*alone.values())}
