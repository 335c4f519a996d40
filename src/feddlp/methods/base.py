"""What a method is: which adapters a client has, which of them travel, and the losses they learn from.

A method is one short file in this folder that reads like its paper's algorithm; being in the folder is being
registered, under the file's name. Its fields are its hyper-parameters, so that an ablation is a field and a
configuration can set each of them (`method.lr=1e-3` for every method, `method.feddlp.kd_weight=0.1` for one).

Losses come from a generator. `yield name, loss` hands one adapter its loss, [K], and resumes after that adapter, alone,
has stepped. So the freezing rule (paper §V-D) needs no code, and the order of the steps is the order of the lines.

    Method       the objective, the optimiser, and what the server does; FedProx and FedAvgM are fields
    LoRAMethod   adds the start and scaling of LoRA, and which factors learn and travel: FFA-LoRA, FedSA-LoRA, FlexLoRA
    GatedMethod  adds SoRA's gates
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.federation.aggregation import Average, ProductMean, WeightedMean
from feddlp.model.adapters import Adapter, Layers, LoRA, LoRAInit, LoRAScaling, Theta, View
from feddlp.model.gates import GatedLoRA, GateInit, GateSchedule, Prox
from feddlp.training.losses import Objective, cross_entropy

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Momentum = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
STACKABLE = ("lr", "kd_weight", "gate_threshold")
"""Fields in which trials may differ and still train side by side."""


class Forward(Protocol):
    """The paper's f_{Delta + theta}: class logits [K, B, C] with the adapters of a view."""

    def __call__(self, batch: Batch, view: View) -> Tensor:
        """With gradient."""
        ...

    def frozen(self, batch: Batch, view: View) -> Tensor:
        """As a teacher, or for prediction: without gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Fields common to all methods: the objective, the optimiser (Adam, constant learning rate), the server.

    Attributes:
        shared: names of the adapters that the server averages; every other adapter never leaves its client.
        frozen: names of the adapters that never learn (copies).
        decay: weight decay "decoupled" (AdamW) or "l2" (added to the gradient, Adam).
        max_grad_norm: gradient clipping per client and adapter; 0 = none.
        reset_optimizer: forget the moments at the start of every round.
        proximal: FedProx's mu; adds mu/2 |theta - theta received|^2 to the loss of every shared adapter.
        averaging: weights of the clients: their training samples, or all the same.
        server_momentum: FedAvgM's beta (Hsu et al. 2019); 0 = plain averaging.
    """

    shared: ClassVar[tuple[str, ...]] = ()
    frozen: ClassVar[tuple[str, ...]] = ()

    objective: Objective = "class_ce"
    lr: Positive = 1e-3
    beta1: Momentum = 0.9
    beta2: Momentum = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    decay: Literal["decoupled", "l2"] = "decoupled"
    max_grad_norm: NonNegative = 1.0
    reset_optimizer: bool = False
    proximal: NonNegative = 0.0
    averaging: Literal["samples", "uniform"] = "samples"
    server_momentum: Momentum = 0.0

    @abstractmethod
    def adapters(self) -> dict[str, Adapter]:
        """The adapters of one client, by name."""

    @abstractmethod
    def losses(self, f: Forward, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (adapter name, loss [K]); each adapter steps before the next line runs."""

    @abstractmethod
    def predict(self, f: Forward, batch: Batch) -> Tensor:
        """Logits [K, B, C] of the model that the client would use."""

    def inferences(self, f: Forward, batch: Batch) -> dict[str, Tensor]:
        """Other ways to predict, logged as diagnostics. name -> logits [K, B, C]"""
        return {}

    def learns(self, name: str, leaf: str) -> bool:
        """Whether a leaf of an adapter is trained."""
        return name not in self.frozen

    def sends(self, name: str, leaf: str) -> bool:
        """Whether a leaf travels."""
        return name in self.shared

    def send(self, name: str, theta: Theta) -> Theta:
        """What leaves the clients of one adapter, [K, ...]. It may have any form that `take` can take back."""
        return {leaf: value.detach() for leaf, value in theta.items() if self.sends(name, leaf)}

    def payload(self, name: str, sent: Theta) -> Tensor:
        """Bytes of what each client sends or gets of one adapter. [K]"""
        clients = len(next(iter(sent.values())))
        return torch.full((clients,), sum(leaf[0].numel() * leaf.element_size() for leaf in sent.values()))

    def take(self, name: str, theta: Theta, received: Theta) -> Theta:
        """What the clients put in place of their leaves [K, ...] when the server's come, as sent without the K axis."""
        return {leaf: value.expand(len(theta[leaf]), *value.shape) for leaf, value in received.items()}

    def receive(self, theta: dict[str, Theta]) -> None:  # noqa: B027 - most methods have nothing to do
        """Called after each download with all adapters of the cohort; the place to keep a frozen copy."""

    def average(self) -> Average:
        """How the server averages the uploads of one adapter over a round."""
        return WeightedMean()

    def ce(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy under the method's objective. [K, B, C] -> [K]"""
        return cross_entropy(logits, batch, self.objective)

    @property
    def longest_step(self) -> float:
        """The most that Adam moves a number, in learning rates: the root of the largest ratio of weights in m and v."""
        return math.sqrt((1 - self.beta1) / (1 - self.beta2)) if self.beta1 <= self.beta2 else math.inf

    def optimizer_options(self) -> dict[str, Any]:
        """Keyword arguments of `training.optim.AdamW`."""
        options = {name: getattr(self, name) for name in ("lr", "eps", "weight_decay", "decay", "max_grad_norm")}
        return options | {"betas": (self.beta1, self.beta2)}


@dataclass(frozen=True, kw_only=True)
class LoRAMethod(Method):
    """A method whose adapters are LoRAs.

    Attributes:
        factors_trained: "AB", or "B" with A at its start, the same for all clients (FFA-LoRA, Sun et al. 2024).
        factors_sent: "AB", or "A" alone while B stays private (FedSA-LoRA, Guo et al. 2025). Of FFA-LoRA only B ever
            travels: A follows from the seed.
        average_of: "factors", A and B each by itself; or "products" BA, cut back to rank r by an SVD (FlexLoRA, Bai et
            al. 2024). Needs reset_optimizer: the SVD's factors have arbitrary signs, and kept moments would make the
            result depend on them.
    """

    lora_alpha: Positive = 16.0
    lora_init: LoRAInit = "kaiming"
    lora_scaling: LoRAScaling = "standard"
    layers: Layers = "all"
    factors_trained: Literal["AB", "B"] = "AB"
    factors_sent: Literal["AB", "A"] = "AB"
    average_of: Literal["factors", "products"] = "factors"

    def __post_init__(self) -> None:
        if self.factors_trained == "B" and self.factors_sent == "A":
            raise ValueError("factors_trained=B with factors_sent=A would send nothing that was trained; change one")
        if self.average_of == "products" and (self.factors_trained, self.factors_sent) != ("AB", "AB"):
            raise ValueError("average_of=products needs both factors; set factors_trained=AB and factors_sent=AB")
        if self.average_of == "products" and self.server_momentum:
            raise ValueError("average_of=products gives factors of arbitrary sign, which server_momentum cannot follow")
        if self.average_of == "products" and not self.reset_optimizer:
            raise ValueError(
                "average_of=products gives new factors, to which Adam's moments do not belong; set reset_optimizer=true"
            )

    def lora(self, rank: int) -> LoRA:
        return LoRA(rank, self.lora_alpha, self.lora_init, self.lora_scaling, self.layers)

    def learns(self, name: str, leaf: str) -> bool:
        fixed = self.factors_trained == "B" and leaf.endswith(".A")
        return super().learns(name, leaf) and not fixed

    def sends(self, name: str, leaf: str) -> bool:
        private = self.factors_sent == "A" and leaf.endswith(".B")
        return super().sends(name, leaf) and self.learns(name, leaf) and not private

    def average(self) -> Average:
        return WeightedMean() if self.average_of == "factors" else ProductMean()


@dataclass(frozen=True, kw_only=True)
class GatedMethod(LoRAMethod):
    """A method with a gated LoRA (SoRA).

    Attributes:
        gate_threshold: xi, per step.
        threshold_scale: xi as it is ("absolute", the public code), or times the learning rate ("lr").
        compact: after each round take pruned ranks away for good, with their moments; a gate cannot come back then.
    """

    gate_threshold: NonNegative = 5e-5
    threshold_scale: Literal["absolute", "lr"] = "absolute"
    gate_init: GateInit = "normal"
    prox: Prox = "soft"
    gate_schedule: GateSchedule = "constant"
    gate_schedule_rounds: Count = 100
    compact: bool = False

    def gated(self, rank: int) -> GatedLoRA:
        scale = self.lr if self.threshold_scale == "lr" else 1.0
        return GatedLoRA(
            rank,
            self.lora_alpha,
            self.lora_init,
            self.lora_scaling,
            self.layers,
            gate_threshold=self.gate_threshold * scale,
            gate_init=self.gate_init,
            prox=self.prox,
            gate_schedule=self.gate_schedule,
            gate_schedule_rounds=self.gate_schedule_rounds,
            compact=self.compact,
        )


def stacked(methods: Sequence[Method], dtype: torch.dtype, device: torch.device) -> Method:
    """K methods as one whose differing fields are tensors [K]: trials side by side on the client axis.

    Raises:
        ValueError: methods that differ in more than the STACKABLE fields.
    """
    first = methods[0]
    changes: dict[str, Any] = {}
    for name in (field.name for field in fields(first)):
        values = [getattr(method, name) for method in methods]
        if any(value != values[0] for value in values):
            if name not in STACKABLE:
                raise ValueError(f"methods that differ in {name} cannot train side by side")
            changes[name] = torch.tensor(values, dtype=dtype, device=device)
    return replace(first, **changes)


@torch.no_grad()
def keep_copy(copy: Theta, of: Theta) -> None:
    """Overwrite one adapter with another, in place."""
    for leaf, value in of.items():
        copy[leaf].copy_(value)
