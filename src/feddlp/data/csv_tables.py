"""A table of images: csv:FILE with the columns path and label, and where known client and split."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from feddlp.data.pictures import PictureFile
from feddlp.data.source import Part, Source
from feddlp.errors import UserError, counted
from feddlp.files import read_given
from feddlp.names import in_order, read_classes

REQUIRED, OPTIONAL = ("path", "label"), ("client", "split")
PARTS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def table(argument: str, least: int = 2) -> Source:
    """csv:FILE with the columns path, label[, client][, split]; paths are relative to the file."""
    if not argument:
        raise UserError("data.dataset=csv needs a file; write data.dataset=csv:FILE")
    file = Path(argument).expanduser()
    rows = read_rows(file)
    names = read_classes(f"csv:{argument}", [row["label"] for row in rows])
    classes = in_order(names.values())
    if len(classes) < least:
        raise UserError(f"data.dataset=csv:{argument} has {counted(len(classes), 'label')} and needs at least {least}")
    place = {name: label for label, name in enumerate(classes)}
    return Source(
        file.stem,
        [place[names[row["label"]]] for row in rows],
        tuple(classes),
        pictures=[PictureFile(file.parent.absolute() / row["path"]) for row in rows],
        clients=[row["client"] for row in rows] if "client" in rows[0] else (),
        parts=[PARTS[row["split"].lower()] for row in rows] if "split" in rows[0] else (),
    )


def read_rows(file: Path) -> list[dict[str, str]]:
    """The lines, each with a value in every column that we know.

    Raises:
        UserError: no such file, no such columns, or a line with too few values or too many.
    """
    try:
        text = read_given(file).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"data.dataset: cannot read {file} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.dataset: {file} is not a CSV file in UTF-8 ({error}); save it as one") from error
    first_line = re.sub('"[^"]*"', "", text[: 2**16]).partition("\n")[0]
    delimiter = ";" if first_line.count(";") > first_line.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        columns = known_columns(file, header)
        rows = [read_row([value.strip() for value in values], header, columns) for values in reader if values]
    except csv.Error as error:
        raise UserError(f"data.dataset: {file} is not a CSV file, line {reader.line_num}: {error}") from error
    except ValueError as error:
        raise UserError(f"data.dataset: {file}, line {reader.line_num} has {error}") from error
    if not rows:
        raise UserError(f"data.dataset: {file} has no line below its header; one line for each image is needed")
    return rows


def known_columns(file: Path, header: Sequence[str]) -> list[str]:
    """Those of the header that we know.

    Raises:
        UserError: one is missing, or there twice.
    """
    if missing := [name for name in REQUIRED if name not in header]:
        raise UserError(
            f"data.dataset: {file} has no column {' and no column '.join(missing)}; "
            f"its first line must be path,label and may add client and split, found {','.join(header) or 'nothing'}"
        )
    columns = [name for name in (*REQUIRED, *OPTIONAL) if name in header]
    if repeated := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"data.dataset: {file} has {header.count(repeated[0])} columns {repeated[0]}; keep one of them")
    return columns


def read_row(values: Sequence[str], header: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """The values of a line in the columns that we know.

    Raises:
        ValueError: too many values or too few, or one that is not allowed.
    """
    if len(values) > len(header):
        raise ValueError(f"{len(values)} values, and the header {len(header)} columns; quote a value with commas")
    found = dict(zip(header, values, strict=False))
    if lacking := [name for name in (*columns, *header) if name not in found or (name in columns and not found[name])]:
        raise ValueError(f"no {lacking[0]}")
    if any("\0" in value for value in values):
        raise ValueError("a NUL character; save the file as UTF-8")
    if found.get("split", "test").lower() not in PARTS:
        raise ValueError(f"the split {found['split']!r}; use train, validation or test")
    return {name: found[name] for name in columns}
