"""Three seeds in one stack beside three runs, one after the other: seconds a round, in turns, with medians.

python benchmarks/seeds_side_by_side.py                    # FedDLP on the digits, image tower
python benchmarks/seeds_side_by_side.py --adapt text --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from feddlp.allocator import keep_freed_memory
from feddlp.config import Config, validate
from feddlp.federation.rounds import Federation, Lane
from feddlp.materials import Materials, prepare


class Silent:
    """A reporter that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def federation(config: Config, materials: Materials, seeds: range) -> Federation:
    lanes = [Lane(seed, config.build_methods()[config.methods[0]]) for seed in seeds]
    return Federation(lanes, materials.backbone, materials.prompts, materials.data, config.training)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapt", choices=("image", "text"), default="image")
    parser.add_argument("--method", default="feddlp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    keep_freed_memory()
    config = validate(
        {"methods": [options.method], "model": {"adapt": options.adapt}, "training": {"diagnostics": False}}
    )
    materials, seeds = prepare(config, Silent()), range(options.seeds)
    together = [federation(config, materials, seeds)]
    apart = [federation(config, materials, range(seed, seed + 1)) for seed in seeds]
    times: dict[str, list[float]] = {"together": [], "apart": []}
    for turn in range(1 + options.rounds):
        for name, runs in (("together", together), ("apart", apart)):
            seconds = sum(run.play_round()[0].seconds for run in runs)
            if turn:  # the first one warms up
                times[name].append(seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["apart"] / medians["together"]
    print(
        f"{options.method}, {options.adapt} tower, {options.seeds} seeds: "
        f"together {medians['together']:.2f} s, one after the other {medians['apart']:.2f} s, {ratio:.2f} times as long"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
