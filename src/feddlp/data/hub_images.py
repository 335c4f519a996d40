"""Labelled images of the Hugging Face hub, through the `datasets` library (an extra)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from feddlp.data.csv_tables import PARTS
from feddlp.data.pictures import BadImage, PictureBytes, PictureFile
from feddlp.data.source import LeftOut, Part, Source
from feddlp.errors import UserError
from feddlp.names import are_numbers, in_order, read_classes


@dataclass(frozen=True)
class HubPicture:
    """One row of a split."""

    split: Any  # datasets.Dataset, its images not decoded
    column: str
    row: int
    place: str  # what the split is called, with the fingerprint of its content

    @property
    def name(self) -> str:
        return f"{self.place.partition(' ')[0]}[{self.row}]"

    def identity(self) -> str:
        return f"{self.place} {self.row}"

    def open(self) -> Image.Image:
        stored = self.split[self.row][self.column] or {}
        if stored.get("bytes") is None and not stored.get("path"):
            raise BadImage("the row has no image")
        if stored.get("bytes") is None:
            return PictureFile(Path(stored["path"])).open()
        return PictureBytes(self.name, stored["bytes"]).open()


def hub(argument: str) -> Source:
    """hub:owner/name, a data set of the Hugging Face hub with an image and a class column (needs feddlp[datasets])."""
    if not argument:
        raise UserError("data.dataset=hub needs a name; write data.dataset=hub:owner/name")
    splits = load_splits(argument)
    features = next(iter(splits.values())).features
    image, label = column_of(argument, features, "Image"), column_of(argument, features, "ClassLabel")
    entries = [
        (HubPicture(raw, image, row, f"{argument}:{name} {split._fingerprint}"), value, PARTS.get(name.lower()))
        for name, split in splits.items()
        for raw in [split.select_columns([image]).cast_column(image, type(features[image])(decode=False))]
        for row, value in enumerate(split[label])
    ]
    labelled = [entry for entry in entries if entry[1] is not None and entry[1] >= 0]
    bare = [LeftOut(picture.name, "no label") for picture, value, _ in entries if value is None or value < 0]
    names = read_classes(f"hub:{argument}", features[label].names)
    order = in_order(names.values()) if are_numbers(names.values()) else list(names.values())
    place = [order.index(names[name]) for name in features[label].names]
    parts: list[Part] = [part for *_, part in labelled if part]
    return Source(
        argument.rpartition("/")[2],
        [place[value] for _, value, _ in labelled],
        tuple(order),
        pictures=[picture for picture, *_ in labelled],
        parts=parts if len(parts) == len(labelled) else (),
        ignored=bare,
    )


def load_splits(name: str) -> dict[str, Any]:
    """Every split by its name.

    Raises:
        UserError: the library is not installed, or the data set cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"data.dataset=hub:{name} needs the datasets library; install it with: pip install 'feddlp[datasets]'"
        ) from error
    try:
        return dict(load_dataset(name))
    except Exception as error:  # the network, the hub and the formats fail in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"data.dataset=hub:{name} cannot be loaded ({reason}); check the name and the network, "
            "or download it first and use folder: or csv:"
        ) from error


def column_of(name: str, features: Any, kind: str) -> str:
    """The only column of a kind."""
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        raise UserError(
            f"data.dataset=hub:{name} has {len(found)} columns of type {kind}, one is needed; its columns are: "
            + ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        )
    return str(found[0])
