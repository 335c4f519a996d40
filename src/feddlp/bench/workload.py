"""What is measured: a federation of random weights, prompts and photographs, the same for the same options."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from feddlp.bench.options import BenchOptions
from feddlp.bench.synthetic import (
    Pool,
    client_sizes,
    model_config,
    random_backbone,
    random_data,
    random_pool,
    random_prompts,
)
from feddlp.config import TrainingConfig
from feddlp.data.prompts import Prompts
from feddlp.errors import UserError
from feddlp.federation.host import FederatedData, Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.materials import pick_device
from feddlp.methods.base import Method
from feddlp.model.backbone import Backbone
from feddlp.training.cohort import Cohort, Slot


@dataclass(frozen=True)
class Workload:
    """What is measured."""

    options: BenchOptions
    method: Method
    backbone: Backbone
    prompts: Prompts
    pool: Pool
    data: FederatedData

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def federation(self) -> Federation:
        training = TrainingConfig(batch_size=self.options.batch_size, diagnostics=False)
        lanes = [Lane(0, self.method)]
        return Federation(lanes, Host(lanes, self.backbone, self.prompts, self.data, training), training)

    def first_client(self) -> Cohort:
        """The first client alone, as it begins."""
        return Cohort([Slot(0, 0, self.method)], self.backbone, self.prompts)


def find_device(name: str) -> torch.device:
    try:
        return torch.device(pick_device(name))
    except UserError as error:
        raise UserError(str(error).removeprefix("model.")) from error


def make_workload(options: BenchOptions, device: torch.device) -> Workload:
    """Random weights, prompts and photographs, dealt to the clients."""
    dtype = getattr(torch, options.dtype)
    backbone = random_backbone(model_config(options.model), options.adapt, str(device), dtype)
    sizes = client_sizes(options.clients, options.steps * options.batch_size, options.ragged)
    pool = random_pool(backbone, options.classes, sum(sizes))
    data = random_data(backbone, pool, sizes, options.classes_per_client)
    return Workload(options, options.build_method(), backbone, random_prompts(backbone, options.classes), pool, data)
