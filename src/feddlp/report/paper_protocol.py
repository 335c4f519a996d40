"""Whether runs follow the paper's partition; only then may its numbers stand beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feddlp.records import RunFolder
from feddlp.report.series import read_config

PARTITION: Mapping[str, Any] = {
    "data.clients": 10,
    "data.partition": "dirichlet",
    "data.test_set": "own",
    "data.test_share": 0.25,
    "data.newcomers": 0,
    "training.participation": 1,
    "training.report_rate": 1,
}


def deviations(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """In words, where a run's complete configuration differs; empty where all runs follow the paper."""
    configs = [read_config(run.config)[1] for run in runs]
    found = [
        f"{key} = {config.get(key, 'not recorded')} (the paper: {papers})"
        for key, papers in PARTITION.items()
        for config in configs
        if config.get(key) != papers
    ]
    return tuple(dict.fromkeys(found))
