"""Files that are whole whatever happens to the process, and noticed where they are not."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from tempfile import NamedTemporaryFile

MIB = 2**20


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


def read_given(path: Path, most: int = 2**30) -> bytes:
    """The content of a file that somebody gives.

    Raises:
        OSError: it cannot be read; a pipe or device, which may never end, or more than `most` bytes.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    return path.read_bytes()


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
