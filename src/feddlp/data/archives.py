"""The archives in which data sets are published, unpacked once into the cache.

    <cache>/archives/<key>/    the key is a digest of the archives' identities, as of pictures in `cache`

A folder appears whole or not at all; a lock lets two runs that want the same archives unpack them once.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from feddlp.data.cache_folder import cache_root, room_for
from feddlp.data.pictures import PictureFile
from feddlp.errors import UserError
from feddlp.files import make_folder

log = logging.getLogger(__name__)


def unpacked(archives: Sequence[Path], beside: Sequence[Path]) -> Path:
    """The folder with what the tar archives hold, and with copies of the small files that lie beside them.

    Raises:
        UserError: a damaged archive, or no room for it.
    """
    folder = cache_root() / "archives" / key_of([*archives, *beside])
    try:
        make_folder(folder.parent)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                unpack(archives, beside, folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); free some room, set FEDDLP_CACHE to another "
            "folder, or unpack the archives by hand"
        ) from error
    return folder


def key_of(files: Sequence[Path]) -> str:
    identities = "\0".join(PictureFile(file).identity() for file in files)
    return hashlib.sha256(identities.encode(errors="surrogateescape")).hexdigest()[:32]


def unpack(archives: Sequence[Path], beside: Sequence[Path], folder: Path) -> None:
    """Into a folder of another name first, which goes where that fails."""
    needed = sum(map(unpacked_size, archives)) + sum(file.stat().st_size for file in beside)
    room = room_for(needed, folder.parent)
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was killed
    temporary.mkdir()
    try:
        for archive in archives:
            log.warning("unpacking %s once: %s", archive, room)
            extract(archive, temporary)
        for file in beside:
            shutil.copy(file, temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpacked_size(archive: Path) -> int:
    """The bytes of all members, known after reading the archive up to its checksum.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        with whole(archive), tarfile.open(archive) as opened:
            size = sum(member.size for member in opened)
            while opened.fileobj and opened.fileobj.read(2**20):  # tarfile leaves the checksum unread
                pass
            return size
    except OSError as error:
        raise UserError(
            f"data.dataset: cannot read {archive} ({error.strerror or error}); "
            "check its permissions or download it again"
        ) from error


def extract(archive: Path, folder: Path) -> None:
    """Members that would leave the folder are refused by the filter."""
    with whole(archive), tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")


@contextmanager
def whole(archive: Path) -> Iterator[None]:
    """Whatever tells of a damaged archive becomes a UserError."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"data.dataset: {archive} is damaged ({reason}); download it again") from error
