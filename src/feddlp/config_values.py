"""Values of a configuration that may be written in several ways: lists of names, paths, amounts of memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from feddlp.data.datasets import FROM_DISK
from feddlp.model.hub import EMBEDDED


def split_names(value: Any) -> Any:
    """ "feddlp, flora" or ["feddlp", "flora"] -> ("feddlp", "flora")"""
    parts = value.split(",") if isinstance(value, str) else value
    return (
        tuple(part.strip() if isinstance(part, str) else part for part in parts) if isinstance(parts, list) else parts
    )


Names = Annotated[tuple[str, ...], BeforeValidator(split_names), PlainSerializer(", ".join), Field(min_length=1)]


def absolute_dataset(value: str) -> str:
    """KIND:PATH with the path made absolute, so that a run can be resumed from anywhere."""
    kind, _, path = value.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if kind in FROM_DISK and path else value


def absolute_checkpoint(value: str) -> str:
    """A local folder made absolute; other names stay."""
    folder = Path(value).expanduser()
    return str(folder.resolve()) if value not in EMBEDDED and folder.is_dir() else value


def gibibytes(value: Any) -> Any:
    """ "auto", 8, "8GiB" or "512 MiB" -> "auto" or GiB."""
    if value == "auto":
        return value
    found = re.fullmatch(r"(\d+\.?\d*) *(GiB|MiB)?", str(value).strip())
    if not found or not float(found[1]):
        raise ValueError("write auto, a number of GiB, or for example 512MiB")
    return float(found[1]) / (1024 if found[2] == "MiB" else 1)
