"""Three seeds in one stack beside three runs, one after the other: seconds a round, in turns, with medians.

python benchmarks/seeds_side_by_side.py                    # FedDLP on the digits, image tower
python benchmarks/seeds_side_by_side.py model.adapt=text --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from feddlp.allocator import keep_freed_memory
from feddlp.config import Config, load_config
from feddlp.federation.host import Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.materials import Materials, prepare


class Silent:
    """A reporter that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def federation(config: Config, materials: Materials, seeds: range) -> Federation:
    lanes = [Lane(seed, config.build_methods()[config.methods[0]]) for seed in seeds]
    host = Host(lanes, materials.backbone, materials.prompts, materials.data, config.training)
    return Federation(lanes, host, config.training)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the demo's configuration")
    parser.add_argument("--method", default="feddlp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    keep_freed_memory()
    config = load_config(None, [f"methods={options.method}", "training.diagnostics=false", *options.overrides])
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
        f"{options.method}, {options.seeds} seeds, {' '.join(options.overrides) or 'the demo'}: "
        f"together {medians['together']:.2f} s, one after the other {medians['apart']:.2f} s, {ratio:.2f} times as long"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
