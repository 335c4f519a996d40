"""What was measured, as one object for machines; `text` makes it readable.

Units: seconds, bytes (MiB where the name says so), floating-point operations; shares are between 0 and 1.
"""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch

from feddlp.bench.counts import nominal_flops
from feddlp.bench.measure import Played
from feddlp.bench.rates import Rate
from feddlp.bench.workload import Workload
from feddlp.records import environment


def results(load: Workload, rates: dict[str, Rate], played: Played) -> dict[str, Any]:
    """Everything that `feddlp bench` tells."""
    return {
        "machine": describe_machine(load.device),
        "options": load.options.model_dump() | {"device": str(load.device)},
        "rate": {name: {"flops_per_second": rate.flops, "shape": list(rate.shape)} for name, rate in rates.items()},
        "step": describe_step(load, rates[load.options.dtype], played),
        "round": describe_round(load, played),
        "memory": describe_memory(load, played),
        "naive": describe_naive(played),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Its name, versions, threads."""
    return {"name": processor() if device.type == "cpu" else torch.cuda.get_device_name(device), **environment()}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_step(load: Workload, rate: Rate, played: Played) -> dict[str, Any]:
    """Throughput of the training, and what it is of the machine's rate."""
    options, seconds = load.options, played.seconds_per_image
    executed = played.warm_up.flops / played.warm_up.samples
    nominal = nominal_flops(
        load.backbone.model.config,
        load.method,
        options.adapt,
        options.batch_size,
        options.classes,
        load.prompts.tokens.shape[1],
    )
    return {
        "images_per_second": 1 / seconds,
        "seconds_per_image": seconds,
        "executed": achieved(executed, seconds, rate),
        "nominal": achieved(nominal / options.batch_size, seconds, rate),
    }


def achieved(flops: float, seconds: float, rate: Rate) -> dict[str, float]:
    """Operations and seconds of one image, told as a rate and as a share of the machine's."""
    return {
        "flops_per_image": flops,
        "flops_per_second": flops / seconds,
        "share_of_rate": flops / seconds / rate.flops,
    }


def describe_round(load: Workload, played: Played) -> dict[str, Any]:
    """Where the time of a round goes, and how much of its batches is padding."""
    splits = [one.split() for one in played.parts]
    return {
        "seconds": median(one.seconds["round"] for one in played.rounds),
        "split": {name: median(split[name] for split in splits) for name in splits[0]},
        "trained_samples": played.warm_up.samples,
        "evaluated_samples": int(load.data.test.sizes().sum()),
        "padded_share": 1 - played.warm_up.samples / played.warm_up.places,
        "repeats": len(played.rounds),
    }


def describe_memory(load: Workload, played: Played) -> dict[str, Any]:
    """The peak, and what one more client takes: its adapters, and two moments for every number that learns."""
    client = load.first_client()
    sizes = {name: sum(map(tensor_bytes, theta.values())) for name, theta in client.theta.items()}
    learning = {name: sum(map(tensor_bytes, client.learning(name).values())) for name in client.theta}
    return {
        "peak_mib": played.peak_mib,
        "adapter_bytes_per_client": sum(sizes.values()),
        "moment_bytes_per_client": 2 * sum(learning.values()),
        "resident_bytes_per_client": played.resident_bytes / load.options.clients,
        "payload_bytes_per_client": int(client.payload()[0]),
    }


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def describe_naive(played: Played) -> dict[str, Any] | None:
    """The twin's time for an image, and how many times ours that is."""
    if not played.naive:
        return None
    seconds = median(played.naive)
    return {"seconds_per_image": seconds, "times": seconds / played.seconds_per_image, "repeats": len(played.naive)}
