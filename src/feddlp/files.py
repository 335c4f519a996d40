"""Files that are whole whatever happens to the process, and noticed where they are not."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from feddlp.errors import UserError

MOST_TOML = 2**20
PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
LONG_KEY = re.compile(rf"(?<![\w.-]){PART}(?:[ \t]*+\.[ \t]*+{PART}){{99}}")
"""One of a hundred parts: the time that the library takes grows with their square."""

MIB = 2**20


@contextmanager
def owner_only() -> Iterator[None]:
    """Have files and folders that are made meanwhile readable by their owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file as `write_whole` does, and have it survive a power cut as well."""
    write_whole(path, content)
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, then replace: readers see the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a new file is still there after a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def create_private(path: Path, content: bytes) -> None:
    """A new file that only its owner can read, from its first byte on; it is whole or not there.

    Raises:
        FileExistsError: there is one.
    """
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:  # of mode 0600
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path)  # unlike a rename, it replaces nothing
    sync_folder(path.parent)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """A folder with its parents, flushed."""
    if not path.exists():
        path.mkdir(mode, parents=True)
        sync_folder(path.parent)
        sync_folder(path.parent.parent)


def append(path: Path, text: str) -> None:
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that somebody gives; a pipe or device, which may never end, is an OSError."""
    # Asking the open file leaves no moment to replace it; to open a pipe without O_NONBLOCK would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_given(path: Path, most: int = 2**30) -> bytes:
    """Read a file that somebody gives; errors as `open_regular`, and of one that is too large."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most:,} bytes")
        return file.read()


def read(path: Path, most: int = sys.maxsize) -> bytes | None:
    """The content of a file of ours; None where nothing has this name.

    Raises:
        UserError: something else is there, such as a pipe or a dangling link, or it cannot be read.
    """
    try:
        return read_given(path, most)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return None
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore it from a backup, or put it right"
        ) from error


def parse_toml(text: str) -> dict[str, Any]:
    """TOML, as far as it is of a size and depth that the library reads within seconds.

    Raises:
        ValueError: it is not TOML, or too long or too deep.
    """
    if len(text) > MOST_TOML:
        raise ValueError(f"more than {MOST_TOML:,} characters")
    try:
        if LONG_KEY.search(text):
            raise RecursionError
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def held_alone(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        UserError: another process holds it.
    """
    held = FileLock(folder / lock, mode=0o600)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another feddlp process; wait for it or stop it") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror}); use a folder of your own") from error
    try:
        yield
    finally:
        held.release()
