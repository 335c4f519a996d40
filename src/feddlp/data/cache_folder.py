"""Where the cache is, and whether there is room in it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feddlp.errors import UserError
from feddlp.files import MIB


def cache_root() -> Path:
    """FEDDLP_CACHE, or ~/.cache/feddlp."""
    return Path(os.environ.get("FEDDLP_CACHE") or "~/.cache/feddlp").expanduser()


def room_for(needed: int, folder: Path, present: int = 0) -> str:
    """What is needed in bytes, where, and how much is free, in words.

    Args:
        present: bytes of it that are taken already.

    Raises:
        UserError: not enough.
    """
    free = shutil.disk_usage(folder).free
    if needed - present > free:
        raise UserError(
            f"{folder} has {in_units(free)} free, {in_units(needed - present)} are needed; "
            "free some room or set FEDDLP_CACHE to another folder"
        )
    return f"{in_units(needed)} in {folder} ({in_units(free)} are free)"


def in_units(size: int) -> str:
    """A number of bytes as 12 KiB or 3,456 MiB."""
    return f"{size / MIB:,.0f} MiB" if size >= MIB else f"{math.ceil(size / 1024)} KiB"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Where the disk says no, the user is told how to go on."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} cannot be written ({error.strerror}); free some room or set FEDDLP_CACHE to another folder"
        ) from error
