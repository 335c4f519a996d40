"""A run leaves a record: a folder from which tables and plots are made, and in which an interrupted run goes on.

    runs/<name>/
        config.toml       complete and re-runnable
        environment.json  versions, machine, fingerprints of the data and of the frozen weights
        partition.json    how many samples of which class each client holds
        left_out.csv      images that could not be read, where data.on_bad_image=skip left some out
        rounds.jsonl      one line a method and round
        clients.csv       one row a method, round and client
        ranks.jsonl       one line a method with gates and round: active ranks of every client and layer
        newcomers.jsonl   one line a method, where clients join at the end
        checkpoint/<method>/state.json + round-NNNN.safetensors (server) + round-NNNN-W.safetensors (clients of a wave)

Of clients.csv and ranks.jsonl a round adds the clients that took part; what stands there last of a client, holds.
Where some sit out, the rows of round 0 say how everybody began.

A checkpoint is committed by the atomic replacement of state.json. It names the server's file and the files of all
clients that have taken part, each with its checksum, and how long the records were at that moment. Whatever was
written after it, by a process that then died, is cut off or removed when the run goes on; so a run killed at any point
ends as an undisturbed one.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
from filelock import FileLock, Timeout

from feddlp.errors import UserError
from feddlp.files import append, checksum, make_folder, write_atomically
from feddlp.names import csv_text

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
TAKEN = "taken"  # in environment.json: from which node's folder the models came
ROSTER = "roster.json"  # in the folder of a run whose clients are on other machines
STATE_KEYS = {"format", "round", "wave", "file", "sha256", "records", "clients"}
CLIENT_COLUMNS = (
    "method", "seed", "round", "client", "name", "train_samples", "validation_samples", "test_samples",
    "validation_correct", "test_correct", "test_accuracy", "train_loss", "active_ranks",
    "participated", "reported", "bytes_down", "bytes_up",
)  # fmt: skip


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


@dataclass(frozen=True)
class RunFolder:
    """One run's record on the disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def clients(self) -> Path:
        return self.path / "clients.csv"

    @property
    def ranks(self) -> Path:
        return self.path / "ranks.jsonl"

    @property
    def growing(self) -> tuple[Path, ...]:
        """The records that every round adds to."""
        return self.rounds, self.clients, self.ranks

    @classmethod
    def create(cls, parent: Path, name: str, config_toml: str) -> RunFolder:
        """A new folder; where the name is taken, name-2, name-3, ... Nothing is ever overwritten."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = cls(next(path for path in candidates(parent, name) if is_new_folder(path)))
            write_atomically(folder.config, config_toml.encode())
        except OSError as error:
            raise UserError(f"runs_dir={parent}: cannot make a run folder there ({error.strerror})") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            UserError: no run there.
        """
        if not (path / "config.toml").is_file():
            raise UserError(f"{path} is not a run folder (it has no config.toml); give a folder such as runs/demo")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; two processes never write to one run."""
        with held_alone(self.path):
            yield

    def record_round(
        self,
        row: Mapping[str, Any],
        clients: Sequence[Mapping[str, Any]],
        ranks: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one method's round, its clients, and its active ranks where it has gates."""
        self.record_clients(clients)
        if ranks:
            append(self.ranks, json.dumps(ranks) + "\n")
        append(self.rounds, json.dumps(row) + "\n")

    def record_clients(self, clients: Sequence[Mapping[str, Any]]) -> None:
        """Append to the table of clients."""
        table = io.StringIO()
        writer = csv.DictWriter(table, CLIENT_COLUMNS, lineterminator="\n")
        if not self.clients.exists():
            writer.writeheader()
        writer.writerows(clients)
        append(self.clients, table.getvalue())

    def read_rounds(self) -> list[dict[str, Any]]:
        """The complete lines of rounds.jsonl, in order."""
        return list(read_lines(self.rounds))

    def read_ranks(self) -> list[dict[str, Any]]:
        """The complete lines of ranks.jsonl, in order; empty without gates."""
        return list(read_lines(self.ranks))

    def read_newcomers(self) -> dict[str, dict[str, Any]]:
        """What became of the clients that joined at the end, by method."""
        return {row["method"]: row for row in read_lines(self.path / "newcomers.jsonl")}

    def record_newcomers(self, row: Mapping[str, Any]) -> None:
        self._write_newcomers([*self.read_newcomers().values(), row])

    def forget_newcomers(self, method: str) -> None:
        """Before more rounds are played: those who joined met another server."""
        rows = self.read_newcomers()
        if rows.pop(method, None):
            self._write_newcomers(list(rows.values()))

    def _write_newcomers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path / "newcomers.jsonl", "".join(json.dumps(one) + "\n" for one in rows).encode())

    def write_partition(self, counts: Mapping[str, Any]) -> None:
        """Who holds what, as far as it is known; each time that a run is gone on with."""
        write_atomically(self.path / "partition.json", json.dumps(counts).encode())

    def write_left_out(self, files: Sequence[tuple[str, str]]) -> None:
        """Images that could not be read, each with its reason; no file where there are none."""
        if files:
            write_atomically(self.path / "left_out.csv", csv_text([("path", "reason"), *files]).encode())

    def read_partition(self) -> dict[str, Any] | None:
        """Who holds what; None where the run died before it was written."""
        return read_json(self.path / "partition.json")

    def checkpoint(self, method: str) -> Path:
        """Where a method's state is kept."""
        return self.path / "checkpoint" / method

    def save_checkpoint(
        self,
        method: str,
        round: int,
        tensors: Mapping[str, Tensor],
        clients: Sequence[Mapping[str, Any]] = (),
        wave: int = 0,
    ) -> None:
        """Commit one method's state after a round, with the length of the records at that moment.

        Args:
            tensors: of the server.
            clients: the client files that belong to it, written before: "file", "sha256", and what else is of use.
            wave: clients side by side.
        """
        from safetensors.torch import save

        folder = self.checkpoint(method)
        make_folder(folder)
        content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
        file = f"round-{round:04d}.safetensors"
        write_atomically(folder / file, content)
        lengths = {path.name: path.stat().st_size for path in self.growing if path.exists()}
        state = {"format": FORMAT, "round": round, "wave": wave, "file": file, "sha256": checksum(content)}
        state |= {"records": lengths, "clients": list(clients)}
        write_atomically(folder / "state.json", json.dumps(state).encode())
        for name in tensor_files(folder) - {file, *(entry["file"] for entry in clients)}:
            (folder / name).unlink()

    def checkpoint_state(self, method: str) -> dict[str, Any] | None:
        """What the last checkpoint of a method says of itself; None where there is none."""
        file = self.checkpoint(method) / "state.json"
        if not file.exists():
            return None
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            complete = state.keys() >= STATE_KEYS
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            complete = False
        if not complete or state["format"] != FORMAT:
            raise UserError(f"{file} is damaged or from another version of feddlp; the run cannot be resumed from it")
        return dict(state)

    def load_checkpoint(self, method: str) -> tuple[int, dict[str, Tensor]] | None:
        """The round and server tensors of a method's last checkpoint, checked against its checksum.

        Raises:
            UserError: a file is missing or damaged; it is named.
        """
        if (state := self.checkpoint_state(method)) is None:
            return None
        from safetensors.torch import load

        file = self.checkpoint(method) / state["file"]
        try:
            content = file.read_bytes()
            if checksum(content) != state["sha256"]:
                raise UserError(f"{file} is damaged (its checksum differs); restore it from a backup or run again")
            return state["round"], load(content)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); restore it from a backup or run again") from error

    def rewind(self, methods: Sequence[str]) -> None:
        """Cut the records back to the last committed checkpoint, of whichever method."""
        states = [state for method in methods if (state := self.checkpoint_state(method))]
        lengths: dict[str, int] = max(
            (state["records"] for state in states), key=lambda record: record[self.rounds.name], default={}
        )
        for path in self.growing:
            length, found = lengths.get(path.name, 0), path.stat().st_size if path.exists() else 0
            if found < length:
                raise UserError(f"{path} is damaged ({found} bytes, {length} expected); restore it or run again")
            if found > length:
                os.truncate(path, length)
        if not states:
            self.clients.unlink(missing_ok=True)

    def write_environment(self, fingerprints: Mapping[str, str]) -> None:
        write_atomically(
            self.path / "environment.json", json.dumps(environment() | dict(fingerprints), indent=1).encode()
        )

    def read_environment(self) -> dict[str, Any]:
        """The recorded environment; empty where the run died before it was written."""
        return read_json(self.path / "environment.json") or {}


@contextmanager
def held_alone(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        UserError: another process holds it.
    """
    try:
        with FileLock(folder / lock, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{folder} is in use by another feddlp process; wait for it or stop it") from error


def tensor_files(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.name.endswith(".safetensors")}


def read_json(path: Path) -> dict[str, Any] | None:
    """One JSON object; None where there is no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or run again") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a JSON-lines file; a last line without its end is one still being written."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it or run again") from error


def candidates(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    number = 2
    while True:
        yield parent / f"{name}-{number}"
        number += 1


def is_new_folder(path: Path) -> bool:
    """True where this call made it."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
