"""The measurement itself: rounds of the federation and epochs of the naive twin in turn, A B A B, and their medians.

Everything is compared within one run on one machine; absolute times say more about the machine than about the code.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from feddlp.bench.counts import counter, nominal_flops
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
from feddlp.errors import UserError
from feddlp.federation.rounds import FederatedData, Federation, Lane
from feddlp.materials import pick_device
from feddlp.memory import peak_mib, reset_peak
from feddlp.methods.base import Method
from feddlp.methods.feddlp import FedDLP
from feddlp.model.backbone import Backbone
from feddlp.records import environment
from feddlp.training.cohort import Cohort, Slot

Say = Callable[[str], None]
ROUNDS = (2, 9)  # fewest and most that are measured
NAIVE_STEPS = 1  # of an epoch of the naive twin


@dataclass(frozen=True)
class Workload:
    """What is measured."""

    options: BenchOptions
    method: Method
    backbone: Backbone
    pool: Pool
    data: FederatedData
    federation: Federation

    @property
    def device(self) -> torch.device:
        return self.backbone.device


def make_workload(options: BenchOptions, device: torch.device) -> Workload:
    """The federation of the options, on random weights and photographs."""
    backbone = random_backbone(clip_config(options.model), options.adapt, str(device), getattr(torch, options.dtype))
    sizes = client_sizes(options.clients, options.steps * options.batch_size, options.ragged)
    pool = random_pool(backbone, options.classes, sum(sizes))
    data = random_data(backbone, pool, sizes, options.classes_per_client)
    training = TrainingConfig(batch_size=options.batch_size, diagnostics=False)
    method, prompts = options.build_method(), random_prompts(backbone, options.classes)
    federation = Federation([Lane(0, method)], backbone, prompts, data, training)
    return Workload(options, method, backbone, pool, data, federation)


def find_device(name: str) -> torch.device:
    try:
        return torch.device(pick_device(name))
    except UserError as error:
        raise UserError(str(error).removeprefix("model.")) from error


def measure(options: BenchOptions, say: Say = lambda text: None) -> dict[str, Any]:
    """Everything that `feddlp bench` tells, as one object for machines.

    Raises:
        UserError: a device or a model that is not to be had.
    """
    device = find_device(options.device)
    config = clip_config(options.model)
    say("the rate of matrix products")
    tower = "text" if options.adapt == "text" else "image"
    rates = {
        name: matrix_rate(layer_shapes(config, tower), getattr(torch, name), device) for name in ("float32", "bfloat16")
    }
    say(f"{options.model} with random weights, and photographs")
    load = make_workload(options, device)
    rounds, naive, peak = play(load, say)
    return {
        "machine": describe_machine(device),
        "options": options.model_dump() | {"device": str(device)},
        "rate": {name: {"flops_per_second": rate.flops, "shape": rate.shape} for name, rate in rates.items()},
        "step": describe_step(load, rounds, rates[options.dtype]),
        "round": describe_round(load, rounds),
        "memory": {"peak_mib": peak, **memory_per_client(load)},
        "naive": describe_naive(load, rounds, naive),
    }


def play(load: Workload, say: Say) -> tuple[list[Timers], list[float], float]:
    """Rounds of the federation and epochs of the naive twin in turn: timers, seconds, peak MiB of the first round."""
    rounds: list[Timers] = []
    naive: list[float] = []
    twin, peak = None, 0.0
    started = time.perf_counter()
    while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and time.perf_counter() - started < load.options.seconds):
        say(f"round {len(rounds) + 1}")
        if not rounds:
            reset_peak()
        rounds.append(one_round(load, count=not rounds))
        peak = peak or peak_mib()
        if load.options.with_twin:
            say(f"naive twin, {len(naive) + 1}")
            twin = twin or make_twin(load)
            naive.append(naive_seconds(load, twin))
    return rounds, naive, peak


def one_round(load: Workload, count: bool) -> Timers:
    """A round; the first one counts operations as well."""
    timers = Timers(load.device, counter=counter() if count else None)
    with timers.watching(type(load.method)):
        load.federation.play_round()
    return timers


def make_twin(load: Workload) -> NaiveClient:
    """The first client in the naive way, from the adapters with which it began; warmed up on two samples."""
    assert isinstance(load.method, FedDLP)  # the options saw to it
    config, backbone = load.backbone.model.config, load.backbone
    fresh = Cohort([Slot(0, 0, load.method)], backbone, load.federation.cohort.prompts)
    twin = NaiveClient(
        random_clip(config).to(load.device),
        image_processor(config),
        load.method,
        {name: {leaf: value[0].detach() for leaf, value in theta.items()} for name, theta in fresh.theta.items()},
        fresh.prompts.tokens,
        load.pool.files,
        load.pool.labels,
        backbone.logit_scale,
    )
    twin.epoch(load.data.train.indices[0][:2], 2)
    return twin


def naive_seconds(load: Workload, twin: NaiveClient) -> float:
    """One epoch of the naive twin over a few batches. Seconds per image."""
    order = load.data.train.indices[0][: NAIVE_STEPS * load.options.batch_size]
    synchronise(load.device)
    started = time.perf_counter()
    twin.epoch(order, load.options.batch_size)
    synchronise(load.device)
    return (time.perf_counter() - started) / len(order)


def timed(values: list[Any]) -> list[Any]:
    """The first of three or more was the warm-up."""
    return values[1:] if len(values) > 2 else values


def seconds_per_image(rounds: list[Timers]) -> float:
    return float(median(one.seconds["training"] / int(one.samples) for one in timed(rounds)))


def describe_step(load: Workload, rounds: list[Timers], rate: Rate) -> dict[str, Any]:
    """Throughput of the training, and what it is of the machine's rate."""
    options, seconds = load.options, seconds_per_image(rounds)
    executed = rounds[0].flops / int(rounds[0].samples)
    tokens = load.federation.cohort.prompts.tokens.shape[1]
    nominal = nominal_flops(
        load.backbone.model.config, load.method, options.adapt, options.batch_size, options.classes, tokens
    )
    return {
        "images_per_second": 1 / seconds,
        "seconds_per_image": seconds,
        "flops_per_image": executed,
        "nominal_flops_per_image": nominal / options.batch_size,
        "flops_per_second": executed / seconds,
        "share_of_rate": executed / seconds / rate.flops,
        "nominal_share_of_rate": nominal / options.batch_size / seconds / rate.flops,
    }


def describe_round(load: Workload, rounds: list[Timers]) -> dict[str, Any]:
    """Where the time of a round goes, and how much of its batches is padding."""
    splits = [one.split() for one in timed(rounds)]
    return {
        "seconds": median(one.seconds["round"] for one in timed(rounds)),
        "split": {name: median(split[name] for split in splits) for name in splits[0]},
        "trained_samples": int(rounds[0].samples),
        "evaluated_samples": int(load.data.test.sizes().sum()),
        "padded_share": 1 - int(rounds[0].samples) / rounds[0].places,
        "rounds": len(timed(rounds)),
    }


def memory_per_client(load: Workload) -> dict[str, Any]:
    """What one more client takes: its adapters, and two moments for every number that learns."""
    cohort = load.federation.cohort
    clients = len(cohort.slots)
    leaves = [(name, leaf, value) for name, theta in cohort.theta.items() for leaf, value in theta.items()]
    size = {(name, leaf): value.numel() * value.element_size() // clients for name, leaf, value in leaves}
    moments = 2 * sum(count for (name, leaf), count in size.items() if load.method.learns(name, leaf))
    return {
        "adapter_bytes_per_client": sum(size.values()),
        "moment_bytes_per_client": moments,
        "payload_bytes_per_client": int(cohort.payload()[0]),
    }


def describe_naive(load: Workload, rounds: list[Timers], naive: list[float]) -> dict[str, Any] | None:
    """The twin's time for an image, and how many times ours that is."""
    if not naive:
        return None
    seconds = median(timed(naive))
    return {"seconds_per_image": seconds, "times": seconds / seconds_per_image(rounds), "repeats": len(timed(naive))}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Its name, versions, threads."""
    return {"name": processor() if device.type == "cpu" else torch.cuda.get_device_name(device), **environment()}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def live_bytes() -> int:
    """Bytes of all tensors that Python knows, each storage once."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    storages = [value.untyped_storage() for value in tensors if value.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
