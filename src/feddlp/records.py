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
        checkpoint/state.json
        checkpoint/<method>/round-NNNN.safetensors (server) + round-NNNN-W.safetensors (clients of a wave)

Of clients.csv and ranks.jsonl a round adds the clients that took part; what stands there last of a client, holds.
Where some sit out, the rows of round 0 say how everybody began.

A round is committed by the atomic replacement of checkpoint/state.json. It names the tensor files of every method and
how long the records were at that moment, each with its checksum; records count as far as it says. Whatever was written
after it, by a process that then died, is cut off or removed when the run goes on; so a run killed at any point ends as
an undisturbed one. A method's first entry is written before anything else of it, so tensors or records without a
state.json are the remains of a run, and never a beginning.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from feddlp import files, states
from feddlp.errors import UserError
from feddlp.files import held_alone
from feddlp.names import csv_text
from feddlp.record_types import CLIENT_COLUMNS, Environment, Newcomers, Partition, Ranks, Round, State, environment
from feddlp.states import RESTORE, ClientsPiece, Commit, History, Piece, Record

if TYPE_CHECKING:
    from torch import Tensor

TAKEN = "taken"  # in environment.json: from which node's folder the models came
ROSTER = "roster.json"  # in the folder of a run whose clients are on other machines


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
            for number in count(1):
                folder = cls(parent / (name if number == 1 else f"{name}-{number}"))
                with suppress(FileExistsError):
                    folder.path.mkdir()
                    break
            files.write_atomically(folder.config, config_toml.encode())
        except OSError as error:
            raise UserError(f"runs_dir={parent}: cannot make a run folder there ({error.strerror})") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run, all of its records checked.

        Raises:
            UserError: no run there, or a damaged one; the file is named.
        """
        if not (path / "config.toml").is_file():
            raise UserError(f"{path} is not a run folder (it has no config.toml); give a folder such as runs/demo")
        folder = cls(path)
        folder.check()
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; two processes never write to one run. A full disk ends in one line."""
        with held_alone(self.path):
            try:
                yield
            except OSError as error:
                again = f"feddlp {'federate run --resume' if (self.path / ROSTER).exists() else 'resume'} {self.path}"
                raise UserError(
                    f"{self.path}: {error.strerror or error}; finished rounds are kept: put it right, then {again}"
                ) from error

    def record_round(
        self,
        row: Mapping[str, Any],
        clients: Sequence[Mapping[str, Any]],
        ranks: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one method's round, its clients, and its active ranks where it has gates."""
        self.record_clients(clients)
        if ranks:
            files.append(self.ranks, json.dumps(ranks) + "\n")
        files.append(self.rounds, json.dumps(row) + "\n")

    def record_clients(self, clients: Sequence[Mapping[str, Any]]) -> None:
        """Append to the table of clients."""
        table = io.StringIO()
        writer = csv.DictWriter(table, CLIENT_COLUMNS, lineterminator="\n")
        if not self.clients.exists():
            writer.writeheader()
        writer.writerows(clients)
        files.append(self.clients, table.getvalue())

    def read_rounds(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl that are committed, in order."""
        return self._read_lines(self.rounds, Round)

    def read_ranks(self) -> list[dict[str, Any]]:
        """The lines of ranks.jsonl that are committed, in order; empty without gates."""
        return self._read_lines(self.ranks, Ranks)

    def read_clients(self) -> list[dict[str, str]]:
        """The rows of clients.csv that are committed, in order."""
        return list(csv.DictReader(io.StringIO(self._committed(self.clients).decode(errors="replace"), newline="")))

    def _read_lines(self, path: Path, kind: type[Record]) -> list[dict[str, Any]]:
        try:
            lines = self._committed(path).split(b"\n")[:-1]
            return [kind.model_validate_json(line).model_dump(exclude_unset=True) for line in lines]
        except ValidationError as error:
            raise UserError(f"{path} is damaged ({error.errors()[0]['msg']}); {RESTORE}") from error

    def _committed(self, path: Path) -> bytes:
        """A growing record as far as it counts; empty where nothing does."""
        if (state := self.state()) is None:
            return b""
        return next((piece.read(self.path) for piece in state.newest[1].records if piece.file == path.name), b"")

    def read_newcomers(self) -> dict[str, dict[str, Any]]:
        """What became of the clients that joined at the end, by method."""
        path = self.path / "newcomers.jsonl"
        lines = (files.read(path, states.MOST) or b"").split(b"\n")
        rows = (states.opened(line, Newcomers, path) for line in lines if line)
        return {row.method: row.model_dump(exclude={"format"}) for row in rows}

    def record_newcomers(self, row: Mapping[str, Any]) -> None:
        self._write_newcomers([*self.read_newcomers().values(), row])

    def forget_newcomers(self, method: str) -> None:
        """Before more rounds are played: those who joined met another server."""
        rows = self.read_newcomers()
        if rows.pop(method, None):
            self._write_newcomers(list(rows.values()))

    def _write_newcomers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = (states.sealed(Newcomers(**row)) + b"\n" for row in rows)
        files.write_atomically(self.path / "newcomers.jsonl", b"".join(lines))

    def write_partition(self, counts: Mapping[str, Any]) -> None:
        """Who holds what, as far as it is known; each time that a run is gone on with."""
        states.write(self.path / "partition.json", Partition(**counts))

    def write_left_out(self, images: Sequence[tuple[str, str]]) -> None:
        """Images that could not be read, each with its reason; no file where there are none."""
        if images:
            text = csv_text([("path", "reason"), *images])
            files.write_atomically(self.path / "left_out.csv", text.encode())

    def read_partition(self) -> dict[str, Any] | None:
        """Who holds what; None where the run died before it was written."""
        found = states.read(self.path / "partition.json", Partition)
        return found.table() if found else None

    def write_environment(self, fingerprints: Mapping[str, str]) -> None:
        states.write(self.path / "environment.json", Environment(**environment() | dict(fingerprints)))

    def read_environment(self) -> dict[str, Any]:
        """The recorded environment; empty where the run died before it was written."""
        found = states.read(self.path / "environment.json", Environment)
        return found.table() if found else {}

    def checkpoint(self, method: str) -> Path:
        """Where a method's tensors are kept."""
        return self.path / "checkpoint" / method

    def state(self) -> State | None:
        """What is committed; None where nothing was begun.

        Raises:
            UserError: it is damaged; or it is missing, and there are records or tensors.
        """
        file = self.path / "checkpoint" / "state.json"
        if found := states.read(file, State):
            return found
        for left in (*filter(os.path.lexists, self.growing), *self.path.glob("checkpoint/*/*.safetensors")):
            raise UserError(f"{file} is missing, and {left} is there; restore it from a backup, or start a new run")
        return None

    def check(self) -> None:
        """Check all that is committed, but for what is in the tensors, which is checked when they are read.

        Raises:
            UserError: a file is missing, damaged or another version's; it is named.
        """
        found = {"environment.json": self.read_environment(), "partition.json": self.read_partition()}
        self.read_newcomers()
        state = self.state()
        for name in (name for name, content in found.items() if state and not content):
            raise UserError(f"{self.path / name} is missing; restore it from a backup, or start a new run")
        while state:
            try:
                self._check(state)
                return
            except UserError:
                before, state = state, self.state()
                if state == before:  # else a run that is training has replaced it meanwhile
                    raise

    def _check(self, state: State) -> None:
        for piece in state.newest[1].records:
            piece.read(self.path)
        for method, history in state.methods.items():
            for piece in history.last.pieces:
                piece.check_size(self.checkpoint(method))

    def save_checkpoint(
        self,
        method: str,
        round: int,
        tensors: Mapping[str, Tensor],
        clients: Sequence[ClientsPiece] = (),
        wave: int = 0,
        kept: int = 1,
    ) -> None:
        """Commit one method's state after a round, with the records as they are at that moment.

        Args:
            tensors: of the server.
            clients: the client files that belong to it, written before.
            wave: clients side by side.
            kept: how many commits stay; older ones go.
        """
        from feddlp.tensors import write

        piece = write(self.checkpoint(method) / f"round-{round:04d}.safetensors", tensors)
        files.sync_folder(self.checkpoint(method))
        self._commit(method, Commit(round=round, wave=wave, tensors=piece, clients=tuple(clients)), kept)

    def begin(self, method: str) -> None:
        """Before anything is written of a method: from now on its files are no beginning."""
        if self._history(method) is None:
            self._commit(method, Commit(round=0), 1)

    def _history(self, method: str) -> History | None:
        return state.methods.get(method) if (state := self.state()) else None

    def _commit(self, method: str, commit: Commit, kept: int) -> None:
        """Add a commit, with the records as they are."""
        contents = {path.name: files.read(path) for path in self.growing}
        records = tuple(Piece.of(name, content) for name, content in contents.items() if content is not None)
        commit = commit.model_copy(update={"records": records})
        before = state.methods.get(method) if (state := self.state()) else None
        self._replace(state, method, before.followed_by(commit, kept) if before else History(commits=(commit,)))

    def _replace(self, state: State | None, method: str, history: History) -> None:
        """Write state.json with another history of one method, and remove what it does not name."""
        files.make_folder(self.path / "checkpoint")
        methods = {**(state.methods if state else {}), method: history}
        states.write(self.path / "checkpoint" / "state.json", State(methods=methods))
        states.remove_others(self.checkpoint(method), history)

    def checkpoint_state(self, method: str) -> Commit | None:
        """The last commit of a method; None where it has no finished round."""
        history = self._history(method)
        return history.last if history and history.last.round else None

    def load_checkpoint(self, method: str) -> tuple[int, dict[str, Tensor]] | None:
        """The round and server tensors of a method's last commit.

        Raises:
            UserError: a file is missing or damaged; it is named.
        """
        from feddlp.tensors import read

        if (commit := self.checkpoint_state(method)) is None or commit.tensors is None:
            return None
        return commit.round, read(self.checkpoint(method), commit.tensors)[0]

    def rewind(self) -> None:
        """Cut the records back to the last commit, of whichever method; what it names is checked before."""
        if state := self.state():
            self._check(state)
            sizes = {piece.file: piece.size for piece in state.newest[1].records}
            for path in self.growing:
                if path.name in sizes:
                    os.truncate(path, sizes[path.name])
                else:
                    path.unlink(missing_ok=True)

    def undone(self, method: str) -> tuple[int, ...]:
        """To which rounds a method was taken back, one after the other."""
        return history.undone if (history := self._history(method)) else ()

    def take_back(self, round: int) -> str:
        """Make a round the last one of the method that has played last, which is returned.

        Raises:
            UserError: the round is not kept, or another method has played since.
        """
        if (state := self.state()) is None:
            raise UserError(f"--from-round {round}: {self.path} has no finished round")
        method = state.newest[0]
        back, rounds = state.methods[method].back_to(round), state.methods[method].rounds
        if not back or round not in rounds:
            raise UserError(f"--from-round {round}: of {method} {self.path} keeps rounds {', '.join(map(str, rounds))}")
        if State(methods={**state.methods, method: back}).newest[0] != method:
            raise UserError(f"--from-round {round}: another method has played since then; start a new run")
        if tensors := back.last.tensors:
            tensors.read(self.checkpoint(method))
        self._replace(state, method, back.model_copy(update={"undone": (*back.undone, round)}))
        return method
