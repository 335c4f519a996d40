"""What the files of a run folder hold, as types; `records` says which file is which."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import Field

from feddlp.states import Commit, Count, FolderName, History, Record, Sealed

CLIENT_COLUMNS = (
    "method", "seed", "round", "client", "name", "train_samples", "validation_samples", "test_samples",
    "validation_correct", "test_correct", "test_accuracy", "train_loss", "active_ranks",
    "participated", "reported", "bytes_down", "bytes_up",
)  # fmt: skip


class State(Sealed):
    """checkpoint/state.json: the methods in the order in which they began."""

    methods: Annotated[dict[FolderName, History], Field(min_length=1)]

    @property
    def newest(self) -> tuple[str, Commit]:
        """The method that has played last, and its last commit."""
        methods = reversed(self.methods.items())
        name, history = max(methods, key=lambda method: sum(piece.size for piece in method[1].last.records))
        return name, history.last


class Environment(Sealed):
    """environment.json"""

    python: str
    packages: dict[str, str]
    platform: str
    cpu_count: int | None
    threads: int
    cuda: str | None
    configuration: str = ""
    code: str = ""
    data: str = ""
    backbone: str = ""
    taken: str = ""


class Partition(Sealed):
    """partition.json"""

    class_names: list[str]
    template: str = ""
    clients: list[dict[str, list[Count]]] | None = None
    newcomers: list[Count] | None = None
    client_names: list[str] | None = None
    own_data: bool = False  # some node brought images in place of those of the configuration


Accuracies = dict[str, float] | None


class Newcomers(Sealed):
    """A line of newcomers.jsonl."""

    method: str
    seed: int
    clients: Count
    zero_shot: Accuracies
    received: Accuracies
    tuned: list[Accuracies]


class Round(Record):
    """A line of rounds.jsonl; what readers can do without may be absent."""

    method: str
    seed: int = 0
    round: Count
    test: Accuracies = None
    validation: Accuracies = None
    diagnostics: dict[str, float] | None = None
    train_loss: dict[str, float | None] | None = None
    parameters: dict[str, Count] | None = None
    parameters_sent: Count = 0
    clients: Count = 0
    participants: Count = 0
    reported: Count = 0
    bytes_down: int | float = 0
    bytes_up: int | float = 0
    active_ranks: float | None = None
    gates: Count = 0
    export_bytes: float | None = None
    seconds: float = 0.0
    lanes: int = 1
    wave: Count = 0
    activation_mib: float = 0.0
    peak_mib: float = 0.0


class Ranks(Record):
    """A line of ranks.jsonl."""

    method: str
    seed: int
    round: Count
    clients: list[Count]
    active: dict[str, list[int]]
    ranks: dict[str, int]


def environment() -> dict[str, Any]:
    """What else decides the numbers: versions, machine, threads."""
    import torch

    packages = ("feddlp", "torch", "transformers", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
