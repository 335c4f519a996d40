"""Rounds of a federation and steps of the naive twin, in turns, next to the machine's own matrix rate.

Absolute times say more about the machine than about the code, so everything is compared within one run. Every achieved
rate is a share of the one measured in the same run with the same library, threads and precision.
Units: seconds, bytes (MiB where the name says so), floating-point operations; shares lie between 0 and 1.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from feddlp.bench.naive import synchronise, twin_process
from feddlp.bench.options import MOST_CLIENTS, BenchOptions
from feddlp.bench.synthetic import Workload, find_device, model_config
from feddlp.config import TrainingConfig
from feddlp.federation.host import Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.files import MIB
from feddlp.memory import peak_mib, reset_peak
from feddlp.record_types import environment
from feddlp.training.cohort import Cohort

Say = Callable[[str], None]
MOST_ROUNDS = 9
ROUND_SHARE = 1 / 8  # of the time, for a round
RATE_SHARE = 1 / 400  # of the time, for each shape of a matrix product
ROWS = {"cpu": (512, 8192), "cuda": (8192, 65536)}  # few enough for the caches, and as many as a cohort's batch
GIGA = 1e9
aten = torch.ops.aten


def measure(options: BenchOptions, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure one workload.

    Raises:
        UserError: a device, model or method that is not available.
    """
    until = time.perf_counter() + options.seconds
    device, config = find_device(options.device), model_config(options.model)
    method = options.build_method()
    say("matrix products")
    rates = {name: matrix_rate(options, config, device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    dtype = max(rates, key=lambda name: rates[name][0]) if options.dtype == "auto" else options.dtype
    say(f"one step on {options.model} with random weights")
    load = Workload(options.model_copy(update={"dtype": dtype, "device": str(device)}), method)
    flops, seconds = one_step(load)
    load.options = load.options.model_copy(update={"clients": options.clients or fitting(options, seconds)})
    return {
        "machine": {"name": processor(device), **environment()},
        "options": load.options.model_dump(),
        "rate": {name: {"flops_per_second": rate, "shape": list(shape)} for name, (rate, shape) in rates.items()},
        **played(load, flops, rates[dtype][0], until, say),
    }


def matrix_rate(
    options: BenchOptions, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype
) -> tuple[float, tuple[int, int, int]]:
    """Measure FLOP/s of `linear(x, w)` on the adapted tower's own layers; the best, and its (rows, d_in, d_out).

    Numbers are random: zeros draw less power, and some processors multiply them faster.
    """
    part = config.text_config if options.adapt == "text" else config.vision_config
    width, inner = part.hidden_size, part.intermediate_size
    best, seconds = (0.0, (0, 0, 0)), max(options.seconds * RATE_SHARE, 1e-3)
    for rows in ROWS.get(device.type, ROWS["cpu"]):
        for d_in, d_out in ((width, width), (width, inner), (inner, width)):
            flops = 2 * rows * d_in * d_out
            if best[0] and flops / best[0] > 4 * seconds:  # a precision that this processor emulates
                continue
            x, w = (torch.randn(size, d_in, device=device).to(dtype) for size in (rows, d_out))
            names = {"linear": F.linear, "x": x, "w": w}
            timer = Timer("linear(x, w)", globals=names, num_threads=torch.get_num_threads())
            best = max(best, (flops / timer.blocked_autorange(min_run_time=seconds).median, (rows, d_in, d_out)))
    return best


def one_step(load: Workload) -> tuple[float, float]:
    """Train one client for a step: operations for an image, and seconds of a second step."""
    client, batch = load.first_client(), next(load.data(1).train.in_order(load.options.batch_size))
    with counter() as count:
        client.fit([batch])
    synchronise(load.device)
    started = time.perf_counter()
    client.fit([batch])
    synchronise(load.device)
    return count.get_total_flops() / int(batch.mask.sum()), time.perf_counter() - started


def fitting(options: BenchOptions, seconds: float) -> int:
    """Clients of which a round takes its share of the time."""
    return max(1, min(MOST_CLIENTS, int(options.seconds * ROUND_SHARE / (seconds * options.steps))))


def counter() -> FlopCounterMode:
    """Count the operations that really run; attention on a processor is added to those PyTorch knows."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        """q k^T and p v, in full even where attention is causal. [n, heads, tokens, d] each"""
        return products(query, key, query[3] + value[3])

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        """q k^T once more, and two products for each of the two of the forward pass."""
        return products(query, key, 3 * query[3] + 2 * value[3])

    def products(query: Any, key: Any, width: int) -> int:
        return int(2 * query[0] * query[1] * query[2] * key[2] * width)

    known: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


class TimedClients(Host):
    """The clients of a federation; `trained_for` holds the seconds they trained."""

    trained_for = 0.0

    def _train(self, *args: Any) -> dict[str, Tensor]:
        synchronise(self.backbone.device)
        started = time.perf_counter()
        losses = super()._train(*args)
        synchronise(self.backbone.device)
        self.trained_for += time.perf_counter() - started
        return losses


def played(load: Workload, flops: float, rate: float, until: float, say: Say) -> dict[str, Any]:
    """Play rounds and steps of the naive twin in turns, after a warm-up of either.

    Args:
        flops: for an image.
        rate: of the machine, FLOP/s.
        until: when the answer is due; one pair is always measured.
    """
    say(f"the first round of {load.options.clients} clients, which warms up")
    before = live_bytes()
    training = TrainingConfig(batch_size=load.options.batch_size, diagnostics=False)
    lanes, data = [Lane(0, load.method)], load.data(load.options.clients)
    clients = TimedClients(lanes, load.backbone, load.prompts, data, training)
    federation, images = Federation(lanes, clients, training), int(data.train.sizes().sum())
    reset_peak()
    federation.play_round()
    peak, resident = peak_mib(), live_bytes() - before
    rounds: list[float] = []
    trained: list[float] = []
    naive: list[float] = []
    with twin_process(load.options) as twin_step:
        pair = 0.0
        while not rounds or (len(rounds) < MOST_ROUNDS and time.perf_counter() + pair < until):
            say(f"round {len(rounds) + 1} of at most {MOST_ROUNDS}")
            started, clients.trained_for = time.perf_counter(), 0.0
            federation.play_round()
            rounds.append(time.perf_counter() - started)
            trained.append(clients.trained_for / images)
            naive += [twin_step()] if twin_step else []
            pair = time.perf_counter() - started
    seconds = median(trained)
    return {
        "step": {
            "images_per_second": 1 / seconds,
            "flops_per_image": flops,
            "flops_per_second": flops / seconds,
            "share_of_rate": flops / seconds / rate,
        },
        "round": {
            "seconds": median(rounds),
            "training_share": seconds * images / median(rounds),
            "trained_samples": images,
            "evaluated_samples": int(data.test.sizes().sum()),
            "repeats": len(rounds),
        },
        "memory": memory(load.first_client(), peak, resident / load.options.clients),
        "naive": {"seconds_per_image": median(naive), "times": median(naive) / seconds} if naive else None,
    }


def live_bytes() -> int:
    """Bytes of all tensors that Python knows, each storage once."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if issubclass(type(value), Tensor)]
    storages = [value.untyped_storage() for value in tensors if value.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def memory(client: Cohort, peak: float, resident: float) -> dict[str, float]:
    """What one more client takes beside the peak: its adapters, and two moments for every number that learns."""
    return {
        "peak_mib": peak,
        "adapter_bytes_per_client": sum(v.nbytes for theta in client.theta.values() for v in theta.values()),
        "moment_bytes_per_client": 2 * sum(v.nbytes for name in client.theta for v in client.learning(name).values()),
        "resident_bytes_per_client": resident,
        "payload_bytes_per_client": int(client.payload()[0]),
    }


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Tell what was measured to a person: (what, value) in reading order."""
    options, step, played, held = (result[part] for part in ("options", "step", "round", "memory"))
    yield "machine", f"{result['machine']['name']}, {result['machine']['threads']} threads"
    yield (
        "workload",
        f"{options['method']} ({options['objective']}) on {options['model']}, {options['adapt']}, {options['dtype']}, "
        f"{options['clients']} clients x {options['batch_size']} samples, {options['classes']} classes",
    )
    for name, rate in result["rate"].items():
        rows = " x ".join(map(str, rate["shape"]))
        yield f"rate, {name}", f"{rate['flops_per_second'] / GIGA:,.0f} GFLOP/s ({rows})"
    yield "images", f"{step['images_per_second']:.1f} a second"
    yield (
        "training",
        f"{step['flops_per_image'] / GIGA:.2f} GFLOP an image, {step['flops_per_second'] / GIGA:,.0f} GFLOP/s: "
        f"{step['share_of_rate']:.0%} of the {options['dtype']} rate",
    )
    yield (
        "round",
        f"{played['seconds']:.2f} s, {played['training_share']:.0%} of it training; {played['trained_samples']:,} "
        f"samples trained, {played['evaluated_samples']:,} evaluated",
    )
    client = {name: held[f"{name}_bytes_per_client"] / MIB for name in ("resident", "adapter", "moment")}
    yield (
        "memory",
        f"{held['peak_mib']:,.0f} MiB at its peak; a client more {client['resident']:.2f} MiB (adapters "
        f"{client['adapter']:.2f}, moments {client['moment']:.2f}, its share of the server)",
    )
    if naive := result["naive"]:
        yield "naive twin", f"{1 / naive['seconds_per_image']:.1f} images a second: {naive['times']:.1f} times slower"
