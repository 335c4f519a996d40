"""Tensors in files: written whole, named by a `Piece`, and checked against it before they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from feddlp import files
from feddlp.errors import UserError
from feddlp.states import RESTORE, Piece


def write(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> Piece:
    """A safetensors file, flushed; that its name survives a power cut is up to the commit."""
    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, about)
    files.make_folder(path.parent)
    files.write_whole(path, content)
    return Piece.of(path.name, content)


def read(folder: Path, piece: Piece) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and what was written about them.

    Raises:
        UserError: the file is missing or damaged; it is named.
    """
    content = piece.read(folder)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise UserError(f"{folder / piece.file} cannot be read ({error}); {RESTORE}") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})
