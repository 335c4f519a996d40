"""The archives in which data sets are published, unpacked once into the cache.

    <cache>/archives/<key>/    the key is a digest of the archives' identities, as of pictures in `cache`

A folder appears whole or not at all; a lock lets two runs that want the same archives unpack them once.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from feddlp.data.cache_folder import cache_root, writing
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
    draft = folder.with_suffix(".tmp")
    with writing(str(folder)):
        make_folder(folder.parent)
        with FileLock(folder.with_suffix(".lock")):
            if folder.exists():
                return folder
            shutil.rmtree(draft, ignore_errors=True)  # of an attempt that was killed
            draft.mkdir()
            try:
                for archive in archives:
                    unpack(archive, draft)
                for file in beside:
                    shutil.copy(file, draft)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def key_of(files: Sequence[Path]) -> str:
    identities = "\0".join(PictureFile(file).identity() for file in files)
    return hashlib.sha256(identities.encode(errors="surrogateescape")).hexdigest()[:32]


def unpack(archive: Path, folder: Path) -> None:
    """All members; those that would leave the folder are refused by the filter.

    Raises:
        UserError: it cannot be read, or is damaged.
        OSError: no room.
    """
    log.warning("unpacking %s once into %s", archive, folder.parent)
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
            while opened.fileobj and opened.fileobj.read(2**20):  # tarfile leaves the checksum unread
                pass
    except (OSError, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        what = f"cannot read {archive}" if getattr(error, "errno", None) else f"{archive} is damaged"
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"data.dataset: {what} ({reason}); download it again") from error
