"""The naive twin in a process of its own, where memory is managed as PyTorch and the system do by themselves.

The package keeps freed memory and asks for huge pages (`feddlp.allocator`, `feddlp.__init__`); in one process the twin
would have both as well, which the code that it stands for has not. The processes take turns, so neither disturbs the
other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from feddlp.bench.naive import NaiveClient
from feddlp.bench.options import BenchOptions
from feddlp.bench.synthetic import image_processor, random_model
from feddlp.bench.timers import synchronise
from feddlp.bench.workload import Workload, find_device, make_workload
from feddlp.methods.feddlp import FedDLP


@contextmanager
def twin_process(options: BenchOptions) -> Iterator[Callable[[], float] | None]:
    """One step of the twin whenever it is called, in seconds for an image; None where there is no twin to measure."""
    if not options.with_twin:
        yield None
        return
    command = [sys.executable, "-m", "feddlp.bench.twin", options.model_dump_json()]
    plain = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers, questions = process.stdout, process.stdin

        def step() -> float:
            print(file=questions, flush=True)
            if not (answer := answers.readline()):
                raise RuntimeError("the naive twin's process has ended; its message stands above")
            return float(answer)

        try:
            step()  # until it is ready and warm
            yield step
        finally:
            process.kill()


def make_twin(load: Workload) -> NaiveClient:
    """The first client in the naive way, from the same start."""
    client, config = load.first_client(), load.backbone.model.config
    return NaiveClient(
        random_model(config).to(load.device),
        image_processor(config),
        cast("FedDLP", load.method),
        {name: {leaf: value[0].detach() for leaf, value in theta.items()} for name, theta in client.theta.items()},
        load.prompts.tokens,
        load.pool.files,
        load.pool.labels,
        load.backbone.logit_scale,
    )


def naive_step(load: Workload, twin: NaiveClient) -> float:
    """One batch of the twin's epoch. Seconds for an image"""
    rows = load.data.train.indices[0][: load.options.batch_size]
    synchronise(load.device)
    started = time.perf_counter()
    twin.step(rows)
    synchronise(load.device)
    return (time.perf_counter() - started) / len(rows)


def main() -> None:
    """Answer every line on stdin with the seconds for an image of one step."""
    options = BenchOptions.model_validate_json(sys.argv[1])
    load = make_workload(options, find_device(options.device))
    twin = make_twin(load)
    for _ in sys.stdin:
        print(naive_step(load, twin), flush=True)


if __name__ == "__main__":
    main()
