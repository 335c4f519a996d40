"""The measurement itself: rounds of the federation and epochs of the naive twin in turn, A B A B, and their medians.

Everything is compared within one run on one machine; absolute times say more about the machine than about the code.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import cast

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig

from feddlp.bench.counts import counter
from feddlp.bench.naive import NaiveClient
from feddlp.bench.options import BenchOptions
from feddlp.bench.rates import Rate, layer_shapes, matrix_rate
from feddlp.bench.synthetic import (
    Pool,
    client_sizes,
    clip_config,
    image_processor,
    random_backbone,
    random_clip,
    random_data,
    random_pool,
    random_prompts,
)
from feddlp.bench.timers import Timers, synchronise
from feddlp.config import TrainingConfig
from feddlp.data.prompts import Prompts
from feddlp.errors import UserError
from feddlp.federation.rounds import FederatedData, Federation, Lane
from feddlp.materials import pick_device
from feddlp.memory import peak_mib, reset_peak
from feddlp.methods.base import Method
from feddlp.methods.feddlp import FedDLP
from feddlp.model.backbone import Backbone
from feddlp.training.cohort import Cohort, Slot

Say = Callable[[str], None]
MOST = 9  # pairs of a round and an epoch of the twin
RATE_SHARE = 1 / 240  # of the time, for each shape of a matrix product


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
        return Federation([Lane(0, self.method)], self.backbone, self.prompts, self.data, training)

    def first_client(self) -> Cohort:
        """The first client alone, as it begins."""
        return Cohort([Slot(0, 0, self.method)], self.backbone, self.prompts)


@dataclass
class Played:
    """What was seen while the federation and its twin played."""

    warm_up: Timers  # the first round, which also counted operations
    rounds: list[Timers]
    parts: list[Timers]  # the rounds that were looked into
    naive: list[float]  # seconds for an image
    peak_mib: float  # of the first round
    resident_bytes: int  # what the federation holds after it

    @property
    def seconds_per_image(self) -> float:
        """Of the training."""
        return median(one.seconds["training"] / one.samples for one in self.rounds)


def find_device(name: str) -> torch.device:
    try:
        return torch.device(pick_device(name))
    except UserError as error:
        raise UserError(str(error).removeprefix("model.")) from error


def measure_rates(options: BenchOptions, config: CLIPConfig, device: torch.device) -> dict[str, Rate]:
    """The machine's rate in both precisions, on the layers of the adapted tower."""
    layers = layer_shapes(config, "text" if options.adapt == "text" else "image")
    seconds = options.seconds * RATE_SHARE
    return {name: matrix_rate(layers, getattr(torch, name), device, seconds) for name in ("float32", "bfloat16")}


def make_workload(options: BenchOptions, device: torch.device) -> Workload:
    """Random weights, prompts and photographs, dealt to the clients."""
    dtype = getattr(torch, options.dtype)
    backbone = random_backbone(clip_config(options.model), options.adapt, str(device), dtype)
    sizes = client_sizes(options.clients, options.steps * options.batch_size, options.ragged)
    pool = random_pool(backbone, options.classes, sum(sizes))
    data = random_data(backbone, pool, sizes, options.classes_per_client)
    return Workload(options, options.build_method(), backbone, random_prompts(backbone, options.classes), pool, data)


def play(load: Workload, say: Say) -> Played:
    """Rounds of the federation and epochs of the naive twin in turn, after a warm-up of either.

    On a GPU the rounds are not looked into, as that costs a wait at each part; one more round is, at the end.
    """
    say("the first round, which warms up")
    before, looked_into = live_bytes(), load.device.type == "cpu"
    federation = load.federation()
    reset_peak()
    warm_up = one_round(load, federation, parts=False, counter=counter())
    played = Played(warm_up, [], [], [], peak_mib(), live_bytes() - before)
    twin = make_twin(load) if load.options.with_twin else None
    started = time.perf_counter()
    for pair in range(1, MOST + 1):
        say(f"pair {pair} of at most {MOST}")
        if twin:
            played.naive.append(naive_epoch(load, twin))
        played.rounds.append(one_round(load, federation, looked_into))
        if time.perf_counter() - started > load.options.seconds:
            break
    played.parts = played.rounds if looked_into else [one_round(load, federation, parts=True)]
    return played


def one_round(load: Workload, federation: Federation, parts: bool, counter: FlopCounterMode | None = None) -> Timers:
    timers = Timers(load.device, parts, counter)
    with timers.watching(type(load.method)):
        federation.play_round()
    return timers


def make_twin(load: Workload) -> NaiveClient:
    """The first client in the naive way, from the same start, warmed up on two samples."""
    client, config = load.first_client(), load.backbone.model.config
    twin = NaiveClient(
        random_clip(config).to(load.device),
        image_processor(config),
        cast("FedDLP", load.method),
        {name: {leaf: value[0].detach() for leaf, value in theta.items()} for name, theta in client.theta.items()},
        load.prompts.tokens,
        load.pool.files,
        load.pool.labels,
        load.backbone.logit_scale,
    )
    twin.step(load.data.train.indices[0][:2])
    return twin


def naive_epoch(load: Workload, twin: NaiveClient) -> float:
    """One batch of the twin's epoch. Seconds for an image"""
    rows = load.data.train.indices[0][: load.options.batch_size]
    synchronise(load.device)
    started = time.perf_counter()
    twin.step(rows)
    synchronise(load.device)
    return (time.perf_counter() - started) / len(rows)


def live_bytes() -> int:
    """Bytes of all tensors that Python knows, each storage once."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    storages = [value.untyped_storage() for value in tensors if value.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(options: BenchOptions, say: Say = lambda text: None) -> tuple[Workload, dict[str, Rate], Played]:
    """All that is to be measured.

    Raises:
        UserError: a device or a model that is not to be had.
    """
    device, config = find_device(options.device), clip_config(options.model)
    options.build_method()
    say("the rate of matrix products")
    rates = measure_rates(options, config, device)
    say(f"{options.model} with random weights, and photographs")
    load = make_workload(options, device)
    return load, rates, play(load, say)
