"""Draw a run's accuracy by round: `python tools/plot_run.py runs/demo --to docs/demo.svg`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

COLOURS = {"feddlp": "#c2410c", "flora": "#1d4ed8", "local": "#15803d", "zero_shot": "#57534e"}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args(words)

    mpl.rcParams["svg.hashsalt"] = "feddlp"  # the same run gives the same file
    rows = [json.loads(line) for line in (options.run / "rounds.jsonl").read_text().splitlines()]
    last = max(row["round"] for row in rows)
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for method in dict.fromkeys(row["method"] for row in rows):
        accuracy = [row["test"]["pooled"] for row in rows if row["method"] == method]
        colour = COLOURS.get(method)
        if len(accuracy) == 1:
            axes.axhline(accuracy[0], color=colour, linestyle="--", label=f"{method}  {accuracy[0]:.1f} %")
        else:
            axes.plot(range(1, len(accuracy) + 1), accuracy, color=colour, marker="o", markersize=3.5)
            axes.plot([], [], color=colour, marker="o", label=f"{method}  {accuracy[-1]:.1f} % in the last round")
    axes.set(xlabel="round", ylabel="test accuracy, pooled (%)", xlim=(0.7, last + 0.3), xticks=range(1, last + 1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.35))
    figure.savefig(options.to, metadata={"Date": None} if options.to.suffix == ".svg" else None, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
