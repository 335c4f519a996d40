"""What a method is: which adapters a client has, which of them travel, and the losses they learn from.

A method is one short file in this folder that reads like its paper's algorithm; being in the folder is being
registered, under the file's name. Its fields are its hyper-parameters, so that an ablation is a field and a
configuration can set each of them (`method.lr=1e-3` for every method, `method.feddlp.kd_weight=0.1` for one).

Losses come from a generator. `yield name, loss` hands one adapter its loss, [K], and resumes after that adapter, alone,
has stepped. So the freezing rule (paper §V-D) needs no code, and the order of the steps is the order of the lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.federation.aggregation import weighted_mean
from feddlp.model.adapters import Adapter, Theta
from feddlp.training.losses import Objective, cross_entropy

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]
Rank = Annotated[int, Ge(1)]


class Forward(Protocol):
    """The paper's f_{Delta + theta}: class logits [K, B, C] with the adapters of a view."""

    def __call__(self, batch: Batch, view: Any) -> Tensor:
        """With gradient."""
        ...

    def frozen(self, batch: Batch, view: Any) -> Tensor:
        """As a teacher, or for prediction: without gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Fields common to all methods: the objective and the optimiser (AdamW, constant learning rate).

    Attributes:
        shared: names of the adapters that the server averages; every other adapter never leaves its client.
        max_grad_norm: gradient clipping per client and adapter; 0 = none.
    """

    shared: ClassVar[tuple[str, ...]] = ()

    objective: Objective = "class_ce"
    lr: Positive = 1e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0

    @abstractmethod
    def adapters(self) -> dict[str, Adapter]:
        """The adapters of one client, by name."""

    @abstractmethod
    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (adapter name, loss [K]); each adapter steps before the next line runs."""

    @abstractmethod
    def predict(self, f: Forward, batch: Batch) -> Tensor:
        """Logits [K, B, C] of the model that the client would use."""

    def receive(self, theta: dict[str, Theta]) -> None:  # noqa: B027 - most methods have nothing to do
        """Called after each download with all adapters of the cohort; the place to keep a frozen copy."""

    def aggregate(self, uploads: dict[str, Theta], weights: Tensor) -> dict[str, Theta]:
        """The server's step: uploads [K, ...] and weights [K] to new shared adapters without the K axis."""
        return {name: weighted_mean(theta, weights) for name, theta in uploads.items()}

    def ce(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy under the method's objective. [K, B, C] -> [K]"""
        return cross_entropy(logits, batch, self.objective)

    def optimizer_options(self) -> dict[str, Any]:
        """Keyword arguments of `training.optim.AdamW`."""
        return {
            "lr": self.lr,
            "betas": (self.beta1, self.beta2),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
        }
