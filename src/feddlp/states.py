"""State and record files: typed, checksummed, written atomically, and read by one reader that believes nothing.

A sealed file is a JSON object whose first key is the checksum of everything after it:

    {"checksum": "<64 digits>", "format": 4, ...}

What grows (records, one line or row at a time) or is large (tensors) is named by a `Piece` in a sealed file: so many
bytes with this checksum. A `Commit` names all pieces that belong to one round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feddlp import files
from feddlp.errors import UserError

KEPT = 6  # commits that a federation over Flower keeps, on the server and on the nodes: it can go back five rounds
MOST = 2**28  # bytes of a sealed file
RESTORE = "restore it from a backup or run again"
Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PlainName = Annotated[str, Field(pattern=r"^[a-z0-9-]+\.(safetensors|jsonl|csv)$")]  # it stays in its folder
FolderName = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]


class Record(BaseModel):
    """What stands in a file, with exactly these fields and types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants")

    def table(self) -> dict[str, Any]:
        """What differs from the defaults, as plain values."""
        return self.model_dump(exclude_defaults=True)


class Sealed(Record):
    """A whole file, or one line of it."""

    format: Literal[4] = 4  # older ones are refused


class Piece(Record):
    """The first bytes of a file beside the state that names it."""

    file: PlainName
    size: Count
    sha256: Digest

    @classmethod
    def of(cls, file: str, content: bytes) -> Self:
        return cls(file=file, size=len(content), sha256=files.checksum(content))

    def check_size(self, folder: Path) -> None:
        """Look whether the file is there; errors as `read`."""
        path = folder / self.file
        try:
            found = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); {RESTORE}") from error
        if found < self.size:
            raise UserError(f"{path} is damaged ({found} bytes, {self.size} expected); {RESTORE}")

    def read(self, folder: Path) -> bytes:
        """The bytes, checked.

        Raises:
            UserError: the file is missing, shorter or damaged; it is named.
        """
        self.check_size(folder)
        content = (files.read(folder / self.file) or b"")[: self.size]
        if files.checksum(content) != self.sha256:
            raise UserError(f"{folder / self.file} is damaged (its checksum differs); {RESTORE}")
        return content


class ClientsPiece(Piece):
    """A file with the state of some clients."""

    rows: tuple[Count, ...]


class Commit(Record):
    """One method as it is after a round."""

    round: Count  # rounds that are played
    wave: Count = 0  # clients side by side
    tensors: Piece | None = None  # of the server; on a node, what was answered
    clients: tuple[ClientsPiece, ...] = ()
    records: tuple[Piece, ...] = ()  # as far as they went then; on the server
    order: str = ""  # digest of what was asked; on a node

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All tensor files."""
        return (*self.clients, self.tensors) if self.tensors else self.clients


class History(Record):
    """The last commits of a method, newest last, and the rounds to which it was taken back, one after the other."""

    commits: Annotated[tuple[Commit, ...], Field(min_length=1)]
    undone: tuple[Count, ...] = ()

    @property
    def last(self) -> Commit:
        return self.commits[-1]

    @property
    def rounds(self) -> list[int]:
        return [commit.round for commit in self.commits]

    def followed_by(self, commit: Commit, kept: int) -> History:
        return self.model_copy(update={"commits": (*self.commits, commit)[-kept:]})

    def back_to(self, round: int) -> History | None:
        """As it was after a round at most; None where that is no longer kept."""
        commits = tuple(commit for commit in self.commits if commit.round <= round)
        return self.model_copy(update={"commits": commits}) if commits else None


Sealing = TypeVar("Sealing", bound=Sealed)


def sealed(record: Sealed) -> bytes:
    """A record with its checksum, on one line."""
    rest = record.model_dump_json(fallback=str).encode()[1:]
    return seal(rest) + rest


def seal(rest: bytes) -> bytes:
    return f'{{"checksum": "{files.checksum(rest)}", '.encode()


def opened(content: bytes, model: type[Sealing], path: Path) -> Sealing:
    """What `sealed` gave.

    Raises:
        UserError: it is damaged or from another version; its path is named.
    """
    rest = content[len(seal(b"")) :]
    if content != seal(rest) + rest:
        raise UserError(f"{path} is damaged or from another version of feddlp (its checksum differs); {RESTORE}")
    try:
        return model.model_validate_json(b"{" + rest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("format",):
            raise UserError(f"{path} is from another version of feddlp; go on with that one") from None
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged ({where}: {first['msg']}); {RESTORE}") from None


def read(path: Path, model: type[Sealing]) -> Sealing | None:
    """A sealed file; None where there is none; errors as `opened`."""
    content = files.read(path, MOST)
    return None if content is None else opened(content, model, path)


def write(path: Path, record: Sealed) -> None:
    files.write_atomically(path, sealed(record))


def remove_others(folder: Path, history: History) -> None:
    """Remove the tensor files of a method that no commit names, and what a killed process left half written."""
    names = {piece.file for commit in history.commits for piece in commit.pieces}
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.tmp")):
        if path.name not in names:
            path.unlink()
