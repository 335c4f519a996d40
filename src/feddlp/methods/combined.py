"""Combined: FedDLP's ablation in which the two adapters act as one (the paper's §VI, Tables VII and VIII).

    theta_l <- theta_l - grad [ CE(local + copy) + alpha KL(global -> local + copy) ]
    theta_g <- theta_g - grad [ CE(global)       + KL(local + copy -> global) ]
    prediction: the frozen model with local + copy

The copy is the global adapter as it arrived, frozen. Here everything else is as in FedDLP; as published (`local_rank`
2, distillation at full weight) it is the variant `combined_published`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from feddlp.methods.base import keep_copy
from feddlp.methods.feddlp import FedDLP
from feddlp.model.adapters import Adapter, Theta, View


@dataclass(frozen=True, kw_only=True)
class Combined(FedDLP):
    """FedDLP whose local adapter acts on top of a frozen copy of the global one."""

    frozen: ClassVar[tuple[str, ...]] = ("copy",)

    def adapters(self) -> dict[str, Adapter]:
        return super().adapters() | {"copy": self.lora(self.global_rank)}

    def receive(self, theta: dict[str, Theta]) -> None:
        keep_copy(theta["copy"], theta["global"])

    @property
    def views(self) -> dict[str, View]:
        return {"local": {"local": 1.0, "copy": 1.0}, "global": "global"}
