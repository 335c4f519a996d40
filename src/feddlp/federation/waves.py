"""Waves: how many clients train side by side, so that memory grows neither with the clients nor with who takes part.

What a client takes is known before the first round, from one step of one client that is then thrown away:

    state         adapters, moments and what the optimiser computes with: 4 times their bytes
    activations   what autograd keeps for the backward pass, counted tensor by tensor, and half as much again for
                  temporary results; or the widest results of an evaluation batch, where these are more

`training.memory_limit` minus what the process holds already, divided by that, is the size of a wave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from feddlp.config import TrainingConfig
from feddlp.data.batches import Batch
from feddlp.errors import UserError
from feddlp.files import MIB
from feddlp.memory import free_bytes, used_bytes
from feddlp.model.family import image_tokens
from feddlp.training.cohort import Cohort

EVALUATION_BATCH = 128  # samples of each client
AUTO_SHARE = 0.5  # of the memory that is free
STORE_SHARE = 0.25  # of that, for clients that wait
STATE_COPIES, ACTIVATION_COPIES, WIDEST_COPIES = 4, 1.5, 4


class Wave(NamedTuple):
    """Clients side by side: whose lane, and which row of the data. [W] each"""

    lanes: Tensor
    rows: Tensor

    def of(self, lane: int) -> Tensor:
        """The places of a lane's clients."""
        return (self.lanes == lane).nonzero()[:, 0]


def split(lanes: Tensor, rows: Tensor, sizes: Tensor, most: int) -> Iterator[Wave]:
    """Waves of at most so many clients, evenly filled, clients of similar size together and the largest first.

    Args:
        lanes, rows: the clients. [P]
        sizes: of all clients' data, by row. [K]
    """
    order = sizes[rows].argsort(descending=True, stable=True)
    for places in order.tensor_split(max(1, -(-len(order) // most))):
        yield Wave(lanes[places], rows[places])


@dataclass(frozen=True)
class Plan:
    """What a federation was found to need, and how it is cut up."""

    wave: int  # clients side by side, at most
    on_disk: bool  # clients wait in files
    state_mib: float  # of one client
    activation_mib: float  # of one client

    def describe(self, wave: int) -> str:
        where = "in the run folder" if self.on_disk else "in memory"
        return (
            f"{wave} clients side by side; each takes {self.activation_mib:.1f} MiB of activations and "
            f"{self.state_mib:.1f} MiB of state, and waits {where}"
        )


def make_plan(probe: Cohort, batch: Batch, clients: int, training: TrainingConfig) -> Plan:
    """Measure one client, a cohort of one that is of no use afterwards, and divide the memory.

    Args:
        batch: a full batch of it.
        clients: in all lanes together.

    Raises:
        UserError: not even one client fits.
    """
    state = sum(value.numel() * value.element_size() for value in probe.state_dict().values())
    classes = torch.arange(batch.labels.numel(), device=batch.labels.device) % len(probe.prompts.tokens)
    varied = replace(batch, labels=classes.view_as(batch.labels))  # as many prompts as any batch may need
    activations = max(kept_bytes(probe, varied), widest_bytes(probe))
    budget = budget_bytes(training, probe.backbone.device)
    waiting = clients * state
    on_disk = training.client_store == "disk" or (training.client_store == "auto" and waiting > STORE_SHARE * budget)
    here = 0 if on_disk or probe.backbone.device.type != "cpu" else waiting
    fitting = int((budget - here) / max(1, STATE_COPIES * state + ACTIVATION_COPIES * activations))
    if not (fitting >= 1 or training.wave):
        needed = (STATE_COPIES * state + ACTIVATION_COPIES * activations + here) / MIB
        limit = training.memory_limit if training.memory_limit == "auto" else f"{training.memory_limit:.3g}GiB"
        raise UserError(
            f"training.memory_limit={limit} leaves {max(0, budget) / MIB:.0f} MiB beside model and "
            f"data, and one client needs {needed:.0f}; raise it, or lower training.batch_size={training.batch_size}"
        )
    return Plan(training.wave or fitting, on_disk, state / MIB, activations / MIB)


def budget_bytes(training: TrainingConfig, device: torch.device) -> int:
    """What clients may take beside all that is there already."""
    if training.memory_limit == "auto":
        return int(AUTO_SHARE * free_bytes(device))
    return int(training.memory_limit * 2**30) - used_bytes(device)


def widest_bytes(cohort: Cohort) -> int:
    """Bytes of the widest results in a layer of the towers while one client is evaluated."""
    config, size = cohort.backbone.model.config, torch.finfo(cohort.backbone.model.dtype).bits // 8
    image, text = config.vision_config, config.text_config
    rows = {
        "image": EVALUATION_BATCH * image_tokens(config) * image.intermediate_size,
        "text": cohort.prompts.tokens.numel() * text.intermediate_size,
    }
    return WIDEST_COPIES * size * int(max(rows[tower] for tower in cohort.backbone.adapted_towers))


def kept_bytes(cohort: Cohort, batch: Batch) -> int:
    """Bytes that one training step keeps for its backward passes, weights not counted."""
    fixed = [*cohort.backbone.model.parameters(), *cohort.backbone.model.buffers(), batch.inputs]
    fixed += [leaf for theta in cohort.theta.values() for leaf in theta.values()]
    known = {tensor.untyped_storage().data_ptr() for tensor in fixed}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(note, lambda tensor: tensor):
        cohort.step(batch)
    return sum(kept.values())
