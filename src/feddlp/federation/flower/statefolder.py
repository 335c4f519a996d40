"""What a node keeps between messages: the clients before and after their last round, and the report of it.

    state-dir/<experiment>/<method>/
        state.json                  which files count, each with its checksum; replaced atomically
        round-NNNN-W.safetensors    clients, as in a run folder's checkpoint
        report-NNNN.safetensors     what was answered to the last order

A process may die at any point of a round, and a server that was killed asks for the same round again:

    the order is new            the clients go on from where they are
    the order was answered      the report is given again; nobody trains twice
    the order has changed       the server went back: the clients go back to before that round, and train again
    the server went back more   refused
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import safetensors
from filelock import FileLock, Timeout

from feddlp.errors import UserError
from feddlp.files import checksum, make_folder, write_atomically
from feddlp.records import read_json, tensor_files

if TYPE_CHECKING:  # whoever only passes settings on asks for a folder's identity, and needs no PyTorch
    from feddlp.federation.flower.parcels import Parcel
    from feddlp.model.adapters import Theta

FORMAT = 1
Blocks = Sequence[Mapping[str, Any]]


class BusyError(UserError):
    """Another process works on the same clients."""


@dataclass(frozen=True)
class Kept:
    """state.json."""

    belongs: Mapping[str, str]  # fingerprints of what the state is for
    round: int = 0  # the next one, counted from 0; the last one that was played is round - 1
    wave: int = 0
    before: Blocks = ()  # the clients before round - 1
    after: Blocks = ()  # the clients now
    order: str = ""  # digest of the order of round - 1; "" where it has no report
    report: Mapping[str, str] = field(default_factory=dict)  # its file and checksum
    format: int = FORMAT


class StateFolder:
    """One method of one experiment on one node.

    Args:
        path: of this method.
        belongs: fingerprints; a state with others is refused and left as it is.
    """

    def __init__(self, path: Path, belongs: Mapping[str, str]):
        self.path, self.belongs = path, dict(belongs)

    @contextmanager
    def locked(self, patience: float) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            BusyError: another process holds it for longer than `patience` seconds.
            UserError: it cannot be made.
        """
        with writing(self.path):
            make_folder(self.path)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=patience)
            except Timeout as error:
                raise BusyError(
                    f"state-dir: {self.path} is in use by another process; give every node a state-dir of its own"
                ) from error
        try:
            yield
        finally:
            lock.release()

    def read(self) -> Kept:
        """What is kept; a beginning where there is nothing.

        Raises:
            UserError: it is damaged, or belongs to something else.
        """
        file = self.path / "state.json"
        found = read_json(file)
        if found is None:
            return Kept(self.belongs)
        if found.pop("sha256", None) != checksum(canonical(found)):
            raise UserError(f"{file} is damaged; restore it from a backup or move {self.path} away")
        if found["format"] != FORMAT:
            raise UserError(f"{file} is from another version of feddlp; finish with that one or move {self.path} away")
        kept = Kept(**found)
        for key, value in self.belongs.items():
            if kept.belongs.get(key) != value:
                raise UserError(
                    f"{self.path} was begun with another {key} and is left as it is; put the {key} back, "
                    "or move the folder away to begin anew"
                )
        return kept

    def commit(self, kept: Kept) -> None:
        """From now on this is what counts; files that nobody needs any more go."""
        table = json.loads(canonical(vars(kept)))
        write_atomically(self.path / "state.json", canonical({**table, "sha256": checksum(canonical(table))}))
        needed = {str(block["file"]) for block in (*kept.before, *kept.after)} | {kept.report.get("file", "")}
        for name in tensor_files(self.path) - needed:
            (self.path / name).unlink()
        for unfinished in self.path.glob("*.tmp"):
            unfinished.unlink()

    def keep_report(self, round: int, report: Parcel, order: Parcel) -> dict[str, str]:
        """Write a report, and the shared adapters that came with its order; not yet committed."""
        from safetensors.torch import save

        parts = {"report": report.adapters, "order": order.adapters}
        tensors = {
            f"{part}/{name}/{leaf}": value.contiguous()
            for part, adapters in parts.items()
            for name, theta in adapters.items()
            for leaf, value in theta.items()
        }
        content = save(tensors, {"facts": json.dumps(report.facts)})
        file = f"report-{round:04d}.safetensors"
        write_atomically(self.path / file, content)
        return {"file": file, "sha256": checksum(content)}

    def read_report(self, kept: Kept) -> Parcel:
        """The report of the last round, as it was given.

        Raises:
            UserError: its file is missing or damaged.
        """
        return self._read(kept, "report")

    def read_order(self, kept: Kept) -> Mapping[str, Theta]:
        """The shared adapters as they came for the last round; errors as above."""
        return self._read(kept, "order").adapters if kept.report else {}

    def _read(self, kept: Kept, part: str) -> Parcel:
        from safetensors.torch import load

        from feddlp.federation.flower.parcels import Parcel

        file = self.path / kept.report["file"]
        try:
            content = file.read_bytes()
            if checksum(content) != kept.report["sha256"]:
                raise UserError(f"{file} is damaged (its checksum differs); restore it from a backup")
            with safetensors.safe_open(file, "pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); restore it from a backup") from error
        adapters: dict[str, Theta] = {}
        for key, value in load(content).items():
            where, name, leaf = key.split("/", 2)
            if where == part:
                adapters.setdefault(name, {})[leaf] = value
        return Parcel(facts, adapters)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk says into the owner's one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"state-dir: {path}: {reason}; nothing is lost, put it right and the client goes on") from error


def identity(folder: Path) -> str:
    """What tells this state folder from every other; made when it is first used."""
    file = folder / "node.json"
    with writing(folder):
        make_folder(folder)
        with FileLock(folder / ".lock"):
            if (found := read_json(file)) is None:
                found = {"state": uuid4().hex}
                write_atomically(file, canonical(found))
    if not isinstance(found.get("state"), str):
        raise UserError(f"{file} is damaged; restore it from a backup or remove it")
    return str(found["state"])


def canonical(table: Mapping[str, Any]) -> bytes:
    """The same JSON for the same table."""
    return json.dumps(table, default=dict, sort_keys=True).encode()


def digest(round: int, chosen: Sequence[int], order: Parcel) -> str:
    """What makes two orders the same: the round, who is asked, and what the server holds."""
    from feddlp.federation.flower.parcels import to_bytes

    found = hashlib.sha256(json.dumps([round, list(chosen)]).encode())
    for name in sorted(order.adapters):
        found.update(name.encode() + os.sep.encode() + to_bytes(order.adapters[name]))
    return found.hexdigest()
