"""What a run still lacks, read from its records: no method is built for it, so PyTorch is not imported."""

from __future__ import annotations

from feddlp.config import Config, recorded_config
from feddlp.records import RunFolder


def missing_rounds(folder: RunFolder, config: Config | None = None) -> str:
    """The rounds still to be played, for example "feddlp 3, local all rounds"; empty when the run is finished.

    A method that trains nothing is scored once; which methods these are is known once they have been.

    Args:
        config: what the run should hold; if left out, its own configuration decides.
    """
    config = config or recorded_config(folder.config)
    last = {row["method"]: row for row in folder.read_rounds()}
    gaps: dict[str, str] = {}
    for name in config.methods:
        row = last.get(name)
        missing = config.training.rounds - row["round"] if row and row["parameters"] else 0
        if row is None or missing > 0:
            gaps[name] = str(missing or "all")
    listed = ", ".join(f"{name} {gap}" for name, gap in gaps.items())
    return f"{listed} rounds" if listed else ""


def missing_newcomers(folder: RunFolder, config: Config | None = None) -> str:
    """The methods that the newcomers have not joined yet, for example "feddlp, local"; arguments as above."""
    config = config or recorded_config(folder.config)
    joined = folder.read_newcomers() if config.data.newcomers else config.methods
    return ", ".join(name for name in config.methods if name not in joined)
