"""The result of a measurement as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from feddlp.files import MIB

GIGA = 1e9


def describe(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, value) in reading order."""
    options, step = result["options"], result["step"]
    yield "machine", f"{result['machine']['name']}, {result['machine']['threads']} threads"
    yield "workload", workload(options)
    for name, rate in result["rate"].items():
        yield f"rate, {name}", f"{gflops(rate['flops_per_second'])} ({' x '.join(map(str, rate['shape']))})"
    yield "images", f"{step['images_per_second']:.1f} a second"
    for count in ("executed", "nominal"):
        yield count, work(step[count], options["dtype"])
    yield from describe_round(result["round"])
    yield from describe_memory(result["memory"])
    if naive := result["naive"]:
        yield "naive twin", f"{1 / naive['seconds_per_image']:.1f} images a second: {naive['times']:.1f} times slower"


def workload(options: Mapping[str, Any]) -> str:
    return (
        f"{options['method']} ({options['objective']}) on {options['model']}, {options['adapt']}, {options['dtype']}, "
        f"{options['clients']} clients x {options['batch_size']} samples, {options['classes']} classes"
    )


def work(found: Mapping[str, float], dtype: str) -> str:
    amount, rate = found["flops_per_image"] / GIGA, gflops(found["flops_per_second"])
    return f"{amount:.2f} GFLOP an image, {rate}: {found['share_of_rate']:.0%} of the {dtype} rate"


def gflops(rate: float) -> str:
    return f"{rate / GIGA:,.0f} GFLOP/s"


def describe_round(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    shares = [f"{name} {seconds / found['seconds']:.1%}" for name, seconds in found["split"].items()]
    yield "round", f"{found['seconds']:.2f} s: {', '.join(shares)}"
    yield (
        "samples",
        (
            f"{found['trained_samples']:,} trained, {found['evaluated_samples']:,} evaluated; "
            f"{found['padded_share']:.1%} of the batches is padding"
        ),
    )


def describe_memory(memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "peak memory", f"{memory['peak_mib']:,.0f} MiB"
    parts = {name: memory[f"{name}_bytes_per_client"] / MIB for name in ("resident", "adapter", "moment")}
    yield (
        "a client more",
        f"{parts['resident']:.2f} MiB: adapters {parts['adapter']:.2f}, moments {parts['moment']:.2f}, "
        "and its share of the server",
    )
