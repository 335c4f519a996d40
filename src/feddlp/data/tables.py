"""A table of images: csv:FILE with the columns path and label, and where known client and split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from feddlp.data.folders import readable_names
from feddlp.data.pictures import PictureFile
from feddlp.data.source import Part, Source
from feddlp.errors import UserError

REQUIRED, OPTIONAL = ("path", "label"), ("client", "split")
PARTS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def table(argument: str) -> Source:
    """csv:FILE with the columns path, label[, client][, split]; paths are relative to the file."""
    if not argument:
        raise UserError("data.dataset=csv needs a file; write data.dataset=csv:FILE")
    file = Path(argument).expanduser()
    rows = read_rows(file)
    classes = in_order({row["label"] for row in rows})
    if len(classes) < 2:
        raise UserError(f"data.dataset=csv:{argument} has {len(classes)} label(s), at least 2 are needed")
    place = {name: label for label, name in enumerate(classes)}
    return Source(
        file.stem,
        [place[row["label"]] for row in rows],
        readable_names(f"csv:{argument}", classes),
        pictures=[PictureFile(file.parent.absolute() / row["path"]) for row in rows],
        clients=[row["client"] for row in rows] if "client" in rows[0] else (),
        parts=[part_named(row["split"], file, number) for number, row in enumerate(rows)] if "split" in rows[0] else (),
    )


def read_rows(file: Path) -> list[dict[str, str]]:
    """The lines as dictionaries, each with a value in every column that we know.

    Raises:
        UserError: no such file, no such columns, or a line that lacks a value.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            columns = [name for name in (*REQUIRED, *OPTIONAL) if name in (reader.fieldnames or ())]
            rows = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except OSError as error:
        raise UserError(f"data.dataset: cannot read {file} ({error.strerror}); check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"data.dataset: {file} is not a CSV file in UTF-8 ({error})") from error
    if missing := [name for name in REQUIRED if name not in columns]:
        raise UserError(
            f"data.dataset: {file} has no column {' and no column '.join(missing)}; "
            f"its first line must be path,label and may add client and split, found {','.join(reader.fieldnames or ())}"
        )
    for number, row in enumerate(rows):
        if empty := [name for name, value in row.items() if not value]:
            raise UserError(f"data.dataset: {file}, line {number + 2} has no {empty[0]}")
    if not rows:
        raise UserError(f"data.dataset: {file} has no line below its header; one line for each image is needed")
    return rows


def in_order(labels: set[str]) -> Sequence[str]:
    """By number where all are numbers, else by name."""
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)


def part_named(text: str, file: Path, number: int) -> Part:
    if text.lower() not in PARTS:
        raise UserError(
            f"data.dataset: {file}, line {number + 2} has the split {text!r}; use train, validation or test"
        )
    return PARTS[text.lower()]
