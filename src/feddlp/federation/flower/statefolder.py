"""What a node keeps between messages: the clients before and after their last round, and the report of it.

    state-dir/<experiment>/<method>/
        state.json                  which files count, for each of the last rounds; replaced atomically
        round-NNNN-W.safetensors    clients, as in a run folder's checkpoint
        report-NNNN.safetensors     what was answered to the order of a round

A process may die at any point of a round, a server that was killed asks for the same round again, and one that was
taken back (`feddlp federate run --from-round`) for an earlier one:

    the order is new            the clients go on from where they are
    the order was answered      the report is given again; nobody trains twice
    the order has changed, or is for an earlier round: the clients go back to before that round, and train again
    the state before it is no longer kept: refused

Every order names the rounds to which the server was ever taken back, so that clients which sat the next rounds out
follow as well, and an order from before that is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import Field

from feddlp.errors import UserError
from feddlp.files import make_folder, owner_only
from feddlp.states import Commit, History, Piece, Sealed, read, remove_others, write

if TYPE_CHECKING:  # whoever only passes settings on asks for a folder's identity, and needs no PyTorch
    from torch import Tensor

    from feddlp.federation.flower.parcels import Parcel
    from feddlp.model.adapters import Theta

log = logging.getLogger("feddlp")


class BusyError(UserError):
    """Another process works on the same clients."""


class Kept(Sealed):
    """state.json"""

    belongs: dict[str, str]  # fingerprints of what the state is for
    history: History = History(commits=(Commit(round=0),))

    @property
    def last(self) -> Commit:
        return self.history.last


class Identity(Sealed):
    """node.json"""

    state: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


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
        with writing(self.path), owner_only():
            make_folder(self.path)
            lock = FileLock(self.path / ".lock", mode=0o600)
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
            UserError: it is damaged, or belongs to something else; or it is missing, and there are tensors.
        """
        file = self.path / "state.json"
        if (kept := read(file, Kept)) is None:
            if left := next(self.path.glob("*.safetensors"), None):
                raise UserError(f"{file} is missing, and {left} is there; restore it, or move {self.path} away")
            return Kept(belongs=self.belongs)
        for key, value in self.belongs.items():
            if kept.belongs.get(key) != value:
                raise UserError(
                    f"{self.path} was begun with another {key} and is left as it is; put the {key} back, "
                    "or move the folder away to begin anew"
                )
        return kept

    def commit(self, belongs: Mapping[str, str], history: History) -> Kept:
        """From now on this is what counts; files that nobody needs any more go."""
        kept = Kept(belongs=dict(belongs), history=history)
        write(self.path / "state.json", kept)
        remove_others(self.path, history)
        return kept

    def follow(self, kept: Kept, undone: Sequence[int]) -> Kept:
        """Go back to the rounds to which the server was taken back, one after the other.

        Raises:
            UserError: that far back is not kept, or the server knows less than the clients.
        """
        known = kept.history.undone
        if tuple(undone[: len(known)]) != known:
            raise UserError(
                f"the server has forgotten that it was taken back to round {known[-1]}; restore its run folder, or "
                f"begin anew with {self.path} moved away"
            )
        history = kept.history
        for round in undone[len(known) :]:
            history = History(commits=self._back_to(history, round).commits, undone=(*history.undone, round))
        return kept if history is kept.history else self.commit(kept.belongs, history)

    def before(self, kept: Kept, round: int) -> Kept:
        """The clients as they were before a round (from 0); errors as `follow`."""
        history = self._back_to(kept.history, round)
        return kept if history is kept.history else self.commit(kept.belongs, history)

    def _back_to(self, history: History, round: int) -> History:
        if history.last.round <= round:
            return history
        if (back := history.back_to(round)) is None:
            first = history.commits[0].round
            raise UserError(
                f"the server asks for round {round + 1}, and here round {history.last.round} was played; round {first} "
                f"is as far as it can go back (--from-round {first}), or begin anew with {self.path} moved away"
            )
        log.warning("the server went back: round %d is taken back to round %d", history.last.round, back.last.round)
        return back

    def keep_report(self, round: int, report: Parcel, order: Parcel) -> Piece:
        """Write a report, and the shared adapters that came with its order; not yet committed."""
        from feddlp import tensors

        values = {**leaves("report", report.adapters), **leaves("order", order.adapters)}
        return tensors.write(self.path / f"report-{round:04d}.safetensors", values, {"facts": json.dumps(report.facts)})

    def read_report(self, kept: Kept) -> tuple[Parcel, Mapping[str, Theta]]:
        """The report of the last round as it was given, and the shared adapters as they came for it.

        Raises:
            UserError: their file is missing or damaged.
        """
        from feddlp import tensors
        from feddlp.federation.flower.parcels import Parcel

        if kept.last.tensors is None:
            return Parcel({}), {}
        values, about = tensors.read(self.path, kept.last.tensors)
        parts: dict[str, dict[str, Theta]] = {"report": {}, "order": {}}
        for key, value in values.items():
            part, name, leaf = key.split("/", 2)
            parts[part].setdefault(name, {})[leaf] = value
        return Parcel(json.loads(about["facts"]), parts["report"]), parts["order"]


def leaves(part: str, adapters: Mapping[str, Theta]) -> dict[str, Tensor]:
    """Adapters as a file of tensors has them: by "part/adapter/leaf"."""
    return {f"{part}/{name}/{leaf}": value for name, theta in adapters.items() for leaf, value in theta.items()}


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
    with writing(folder), owner_only():
        make_folder(folder)
        close(folder, file)
        with FileLock(folder / ".lock", mode=0o600):
            if (found := read(file, Identity)) is None:
                if left := next(folder.glob("*/*/state.json"), None):
                    raise UserError(f"{file} is missing, and {left} is there; restore it, or move {folder} away")
                found = Identity(state=uuid4().hex)
                write(file, found)
    return found.state


def close(folder: Path, ours: Path) -> None:
    """Keep others out of a state folder; what is below it is then out of their reach too.

    Raises:
        UserError: others may look into it, and it holds something else than a node's state.
    """
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        if any(folder.iterdir()) and not ours.exists():
            raise UserError(
                f"state-dir: {folder} holds other things and is open to others; name a folder of its own, or close it "
                f"with: chmod 700 {folder}"
            )
        folder.chmod(0o700)


def digest(round: int, chosen: Sequence[int], order: Parcel) -> str:
    """What makes two orders the same: the round, who is asked, and what the server holds."""
    from feddlp.federation.flower.parcels import to_bytes

    found = hashlib.sha256(json.dumps([round, list(chosen)]).encode())
    for name in sorted(order.adapters):
        found.update(name.encode() + os.sep.encode() + to_bytes(order.adapters[name]))
    return found.hexdigest()
