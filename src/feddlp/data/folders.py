"""Folders of images: one sub-folder per class, or per client and class; official splits may stand above the classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from feddlp.data.csv_tables import PARTS
from feddlp.data.pictures import BadImage, PictureFile, is_picture
from feddlp.data.source import LeftOut, Part, Source
from feddlp.errors import UserError, counted
from feddlp.names import in_order, nfc, read_classes

LONELY = "lies in no class folder"
SPLIT = re.compile(rf"({'|'.join(PARTS)})([ _-]?(set|data|images))?[ _-]?\d*", re.IGNORECASE)
LIKE_SPLIT = re.compile(
    r"(?<![a-z])(train(ing)?|test(ing)?|val(id(ation)?)?|eval(uation)?|hold-?out|dev)(?![a-z])", re.IGNORECASE
)
SYSTEM = re.compile(
    r"@(eadir|recycle|recently-snapshot|snapshot|tmp|__thumb|sharebin|syno.*)|#(recycle|snapshot)|~snapshot|"
    r"\$(recycle\.bin|extend)|recycle( bin|[rd])|network trash folder|temporary items|"
    r"system volume information|found\.\d{3}|lost\+found|_+macosx|__pycache__|"
    r"(eh)?thumbs.*\.db|desktop\.ini",
    re.IGNORECASE,
)
"""What Windows, macOS, Linux and network storage put beside people's files: thumbnails, deleted files, indices."""


@dataclass(frozen=True)
class ClosedFolder:
    """A folder that may hold images, and counts as one that cannot be read."""

    path: Path
    reason: str

    @property
    def name(self) -> str:
        return str(self.path)

    def identity(self) -> str:
        return f"{self.path.absolute()} {self.reason}"

    def open(self) -> Image.Image:
        raise BadImage(f"a folder that cannot be read: {self.reason}")


Found = Iterator[PictureFile | ClosedFolder | LeftOut]


class Kind(NamedTuple):
    """A folder with images of one class."""

    folder: Path
    name: str  # of the class
    client: str
    part: Part | None


def folder(argument: str, least: int = 2) -> Source:
    """folder:PATH, one sub-folder per class, images in any format that Pillow reads, nested folders included."""
    root = existing_folder("folder", argument)
    return replace(owned(f"folder:{argument}", root, [root], [], least, every=True), clients=())


def clients(argument: str, least: int = 2) -> Source:
    """clients:PATH, one sub-folder per client, and in each one sub-folder per class."""
    root = existing_folder("clients", argument)
    return owned(f"clients:{argument}", root, sub_folders(root), lonely(root), least)


def one_client(argument: str) -> Source:
    """A folder as of folder:PATH whose images are all of one client, be they of one class only."""
    root = existing_folder("folder", argument)
    return owned(f"folder:{argument}", root, [root], [], least=1)


def owned(
    given: str, root: Path, clients: Sequence[Path], stray: Sequence[LeftOut], least: int = 2, every: bool = False
) -> Source:
    """The images of some clients, each with a sub-folder for each of its classes.

    Args:
        least: so many classes are needed.
        every: a class folder without images is an error, or an empty class if `least` is 1; otherwise it is no class.
    """
    kinds = [kind for client in clients for kind in class_folders(given, client)]
    if len({kind.part is None for kind in kinds}) > 1:
        raise UserError(f"data.dataset={given} has official splits for some clients only; give them to all or to none")
    found = [(kind, one) for kind in kinds for one in files_below(kind.folder)]
    taken = [(kind, one) for kind, one in found if not isinstance(one, LeftOut)]
    check_splits(given, [kind for kind, _ in taken])
    counts = dict.fromkeys([kind.name for kind in kinds] * every, 0) | Counter(kind.name for kind, _ in taken)
    check_classes(given, counts, least)
    place = {name: label for label, name in enumerate(in_order(counts))}
    parents = dict.fromkeys([*clients, *(kind.folder.parent for kind in kinds)])
    beside = [*stray, *(one for parent in parents for one in lonely(parent))]
    return Source(
        root.resolve().name,
        [place[kind.name] for kind, _ in taken],
        tuple(place),
        pictures=[one for _, one in taken],
        clients=[kind.client for kind, _ in taken],
        parts=[kind.part for kind, _ in taken if kind.part],
        ignored=[*beside, *(one for _, one in found if isinstance(one, LeftOut))],
    )


def class_folders(given: str, client: Path) -> Iterator[Kind]:
    """The folders of a client's classes, below its official splits where it has them."""
    for parent, part in split_folders(given, client).items():
        below = sub_folders(parent)
        names = read_classes(given, [folder.name for folder in below])
        yield from (Kind(folder, names[folder.name], client.name, part) for folder in below)


def split_folders(given: str, root: Path) -> dict[Path, Part | None]:
    """train/, val/ and test/ with what they are, where these hold folders of the same classes; else the folder itself.

    Raises:
        UserError: folders of such names that could be either, splits or classes.
    """
    below = sub_folders(root)
    matches = {path: found for path in below if (found := SPLIT.fullmatch(path.name))}
    alike = [path for path in below if path in matches or LIKE_SPLIT.search(path.name)]
    inside = Counter(nfc(name) for path in alike for name in {folder.name for folder in sub_folders(path)})
    in_common = max(inside.values(), default=0) > 1
    with_images = [
        path
        for path in matches
        if any(not left_alone(entry) and not is_folder(entry) and is_picture(entry) for entry in list_folder(path))
    ]
    if not (in_common and len(alike) > len(matches)) and (
        len(matches) == 1 < len(below) or (len(with_images) == len(matches) and not in_common)
    ):
        return {root: None}
    if len(matches) == len(below) and not with_images and (in_common or len(below) == 1):
        return {path: PARTS[found[1].lower()] for path, found in matches.items()}
    raise UserError(
        f"data.dataset={given} has {', '.join(path.name for path in alike)} as if they were official splits, but not "
        "all hold folders of the same classes and no images beside these; move away what is no split, rename the "
        "folders if they are classes, or use csv: with a column split"
    )


def check_splits(given: str, kinds: Sequence[Kind]) -> None:
    """Refuse classes that the validation or test folders hold and the training folders, if there are any, lack."""
    trained = {kind.name for kind in kinds if kind.part == "train"}
    if trained and (lacking := sorted({kind.name for kind in kinds} - trained)):
        raise UserError(
            f"data.dataset={given} has {counted(len(lacking), 'class')} with images for validation or test but none "
            f"for training: {', '.join(lacking[:5])}; rename or remove the folders"
        )


def existing_folder(kind: str, argument: str) -> Path:
    if not argument:
        raise UserError(f"data.dataset={kind} needs a path; write data.dataset={kind}:PATH")
    return Path(argument).expanduser()


def entries(path: Path) -> list[Path]:
    """What lies in a folder, sorted by name; an OSError where it cannot be listed, or its entries cannot be reached."""
    (path / "..").stat()  # listing needs no permission to reach anything through the folder
    return sorted(path.iterdir())


def list_folder(path: Path) -> list[Path]:
    """What lies in a folder; an unreadable one is the user's error."""
    try:
        return entries(path)
    except OSError as error:
        raise UserError(
            f"data.dataset: cannot read the folder {path} ({error.strerror}); check the path and its permissions"
        ) from error


def is_folder(path: Path) -> bool:
    """False where nobody may look, such as behind a link into a closed folder; `Path.is_dir` raises there."""
    return os.path.isdir(path)  # noqa: PTH112


def sub_folders(path: Path) -> list[Path]:
    return [entry for entry in list_folder(path) if leads_down(entry)]


def leads_down(entry: Path) -> bool:
    """Whether it is a folder of the collection, and no link to the folder in which it lies, or to one above that."""
    leads_up = entry.is_symlink() and entry.parent.resolve().is_relative_to(entry.resolve())
    return is_folder(entry) and not leads_up and not left_alone(entry)


def left_alone(entry: Path) -> str:
    """Why nobody looks at an entry, whatever it holds; empty where it may belong to the collection."""
    return (
        "hidden" if entry.name.startswith(".") else "made by a system" if SYSTEM.fullmatch(entry.name.strip()) else ""
    )


def lonely(root: Path) -> list[LeftOut]:
    """What lies beside the folders of the classes."""
    return [
        LeftOut(str(entry), left_alone(entry) or ("a link to a folder above" if is_folder(entry) else LONELY))
        for entry in list_folder(root)
        if not leads_down(entry)
    ]


def files_below(path: Path) -> Found:
    """The images in a class folder and below it, however deep, and what else lies there."""
    waiting = list_folder(path)[::-1]
    while waiting:
        entry = waiting.pop()
        if reason := left_alone(entry):
            yield LeftOut(str(entry), reason)
        elif not is_folder(entry):
            yield PictureFile(entry) if is_picture(entry) else LeftOut(str(entry), "no image by name or content")
        elif entry.is_symlink():  # one to a folder above would never end
            yield LeftOut(str(entry), "a link to a folder below a class folder is not followed")
        else:
            try:
                waiting += entries(entry)[::-1]
            except OSError as error:
                yield ClosedFolder(entry, error.strerror or str(error))


def check_classes(given: str, counts: dict[str, int], least: int) -> None:
    """Refuse fewer than `least` classes and, unless one is enough, any without an image."""
    if len(counts) < least:
        raise UserError(
            f"data.dataset={given} has {counted(len(counts), 'class folder')} and needs at least {least}; "
            "put the images of each class in a sub-folder of its own"
        )
    if least > 1 and (empty := [name for name, count in counts.items() if not count]):
        raise UserError(
            f"data.dataset={given} has {counted(len(empty), 'class')} without an image: {', '.join(empty[:5])}; "
            "add images or remove the folder"
        )
