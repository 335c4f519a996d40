"""Prepared pixels on the disk, made once and read through a memory map.

    <cache>/images/<key>/pixels.u8    the rows [N', 3, H, W] uint8, one after the other
    <cache>/images/<key>/state.json   how far it is: pictures done, which could not be read, the digest at the end

The key is a digest of what decides the pixels: the identity of every picture in order (of a file: its absolute path,
inode, size, times of last change of content and of status, and whether it may be read), the settings of the
checkpoint's image processor, and the versions of Pillow, transformers and this format. Labels are no part of it.

    <cache>/features/<key>.safetensors    of the frozen image tower, for text adaptation

The state is replaced after every chunk, once the chunk's pixels are on the disk, so a killed preparation goes on
where it stood; a lock lets two runs that want the same images prepare them once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from feddlp.data.preparation import Filled, Pixels, Progress, Resize, fill, pixel_hash, row_shape
from feddlp.data.source import Picture
from feddlp.errors import UserError
from feddlp.files import write_atomically

FORMAT = 1
MIB = 2**20
ALLOCATE = getattr(os, "posix_fallocate", lambda file, start, size: os.ftruncate(file, start + size))  # macOS has none


def cache_root() -> Path:
    """FEDDLP_CACHE, or ~/.cache/feddlp."""
    return Path(os.environ.get("FEDDLP_CACHE") or "~/.cache/feddlp").expanduser()


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.locked(folder):
                return self.find(folder) or self.prepare(folder, pictures, resize, progress)
        except OSError as error:
            raise UserError(
                f"the image cache {folder} cannot be written ({error.strerror}); "
                "free some room or set FEDDLP_CACHE to another folder"
            ) from error

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

    def find(self, folder: Path) -> Pixels | None:
        """What was prepared to its end, checked against its digest."""
        state = read_state(folder)
        if "sha256" not in state:
            return None
        filled, shape = filled_of(state), tuple(state["shape"])
        if (folder / "pixels.u8").stat().st_size == filled.rows * prod(shape):
            images = open_rows(folder, filled.rows, shape)
            if (digest := pixel_hash(images)).hexdigest() == state["sha256"]:
                return Pixels(images, filled.bad, digest)
        self.note(f"the cached images in {folder} are damaged and are prepared again")
        (folder / "state.json").unlink()
        return None

    def prepare(self, folder: Path, pictures: Sequence[Picture], resize: Resize, progress: Progress) -> Pixels:
        """Open what is still to be opened."""
        shape, filled = row_shape(resize), (begun := filled_of(read_state(folder)))
        self.reserve(folder, len(pictures), prod(shape))
        rows = np.memmap(folder / "pixels.u8", np.uint8, "r+", shape=(len(pictures), *shape))
        for filled in fill(torch.from_numpy(rows), pictures, resize, begun):
            rows.flush()
            write_state(folder, filled, shape)
            progress(filled.done, len(pictures))
        del rows
        os.truncate(folder / "pixels.u8", filled.rows * prod(shape))
        images = open_rows(folder, filled.rows, shape)
        digest = pixel_hash(images)
        write_state(folder, filled, shape, sha256=digest.hexdigest())
        return Pixels(images, filled.bad, digest)

    def reserve(self, folder: Path, rows: int, size: int) -> None:
        """Take the room before anything is opened: a memory map that finds the disk full would end the process."""
        needed, file = rows * size, folder / "pixels.u8"
        present = file.stat().st_size if file.exists() else 0
        free = shutil.disk_usage(folder).free
        self.note(
            f"preparing {rows:,} images once: {needed / MIB:,.0f} MiB in {folder} ({free / MIB:,.0f} MiB are free)"
        )
        if needed - present > free:
            raise UserError(
                f"the image cache needs {needed / MIB:,.0f} MiB in {folder}, {free / MIB:,.0f} MiB are free; "
                "free some room or set FEDDLP_CACHE to another folder"
            )
        with file.open("ab") as opened:
            ALLOCATE(opened.fileno(), 0, needed)


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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if (found := read_features(file)) is not None:
                return found
            features = compute()
            content = save({"features": features.cpu()}, {"sha256": digest_of(features.cpu())})
            write_atomically(file, content)
            return features
    except OSError as error:
        raise UserError(
            f"the feature cache {file.parent} cannot be written ({error.strerror}); "
            "free some room or set FEDDLP_CACHE to another folder"
        ) from error


def read_features(file: Path) -> Tensor | None:
    """The stored features; None where there are none, or where they are damaged."""
    try:
        with safe_open(file, "pt") as opened:
            features: Tensor = opened.get_tensor("features")
            return features if opened.metadata()["sha256"] == digest_of(features) else None
    except (OSError, SafetensorError, KeyError):
        return None


def digest_of(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().data).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """How far the preparation is; empty where it has not begun, or where nobody can tell."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        complete = {"done", "bad", "shape"} <= state.keys() and (folder / "pixels.u8").exists()
    except (OSError, ValueError, AttributeError):
        complete = False
    return dict(state) if complete else {}


def filled_of(state: dict[str, Any]) -> Filled:
    return Filled(state["done"], tuple((index, reason) for index, reason in state["bad"])) if state else Filled()


def write_state(folder: Path, filled: Filled, shape: Sequence[int], **more: str) -> None:
    state = {"done": filled.done, "bad": filled.bad, "shape": list(shape), **more}
    write_atomically(folder / "state.json", json.dumps(state).encode())
