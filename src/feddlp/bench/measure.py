"""The measurement itself: rounds of the federation and steps of the naive twin in turn, A B A B, and their medians.

Everything is compared within one run on one machine; absolute times say more about the machine than about the code.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from feddlp.bench.counts import counter
from feddlp.bench.options import BenchOptions
from feddlp.bench.rates import Rate, layer_shapes, matrix_rate
from feddlp.bench.synthetic import model_config
from feddlp.bench.timers import Timers
from feddlp.bench.twin import twin_process
from feddlp.bench.workload import Workload, find_device, make_workload
from feddlp.federation.rounds import Federation
from feddlp.memory import peak_mib, reset_peak

Say = Callable[[str], None]
MOST = 9  # pairs of a round and a step of the twin
RATE_SHARE = 1 / 240  # of the time, for each shape of a matrix product


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


def measure_rates(options: BenchOptions, config: PreTrainedConfig, device: torch.device) -> dict[str, Rate]:
    """The machine's rate in both precisions, on the layers of the adapted tower."""
    layers = layer_shapes(config, "text" if options.adapt == "text" else "image")
    seconds = options.seconds * RATE_SHARE
    return {name: matrix_rate(layers, getattr(torch, name), device, seconds) for name in ("float32", "bfloat16")}


def play(load: Workload, say: Say) -> Played:
    """Rounds of the federation and steps of the naive twin in turn, after a warm-up of either.

    On a GPU the rounds are not looked into, as that costs a wait at each part; one more round is, at the end.
    """
    say("the first round, which warms up")
    before, looked_into = live_bytes(), load.device.type == "cpu"
    federation = load.federation()
    reset_peak()
    warm_up = one_round(load, federation, parts=False, counter=counter())
    played = Played(warm_up, [], [], [], peak_mib(), live_bytes() - before)
    with twin_process(load.options) as twin_step:
        started = time.perf_counter()
        for pair in range(1, MOST + 1):
            say(f"pair {pair} of at most {MOST}")
            if twin_step:
                played.naive.append(twin_step())
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
    device, config = find_device(options.device), model_config(options.model)
    options.build_method()
    say("the rate of matrix products")
    rates = measure_rates(options, config, device)
    say(f"{options.model} with random weights, and photographs")
    load = make_workload(options, device)
    return load, rates, play(load, say)
