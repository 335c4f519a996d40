"""`feddlp run tune=true`: each method's learning rate from one short grid, on validation data, before the run begins.

It is a sweep of one seed in the folder `tuning` of the run, and goes on as one does. What was chosen is then written
into the run's configuration, which from then on is like any other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, cast

from feddlp.config import validate
from feddlp.errors import UserError
from feddlp.experiment import Entry, Reporter
from feddlp.files import write_atomically
from feddlp.materials import Materials
from feddlp.sweep import Runner
from feddlp.sweepfile import OWN, check_sweep

RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]  # for towers of every size, and all methods alike
ROUNDS = 3


class Quiet:
    """A reporter that leaves out the rounds of trials: their test accuracies, mixed over rates, are nobody's."""

    def __init__(self, inner: Reporter):
        self.inner = inner

    def round_finished(self, row: Mapping[str, Any]) -> None:
        """Say nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def tune(entry: Entry, materials: Materials, reporter: Reporter) -> Entry:
    """Choose the learning rates that are open, and write them into the configuration in the run's folder.

    Raises:
        UserError: a method none of whose trials has a score.
    """
    folder, config = entry
    table = tomllib.loads(config.to_toml())
    top = {key: table.pop(key) for key in OWN} | {"tune": False}
    rates = table.pop("rates", {})
    table.pop("own_methods", None)
    sweep = check_sweep(
        {
            "name": "tuning",
            "runs_dir": str(folder.path),
            "methods": list(config.methods),
            "seeds": [config.seed],
            "config": {**table, "training": {**table["training"], "diagnostics": False}},
            "tune": {"grid": {"lr": RATES}, "seeds": [config.seed], "rounds": min(ROUNDS, config.training.rounds)},
        }
    )
    tried = f"{RATES[0]:g} to {RATES[-1]:g}, {sweep.tune.rounds} rounds each"
    reporter.note(f"choosing learning rates on validation data: {', '.join(config.methods)}, {tried}")
    runner = Runner(sweep, cast("Reporter", Quiet(reporter)), lambda result: None)
    for name in config.methods:
        trial, scores = runner.tune(0, name, lambda: materials)
        if scores and not any(score is not None for score in scores.values()):
            reason = next(iter(runner.failed.values()), "no client has validation samples")
            raise UserError(f"tune=true: no learning rate of {name} has a validation score ({reason})")
        if rate := runner.rate(name, trial, scores):
            rates[name], table["method"][name]["lr"] = rate.model_dump(), rate.lr
    chosen = validate({**table, **top, "rates": rates})
    write_atomically(folder.config, chosen.to_toml().encode())
    return Entry(folder, chosen)
