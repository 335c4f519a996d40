"""How time and memory of a round grow with the number of clients, ten of whom take part.

Random pictures, and only as many as a few clients hold: all clients share them, as speed does not depend on who holds
what. The round's own overhead is what is neither training nor evaluation: store, sampling, aggregation, records.

    python benchmarks/scale.py                          # 10, 100, 1,000 and 10,000 clients, each in its own process
    python benchmarks/scale.py --clients 1000 --store memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from feddlp.config import validate
from feddlp.data import datasets
from feddlp.data.batches import ClientData
from feddlp.data.features import encode_prompts
from feddlp.data.prompts import class_prompts
from feddlp.experiment import Entry, play
from feddlp.federation.rounds import FederatedData
from feddlp.materials import Materials
from feddlp.memory import MIB, used_bytes
from feddlp.model.backbone import load_backbone
from feddlp.records import RunFolder
from feddlp.training.cohort import Cohort

JOINING, TRAIN, VALIDATION, TEST = 10, 48, 4, 12


def materials(clients: int) -> Materials:
    backbone = load_backbone("tiny-clip", "image")
    source = datasets.find("digits")
    side = backbone.model.config.vision_config.image_size
    images = torch.randint(0, 255, (2048, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(10, (2048,))

    def part(count: int) -> ClientData:
        return ClientData(images, labels, tuple(torch.randint(2048, (count,)) for _ in range(clients)))

    data = FederatedData(tuple(range(clients)), part(TRAIN), part(VALIDATION), part(TEST))
    prompts = encode_prompts(backbone, class_prompts(source.class_names, source.template))
    return Materials(backbone, prompts, data, None, {}, {})


class Clock:
    """Seconds inside of some functions, and what each round took beside them."""

    def __init__(self) -> None:
        self.inside, self.rounds, self.last = 0.0, [], time.perf_counter()
        self.resident: list[float] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.inside += time.perf_counter() - started

        return timed

    def round_finished(self, row: Any) -> None:
        now = time.perf_counter()
        self.rounds.append((now - self.last, self.inside))
        self.resident.append(used_bytes(torch.device("cpu")) / MIB)
        self.last, self.inside = now, 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    clock, clients = Clock(), options.clients[0]
    Cohort.fit, Cohort.correct = clock.around(Cohort.fit), clock.around(Cohort.correct)  # type: ignore[method-assign]
    training = {"rounds": options.rounds, "participation": JOINING / clients, "diagnostics": False}
    training |= {"client_store": options.store}
    config = validate({"methods": [options.method], "training": training})
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place), "run", config.to_toml())
        play([Entry(folder, config)], options.method, materials(clients), clock)  # type: ignore[arg-type]
        size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()) / MIB
    seconds, inside = (sum(part) for part in zip(*clock.rounds[2:], strict=True))
    count = len(clock.rounds) - 2
    return {
        "clients": clients, "start_s": clock.rounds[0][0], "round_s": seconds / count,
        "overhead_ms": 1000 * (seconds - inside) / count, "overhead": (seconds - inside) / inside,
        "resident_mib": [round(value) for value in (clock.resident[2], clock.resident[-1])], "folder_mib": size,
    }  # fmt: skip


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--store", choices=("auto", "memory", "disk"), default="auto")
    parser.add_argument("--method", default="feddlp")
    options = parser.parse_args(words)
    if len(options.clients) == 1:
        print(json.dumps(measure(options)))
        return
    for clients in options.clients:
        more = ["--rounds", str(options.rounds), "--store", options.store, "--method", options.method]
        command = [sys.executable, __file__, "--clients", str(clients), *more]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
