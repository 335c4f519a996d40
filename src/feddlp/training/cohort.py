"""The one training loop: K clients side by side over one frozen backbone.

A federation of ten on one machine is a cohort of ten; a deployed client is a cohort of one. Clients are independent,
so d(sum_k L_k)/d theta_k = dL_k/d theta_k, and one backward pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from feddlp.data.batches import Batch, ClientData
from feddlp.methods.base import Method
from feddlp.model.adapters import Adapter, Theta
from feddlp.model.backbone import Backbone, trained_dtype
from feddlp.model.forward import Forward
from feddlp.randomness import generator
from feddlp.training.optim import AdamW


def initial(adapter: Adapter, backbone: Backbone, seed: int, name: str, owner: int | str) -> Theta:
    """One client's (or the server's) first adapter; depends on (seed, adapter name, owner, site) alone. No K axis."""
    return adapter.init(backbone.sites, lambda site: generator(seed, "init", name, owner, site))


def stack(thetas: Sequence[Theta]) -> Theta:
    """K adapters of one client each -> one adapter of K clients."""
    return {name: torch.stack([theta[name] for theta in thetas]) for name in thetas[0]}


class Cohort:
    """K clients with their adapters and optimisers.

    Args:
        method: which adapters there are, and their losses.
        backbone: shared and frozen.
        prompts: token ids of the class prompts, [C, L].
        clients: K client ids; they address the randomness, so a client is the same in every cohort.
        seed: the run seed.
    """

    def __init__(self, method: Method, backbone: Backbone, prompts: Tensor, clients: Sequence[int], seed: int):
        self.method, self.clients, self.seed = method, tuple(clients), seed
        self.adapters = method.adapters()
        self.theta: dict[str, Theta] = {}
        for name, adapter in self.adapters.items():
            start = stack([initial(adapter, backbone, seed, name, client) for client in clients])
            dtype = trained_dtype(backbone.model.dtype)
            self.theta[name] = {leaf: v.to(backbone.device, dtype).requires_grad_() for leaf, v in start.items()}
        self.optimizers = {name: self._optimizer(name) for name in self.adapters}
        self.forward = Forward(backbone, self.adapters, self.theta, prompts)

    def _optimizer(self, name: str) -> AdamW:
        return AdamW(self.theta[name], unclipped=self.adapters[name].unclipped, **self.method.optimizer_options())

    @torch.no_grad()
    def download(self, shared: dict[str, Theta]) -> None:
        """Every client takes over the server's adapters (no K axis)."""
        for name, theta in shared.items():
            for leaf, value in theta.items():
                self.theta[name][leaf].copy_(value.expand_as(self.theta[name][leaf]))
        self.method.receive(self.theta)

    def upload(self) -> dict[str, Theta]:
        """What leaves the clients: the shared adapters, [K, ...] each."""
        return {name: {leaf: value.detach() for leaf, value in self.theta[name].items()} for name in self.method.shared}

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
        for name, loss in self.method.losses(self.forward, batch):
            theta = self.theta[name]
            gradients = torch.autograd.grad(loss.sum(), list(theta.values()))
            self.optimizers[name].step(theta, gradients, active)
            self._project(name, active)
            losses[name] = loss.detach()
        return losses

    @torch.no_grad()
    def _project(self, name: str, active: Tensor) -> None:
        """The adapter's own step after the optimiser's (gates: soft threshold), for the active clients."""
        for leaf, value in self.adapters[name].project(self.theta[name]).items():
            current = self.theta[name][leaf]
            current.copy_(torch.where(active.view(-1, *[1] * (current.dim() - 1)), value, current))

    @torch.no_grad()
    def correct(self, data: ClientData, batch_size: int) -> Tensor:
        """How many of each client's samples the method predicts rightly. [K]"""
        totals = torch.zeros(len(self.clients), dtype=torch.int64, device=data.labels.device)
        for batch in data.in_order(batch_size):
            hits = self.method.predict(self.forward, batch).argmax(-1) == batch.labels
            totals += (hits & batch.mask).sum(1)
        return totals.cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a client must keep between rounds: adapters and optimiser state, K axis first."""
        state = {}
        for name in self.adapters:
            state.update({f"{name}/theta/{leaf}": value.detach() for leaf, value in self.theta[name].items()})
            state.update({f"{name}/adam/{leaf}": value for leaf, value in self.optimizers[name].state_dict().items()})
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave; names and shapes must be the same."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
