"""Prepared pixels on the disk, made once and read through a memory map.

    <cache>/images/<key>/pixels.u8    the rows [N', 3, H, W] uint8, one after the other
    <cache>/images/<key>/state.json   how far it is: pictures done, which could not be read, digest of the rows so far

The key is a digest of what decides the pixels: the identity of every picture in order (of a file: its absolute path,
inode, size, times of last change of content and of status, and whether it may be read), the settings of the
checkpoint's image processor, and the versions of Pillow, transformers and this format. Labels are no part of it.

    <cache>/features/<key>.safetensors    of the frozen image tower, for text adaptation

The state is replaced after every chunk, once the chunk's pixels are on the disk, so a killed preparation goes on
where it stood; rows without the state's digest are made again. A lock lets two runs that want the same images prepare
them once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from feddlp.data.cache_folder import room_for, writing
from feddlp.data.preparation import Filled, Pixels, Progress, Resize, fill, pixel_hash, row_shape
from feddlp.data.source import Picture
from feddlp.errors import UserError
from feddlp.files import write_atomically
from feddlp.states import read, write

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

FORMAT = 3
ALLOCATE = getattr(os, "posix_fallocate", lambda file, start, size: os.ftruncate(file, start + size))  # macOS has none


@dataclass(frozen=True)
class PixelCache:
    """Prepares pictures once for each processor.

    Args:
        root: where the cache is.
        settings: of the image processor, so that others have pixels of their own.
        note: told of what takes long or much room.
    """

    root: Path
    settings: str
    note: Callable[[str], None]

    def __call__(self, pictures: Sequence[Picture], resize: Resize, progress: Progress) -> Pixels:
        """All pictures at model size, out of the cache or into it.

        Raises:
            UserError: the cache cannot be written, or the disk is full.
        """
        folder = self.root / "images" / self.key(pictures)
        with writing(f"the image cache {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            with self.locked(folder):
                return self.prepare(folder, pictures, resize, progress)

    def key(self, pictures: Sequence[Picture]) -> str:
        digest = hashlib.sha256(f"{FORMAT} {version('pillow')} {version('transformers')} {self.settings}".encode())
        for picture in pictures:
            digest.update(f"\0{picture.identity()}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]

    def locked(self, folder: Path) -> FileLock:
        """Hold the folder; where another process has it, say so and wait."""
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            self.note("another run is preparing these images; waiting for it")
        return lock

    def prepare(self, folder: Path, pictures: Sequence[Picture], resize: Resize, progress: Progress) -> Pixels:
        """Open what is still to be opened; the state follows the rows of each chunk."""
        shape = row_shape(resize)
        filled, digest = self.begun(folder, len(pictures), shape)
        if filled.done < len(pictures):
            rows = self.reserve(folder, len(pictures), shape)
            for after in fill(torch.from_numpy(rows), pictures, resize, filled):
                rows.flush()
                digest.update(rows[filled.rows : after.rows].ravel().data)
                filled = after
                write(folder / "state.json", filled.model_copy(update={"sha256": digest.hexdigest()}))
                progress(filled.done, len(pictures))
            os.truncate(folder / "pixels.u8", filled.rows * prod(shape))
        return Pixels(open_rows(folder, filled.rows, shape), filled.bad, digest)

    def begun(self, folder: Path, pictures: int, shape: Sequence[int]) -> tuple[Filled, Hash]:
        """What is there already with the digest of its rows; nothing, where these are not the rows that were written.

        After a power cut the pixels of a preparation may be gone although its state is there.
        """
        try:
            if (state := read(folder / "state.json", Filled)) is None:
                return Filled(), hashlib.sha256()
            digest = pixel_hash(open_rows(folder, state.rows, shape))
        except (OSError, ValueError, UserError):  # not such a state, or fewer rows than it says
            state = None
        if state and state.done <= pictures and state.sha256 == digest.hexdigest():
            return state, digest
        self.note(f"the cached images in {folder} are damaged and are prepared again")
        return Filled(), hashlib.sha256()

    def reserve(self, folder: Path, rows: int, shape: Sequence[int]) -> np.memmap[Any, Any]:
        """Take the room before anything is opened: a memory map that finds the disk full would end the process."""
        needed, file = rows * prod(shape), folder / "pixels.u8"
        present = file.stat().st_size if file.exists() else 0
        self.note(f"preparing {rows:,} images once: {room_for(needed, folder, present)}")
        with file.open("ab") as opened:
            ALLOCATE(opened.fileno(), 0, needed)
        return np.memmap(file, np.uint8, "r+", shape=(rows, *shape))


def open_rows(folder: Path, rows: int, shape: Sequence[int]) -> Tensor:
    """The rows as a private map: writing to them would not change the file. [rows, 3, H, W] uint8"""
    if not rows:
        return torch.empty(0, *shape, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(folder / "pixels.u8", np.uint8, "c", shape=(rows, *shape)))


def cached_features(root: Path, identity: str, compute: Callable[[], Tensor]) -> Tensor:
    """Features of a frozen tower, computed once. [N, D], on the CPU where they come from the disk

    Args:
        identity: of all that decides them: images, weights, dtype.

    Raises:
        UserError: the cache cannot be written, or the disk is full.
    """
    file = root / "features" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    with writing(f"the feature cache {file.parent}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            with suppress(OSError, SafetensorError, KeyError), safe_open(file, "pt") as opened:
                found: Tensor = opened.get_tensor("features")
                if opened.metadata()["sha256"] == pixel_hash(found).hexdigest():
                    return found
            features = compute()
            kept = features.cpu()
            write_atomically(file, save({"features": kept}, {"sha256": pixel_hash(kept).hexdigest()}))
            return features
