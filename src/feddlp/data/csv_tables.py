"""A table of images: csv:FILE with the columns path and label, and where known client and split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class Row(NamedTuple):
    """One image."""

    line: int  # on which it ends
    values: dict[str, str]  # of the columns that we know


def table(argument: str, least: int = 2) -> Source:
    """csv:FILE with the columns path, label[, client][, split]; paths are relative to the file."""
    if not argument:
        raise UserError("data.dataset=csv needs a file; write data.dataset=csv:FILE")
    file = Path(argument).expanduser()
    rows = read_rows(file)
    pictures = [PictureFile(file.parent.absolute() / row.values["path"]) for row in rows]
    refuse_twice(file, rows, pictures)
    labels, columns = [row.values["label"] for row in rows], rows[0].values
    classes = in_order(set(labels))
    if len(classes) < least:
        raise UserError(f"data.dataset=csv:{argument} has {len(classes)} label(s), at least {least} are needed")
    place = {name: label for label, name in enumerate(classes)}
    return Source(
        file.stem,
        [place[label] for label in labels],
        readable_names(f"csv:{argument}", classes),
        pictures=pictures,
        clients=[row.values["client"] for row in rows] if "client" in columns else (),
        parts=[part_of(row, file) for row in rows] if "split" in columns else (),
    )


def read_rows(file: Path) -> list[Row]:
    """The lines, each with a value in every column that we know.

    Raises:
        UserError: no such file, no such columns, or a line that lacks a value.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header = opened.readline()
            opened.seek(0)
            reader = csv.DictReader(
                opened, delimiter=";" if header.count(";") > header.count(",") else ",", strict=True
            )
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            columns = known_columns(file, reader.fieldnames)
            rows = [Row(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]
    except OSError as error:
        raise UserError(f"data.dataset: cannot read {file} ({error.strerror}); check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"data.dataset: {file} is not a CSV file in UTF-8 ({error})") from error
    for row in rows:
        if empty := [name for name, value in row.values.items() if not value]:
            raise UserError(f"data.dataset: {file}, line {row.line} has no {empty[0]}")
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


def refuse_twice(file: Path, rows: Sequence[Row], pictures: Sequence[PictureFile]) -> None:
    """Refuse a file that stands on two lines, which could be trained on and tested on."""
    seen: dict[str, int] = {}
    for row, picture in zip(rows, pictures, strict=True):
        if (first := seen.setdefault(picture.place(), row.line)) != row.line:
            raise UserError(
                f"data.dataset: {file}, lines {first} and {row.line} name the same file {row.values['path']}; keep one"
            )


def in_order(labels: set[str]) -> Sequence[str]:
    """By number where all are numbers, else by name."""
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def part_of(row: Row, file: Path) -> Part:
    text = row.values["split"]
    if text.lower() not in PARTS:
        raise UserError(f"data.dataset: {file}, line {row.line} has the split {text!r}; use train, validation or test")
    return PARTS[text.lower()]
