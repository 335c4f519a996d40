"""How time and memory of a round grow with the number of clients, ten of whom take part.

A run on `glyphs` as anybody would start it, with 64 images a client; each number of clients in its own process. The
round's own overhead is what is neither training nor evaluation: store, sampling, aggregation, records.

    python benchmarks/scale.py                               # 10, 100, 1,000 and 10,000 clients
    python benchmarks/scale.py --clients 1000 --store memory
    python benchmarks/scale.py --plot docs/scale.svg
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

from feddlp import experiment
from feddlp.allocator import keep_freed_memory
from feddlp.config import validate
from feddlp.federation.rounds import Federation
from feddlp.files import MIB
from feddlp.memory import used_bytes
from feddlp.training.cohort import Cohort

JOINING, IMAGES, WARM_UP = 10, 64, 2


class Clock:
    """A reporter that takes the time of every round, and of what happens inside of some functions."""

    def __init__(self) -> None:
        self.inside: dict[str, float] = {}
        self.rounds: list[dict[str, float]] = []
        self.last = time.perf_counter()

    def watch(self, owner: type, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.inside[name] = self.inside.get(name, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)

    def method_started(self, *_: Any) -> None:
        self.last = time.perf_counter()

    def round_finished(self, row: Any) -> None:
        now = time.perf_counter()
        memory = used_bytes(torch.device("cpu")) / MIB
        self.rounds.append(self.inside | {"round": now - self.last, "resident": memory})
        self.last, self.inside = now, {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process; means over its rounds after the first two."""
    keep_freed_memory()
    clock, clients = Clock(), options.clients[0]
    for owner, name in ((Cohort, "fit"), (Cohort, "correct"), (Federation, "score_start")):
        clock.watch(owner, name)
    with tempfile.TemporaryDirectory() as place:
        config = validate({
            "methods": [options.method], "runs_dir": place,
            "data": {"dataset": f"glyphs:{IMAGES * clients}", "clients": clients, "partition": "iid"},
            "training": {
                "rounds": options.rounds, "participation": JOINING / clients, "diagnostics": False,
                "client_store": options.store,
            },
        })  # fmt: skip
        folder = experiment.run(config, clock)
        size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()) / MIB
    timed = clock.rounds[WARM_UP:]
    mean = {key: sum(each.get(key, 0.0) for each in timed) / len(timed) for key in ("round", "fit", "correct")}
    overhead = mean["round"] - mean["fit"] - mean["correct"]
    return {
        "clients": clients, "start_s": round(clock.rounds[0].get("score_start", 0.0), 2),
        "train_s": round(mean["fit"], 3), "evaluate_s": round(mean["correct"], 3), "overhead_s": round(overhead, 3),
        "overhead_of_training": round(overhead / mean["fit"], 3),
        "resident_mib": [round(each["resident"]) for each in (timed[0], timed[-1])], "folder_mib": round(size),
    }  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a round by part, and resident memory, over the number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    clients = [row["clients"] for row in rows]
    parts = [[row[f"{part}_s"] for row in rows] for part in ("train", "evaluate", "overhead")]
    seconds.stackplot(clients, parts, labels=("training", "evaluation", "overhead"))
    seconds.set(title="A round with ten participants", ylabel="seconds", ylim=(0, None))
    seconds.legend(loc="lower left")
    images = [IMAGES * count * 3 * 32 * 32 / MIB for count in clients]
    resident = [row["resident_mib"][-1] for row in rows]
    memory.plot(clients, resident, marker="o", label="resident")
    memory.plot(clients, images, linestyle="--", label="the images")
    memory.set(title="Memory after the last round", ylabel="MiB", ylim=(0, None))
    memory.legend(loc="upper left")
    for axes in (seconds, memory):
        axes.set(xlabel="clients", xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--store", choices=("auto", "memory", "disk"), default="auto")
    parser.add_argument("--method", default="feddlp")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw")
    options = parser.parse_args(words)
    if len(options.clients) == 1:
        print(json.dumps(measure(options)))
        return
    rows = []
    for clients in options.clients:
        more = ["--rounds", str(options.rounds), "--store", options.store, "--method", options.method]
        command = [sys.executable, __file__, "--clients", str(clients), *more]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(line, end="", flush=True)
        rows.append(json.loads(line))
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
