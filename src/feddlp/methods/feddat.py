"""FedDAT (Chen et al., AAAI 2024) with LoRA adapters: a local adapter beside a frozen copy of the global one.

    DAT = local + copy, where the copy is the global adapter as it arrived, frozen
    theta_l <- theta_l - grad [ CE(DAT)    + KL(global -> DAT) ]
    theta_g <- theta_g - grad [ CE(global) + KL(DAT -> global) ]
    server: theta_g <- sum_k n_k / n theta_g^k
    prediction: DAT

These are the settings of FedDLP's authors. The original (variant `feddat_original`) halves both adapters in DAT and
both losses, takes both losses before either steps, has T = 3, averages uniformly, and forgets the moments each round.
It has bottleneck adapters; ours are LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.methods.base import Count, Forward, LoRAMethod, NonNegative, Positive, keep_copy
from feddlp.model.adapters import Adapter, Theta, View
from feddlp.training.losses import Direction, distillation, ensemble


@dataclass(frozen=True, kw_only=True)
class FedDAT(LoRAMethod):
    """A local LoRA on top of a frozen copy of the shared one, the sum and the shared one teaching each other.

    Attributes:
        adapter_share: weight of local and of copy in DAT.
        loss_share: what each loss is multiplied by.
        update_order: "simultaneous" takes both losses before either adapter steps.
    """

    shared: ClassVar[tuple[str, ...]] = ("global",)
    frozen: ClassVar[tuple[str, ...]] = ("copy",)

    rank: Count = 2
    adapter_share: Positive = 1.0
    loss_share: Positive = 1.0
    kd_weight: NonNegative = 1.0
    kd_temperature: Positive = 1.0
    kd_direction: Direction = "teacher_student"
    update_order: Literal["local_first", "simultaneous"] = "local_first"

    def adapters(self) -> dict[str, Adapter]:
        return {name: self.lora(self.rank) for name in ("local", "global", "copy")}

    def receive(self, theta: dict[str, Theta]) -> None:
        keep_copy(theta["copy"], theta["global"])

    @property
    def dat(self) -> View:
        return {"local": self.adapter_share, "copy": self.adapter_share}

    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        dat, glob = f(batch, self.dat), f(batch, "global")
        yield "local", self.loss(dat, glob, batch)
        teacher = dat if self.update_order == "simultaneous" else f.frozen(batch, self.dat)
        yield "global", self.loss(glob, teacher, batch)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        kl = distillation(student, teacher, batch, self.objective, self.kd_temperature, self.kd_direction)
        return self.loss_share * (self.ce(student, batch) + self.kd_weight * kl)

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        return f.frozen(batch, self.dat)

    def inferences(self, f: Forward, batch: Batch) -> dict[str, Tensor]:
        combined, glob = f.frozen(batch, self.dat), f.frozen(batch, "global")
        local = f.frozen(batch, "local")
        return {"local": local, "global": glob, "combined": combined, "ensemble": ensemble(combined, glob)}
