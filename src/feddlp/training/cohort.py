"""The one training loop: K clients side by side over one frozen backbone.

A federation of ten on one machine is a cohort of ten; a deployed client is a cohort of one; three seeds of ten clients
are a cohort of thirty. What stands side by side are slots: a client of some seed and trial. They are independent, so
d(sum_k L_k)/d theta_k = dL_k/d theta_k, and one backward pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from feddlp.data.batches import Batch, ClientData
from feddlp.data.prompts import Prompts
from feddlp.methods.base import Method, stacked
from feddlp.model.adapters import Adapter, Site, Theta
from feddlp.model.backbone import Backbone, trained_dtype
from feddlp.model.forward import Forward
from feddlp.model.gates import GatedLoRA, keep, survivors
from feddlp.randomness import generator
from feddlp.training.optim import AdamW, flatten

Predict = Callable[[Forward, Batch], Mapping[str, Tensor]]
"""Ways to predict: name -> logits [K, B, C]."""


class Slot(NamedTuple):
    """One place on the client axis."""

    client: int
    seed: int
    method: Method


def initial(adapter: Adapter, sites: Mapping[str, Site], seed: int, name: str, owner: int | str) -> Theta:
    """One client's (or the server's) first adapter; depends on (seed, adapter name, owner, site) alone. No K axis."""
    return adapter.init(sites, lambda site: generator(seed, "init", name, owner, site))


def stack(thetas: Sequence[Theta]) -> Theta:
    """K adapters of one client each -> one adapter of K clients."""
    return {name: torch.stack([theta[name] for theta in thetas]) for name in thetas[0]}


def beginning(slots: Sequence[Slot], backbone: Backbone) -> dict[str, Tensor]:
    """The state of clients before they first take part: their first adapters, and no moments. [K, ...] each

    A shared adapter begins as the server's, so that leaves that never travel are the same for all too.
    """
    method = slots[0].method
    state: dict[str, Tensor] = {}
    for name, adapter in method.adapters().items():
        owners = [(slot.seed, "server" if name in method.shared else slot.client) for slot in slots]
        starts = {owner: initial(adapter, backbone.sites, owner[0], name, owner[1]) for owner in dict.fromkeys(owners)}
        theta = stack([starts[owner] for owner in owners])
        state |= {f"{name}/theta/{leaf}": v.to(trained_dtype(backbone.model.dtype)) for leaf, v in theta.items()}
        learning = [leaf for leaf in theta if method.learns(name, leaf)]
        moments = [(moment, leaf) for moment in ("m", "v") for leaf in learning]
        state |= {
            f"{name}/{moment}/{leaf}": torch.zeros_like(state[f"{name}/theta/{leaf}"]) for moment, leaf in moments
        }
        state |= {f"{name}/steps": torch.zeros(len(slots), dtype=torch.int64)} if learning else {}
    return state


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class Cohort:
    """K clients with their adapters and optimisers.

    Args:
        slots: who they are; client id and seed address the randomness, so a client is the same in every cohort.
        backbone: shared and frozen.
        prompts: of the classes.
        state: what `state_dict` gave of the same clients; as they begin where left out.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        backbone: Backbone,
        prompts: Prompts,
        state: Mapping[str, Tensor] | None = None,
    ):
        self.slots, self.backbone, self.prompts = tuple(slots), backbone, prompts
        self.method = stacked([slot.method for slot in slots], trained_dtype(backbone.model.dtype), backbone.device)
        self.adapters = self.method.adapters()
        self.theta: dict[str, Theta] = {}
        self.optimizers: dict[str, AdamW] = {}
        self.received: dict[str, Theta] = {}  # the anchors of FedProx
        self.progress = 0.0  # rounds finished
        self.load_state_dict(beginning(slots, backbone) if state is None else state)
        self.forward = Forward(backbone, self.adapters, self.theta, prompts)
        self.learner = Forward(backbone, self.adapters, self.theta, prompts.training or prompts)

    @property
    def owners(self) -> list[tuple[int, int]]:
        """(client id, seed) of each slot, by which its batches are shuffled."""
        return [(slot.client, slot.seed) for slot in self.slots]

    def learning(self, name: str) -> Theta:
        """The leaves of an adapter that are trained."""
        return {leaf: value for leaf, value in self.theta[name].items() if self.method.learns(name, leaf)}

    @torch.no_grad()
    def download(self, shared: Mapping[str, Theta], rows: slice | Tensor = slice(None)) -> None:
        """The clients in `rows` (indices, or all) take over the server's adapters (no K axis)."""
        for name, received in shared.items():
            theta = {leaf: value[rows] for leaf, value in self.theta[name].items()}
            for leaf, value in self.method.take(name, theta, received).items():
                self.theta[name][leaf][rows] = value

    def start_round(self, progress: float) -> None:
        """After all downloads: what the method keeps of them, and how far the federation has come."""
        self.progress = progress
        self.method.receive(self.theta)
        if self.method.proximal:
            sends = self.method.sends
            self.received = {
                name: {leaf: v.detach().clone() for leaf, v in self.theta[name].items() if sends(name, leaf)}
                for name in self.method.shared
            }
        if self.method.reset_optimizer:
            for optimizer in self.optimizers.values():
                optimizer.forget()

    def upload(self) -> dict[str, Theta]:
        """What leaves the clients, [K, ...] each."""
        return {name: self.method.send(name, self.theta[name]) for name in self.method.shared}

    def payload(self) -> Tensor:
        """Bytes of what each client sends, or of what it got before it trained. [K]"""
        total = torch.zeros(len(self.slots), dtype=torch.int64)
        for name, sent in self.upload().items():
            total += self.method.payload(name, sent)
        return total

    def fit(self, batches: Iterable[Batch], on_step: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        """Train on one pass over `batches`; the mean loss of each client by adapter, [K] each."""
        totals: dict[str, Tensor] = {}
        samples: Tensor | int = 0
        for batch in batches:
            count = batch.mask.sum(1)
            samples = samples + count
            for name, loss in self.step(batch).items():
                totals[name] = totals.get(name, 0) + loss * count
            on_step()
        return {name: (total / torch.as_tensor(samples).clamp(min=1)).cpu() for name, total in totals.items()}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One batch: each adapter that the method names takes its step, alone, and then the method goes on."""
        active, losses = batch.mask.any(1), {}
        if self.method.objective != "class_ce" and "text" in self.backbone.adapted_towers:
            batch = batch.of_its_classes()
        for name, loss in self.method.losses(self.learner, batch):
            theta = self.learning(name)
            gradients = torch.autograd.grad(loss.sum(), list(theta.values()))
            self.optimizers[name].step(theta, self._proximal(name, theta, gradients), active)
            self._project(name, active)
            losses[name] = loss.detach()
        return losses

    def _proximal(self, name: str, theta: Theta, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """FedProx (Li et al. 2020): the gradient of mu/2 |theta - theta received|^2 on top, for leaves that travel."""
        anchors, mu = self.received.get(name, {}), self.method.proximal
        return [
            gradient + mu * (value.detach() - anchors[leaf]) if leaf in anchors else gradient
            for (leaf, value), gradient in zip(theta.items(), gradients, strict=True)
        ]

    @torch.no_grad()
    def _project(self, name: str, active: Tensor) -> None:
        """The adapter's own step after the optimiser's (gates: soft threshold), for the active clients."""
        for leaf, value in self.adapters[name].project(self.theta[name], self.progress).items():
            current = self.theta[name][leaf]
            current.copy_(torch.where(active.view(-1, *[1] * (current.dim() - 1)), value, current))

    @torch.no_grad()
    def compact(self) -> None:
        """Take pruned ranks away, with their moments, where an adapter asks for it. Predictions stay the same."""
        for name, adapter in self.adapters.items():
            if isinstance(adapter, GatedLoRA) and adapter.compact:
                old, kept = self.learning(name), survivors(self.theta[name])
                self.optimizers[name].reshape(old, lambda leaves, kept=kept: keep(leaves, kept))  # type: ignore[misc]
                self.theta[name].update(keep(self.theta[name], kept))
                for value in self.learning(name).values():
                    value.requires_grad_()

    @torch.no_grad()
    def correct(self, data: ClientData, batch_size: int, predict: Predict | None = None) -> dict[str, Tensor]:
        """How many of each client's samples are predicted rightly, by way of predicting. [K] each

        Args:
            predict: the ways; the method's own, under the name "", where it is left out.
        """
        totals: dict[str, Tensor] = {} if predict else {"": torch.zeros(len(self.slots), dtype=torch.int64)}
        for batch in data.in_order(batch_size):
            ways = predict(self.forward, batch) if predict else {"": self.method.predict(self.forward, batch)}
            for name, logits in ways.items():
                hits = ((logits.argmax(-1) == batch.labels) & batch.mask).sum(1)
                totals[name] = totals.get(name, 0) + hits.cpu()
        return totals

    @torch.no_grad()
    def correct_for_all(self, data: ClientData, batch_size: int) -> Tensor:
        """How many samples of each client in `data` the one client of this cohort predicts rightly. [clients]

        Samples that several hold (a common test set) are predicted once.
        """
        samples, places = torch.unique(torch.cat(data.indices), return_inverse=True)
        together = ClientData(data.inputs, data.labels, (samples,))
        hits = [torch.empty(0, dtype=torch.bool)]
        for batch in together.in_order(batch_size):
            hits.append((self.method.predict(self.forward, batch).argmax(-1) == batch.labels)[0].cpu())
        owners = torch.arange(len(data.indices)).repeat_interleave(data.sizes())
        return torch.zeros_like(data.sizes()).index_add(0, owners, torch.cat(hits).long()[places])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a client must keep between rounds, [K, ...] each; views of the live tensors.

        "adapter/theta/leaf", "adapter/m/leaf" and "adapter/v/leaf" for those that learn, and "adapter/steps".
        """
        state: dict[str, Tensor] = {}
        for name, theta in self.theta.items():
            state |= {f"{name}/theta/{leaf}": value.detach() for leaf, value in theta.items()}
            if name in self.optimizers:
                m, v = self.optimizers[name].moments(self.learning(name))
                state |= {f"{name}/m/{leaf}": value for leaf, value in m.items()}
                state |= {f"{name}/v/{leaf}": value for leaf, value in v.items()}
                state[f"{name}/steps"] = self.optimizers[name].steps
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a copy of what `state_dict` gave; of another shape where ranks had been taken away."""
        like = torch.empty(0, device=self.backbone.device, dtype=trained_dtype(self.backbone.model.dtype))
        for name in self.adapters:
            theta = under(state, f"{name}/theta/")
            self.theta[name] = {
                leaf: value.detach().to(like, copy=True, memory_format=torch.contiguous_format)
                for leaf, value in theta.items()
            }
            if learning := self.learning(name):
                for value in learning.values():
                    value.requires_grad_()
                options = self.method.optimizer_options()
                optimizer = AdamW(learning, unclipped=self.adapters[name].unclipped, **options)
                optimizer.m = flatten(state[f"{name}/m/{leaf}"].to(like) for leaf in learning)
                optimizer.v = flatten(state[f"{name}/v/{leaf}"].to(like) for leaf in learning)
                optimizer.steps = state[f"{name}/steps"].to(self.backbone.device, copy=True)
                self.optimizers[name] = optimizer
