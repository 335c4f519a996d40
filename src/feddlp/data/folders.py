"""Folders of images: one sub-folder per class, or per client and class."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from feddlp.data.pictures import BadImage, PictureFile, is_picture
from feddlp.data.source import LeftOut, Picture, Source
from feddlp.errors import UserError


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


def folder(argument: str) -> Source:
    """folder:PATH, one sub-folder per class, images in any format that Pillow reads, nested folders included."""
    root = existing_folder("folder", argument)
    found = {path.name: list(files_below(path)) for path in sub_folders(root)}
    ignored = [*lonely(root), *(one for files in found.values() for one in files if isinstance(one, LeftOut))]
    classes = {name: [one for one in files if not isinstance(one, LeftOut)] for name, files in found.items()}
    check_classes(f"folder:{argument}", classes)
    pictures = [picture for files in classes.values() for picture in files]
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    names = readable_names(f"folder:{argument}", list(classes))
    return Source(root.resolve().name, labels, names, pictures=pictures, ignored=ignored)


def clients(argument: str, least: int = 2) -> Source:
    """clients:PATH, one sub-folder per client, and in each one sub-folder per class."""
    root = existing_folder("clients", argument)
    return owned(f"clients:{argument}", root, sub_folders(root), lonely(root), least)


def one_client(argument: str) -> Source:
    """A folder as of folder:PATH whose images are all of one client, be they of one class only."""
    root = existing_folder("folder", argument)
    return owned(f"folder:{argument}", root, [root], [], least=1)


def owned(given: str, root: Path, clients: Sequence[Path], stray: Sequence[LeftOut], least: int) -> Source:
    """The images of some clients, each with a sub-folder for each of its classes."""
    found = [
        (client.name, kind.name, one) for client in clients for kind in sub_folders(client) for one in files_below(kind)
    ]
    taken = [(client, kind, one) for client, kind, one in found if not isinstance(one, LeftOut)]
    beside = [*stray, *(one for client in clients for one in lonely(client))]
    ignored = [*beside, *(one for *_, one in found if isinstance(one, LeftOut))]
    order = sorted({kind for _, kind, _ in taken})
    check_classes(given, {name: [one for _, kind, one in taken if kind == name] for name in order}, least)
    return Source(
        root.resolve().name,
        [order.index(kind) for _, kind, _ in taken],
        readable_names(given, order),
        pictures=[one for *_, one in taken],
        clients=[client for client, *_ in taken],
        ignored=ignored,
    )


def existing_folder(kind: str, argument: str) -> Path:
    if not argument:
        raise UserError(f"data.dataset={kind} needs a path; write data.dataset={kind}:PATH")
    return Path(argument).expanduser()


def visible(path: Path) -> list[Path]:
    """The entries that are not hidden, sorted by name.

    Raises:
        OSError: a folder that cannot be listed, or whose entries cannot be reached.
    """
    (path / "..").stat()  # listing needs no permission to reach anything through the folder
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def list_folder(path: Path) -> list[Path]:
    """The visible entries; an unreadable folder is the user's error."""
    try:
        return visible(path)
    except OSError as error:
        raise UserError(
            f"data.dataset: cannot read the folder {path} ({error.strerror}); check the path and its permissions"
        ) from error


def is_folder(path: Path) -> bool:
    """Not where nobody may look, such as behind a link into a closed folder."""
    with suppress(OSError):
        return path.is_dir()
    return False


def sub_folders(path: Path) -> list[Path]:
    return [entry for entry in list_folder(path) if leads_down(entry)]


def leads_down(entry: Path) -> bool:
    return is_folder(entry) and not leads_up(entry)


def leads_up(entry: Path) -> bool:
    """Whether it is a link to the folder in which it lies, or to one above that."""
    return entry.is_symlink() and entry.parent.resolve().is_relative_to(entry.resolve())


def lonely(root: Path) -> list[LeftOut]:
    """What lies beside the folders of the classes."""
    return [
        LeftOut(str(entry), "a link to a folder above" if is_folder(entry) else "lies in no class folder")
        for entry in list_folder(root)
        if not leads_down(entry)
    ]


def files_below(path: Path) -> Found:
    """The images in a class folder and below it, and what else lies there."""
    return found_among(list_folder(path))


def found_among(entries: Sequence[Path]) -> Found:
    for entry in entries:
        if not is_folder(entry):
            yield PictureFile(entry) if is_picture(entry) else LeftOut(str(entry), "no image by name or content")
        elif entry.is_symlink():  # one to a folder above would never end
            yield LeftOut(str(entry), "a link to a folder below a class folder is not followed")
        else:
            try:
                yield from found_among(visible(entry))
            except OSError as error:
                yield ClosedFolder(entry, error.strerror or str(error))


def check_classes(given: str, classes: Mapping[str, Sequence[Picture]], least: int = 2) -> None:
    """Refuse fewer than `least` classes, and any without an image."""
    if len(classes) < least:
        raise UserError(
            f"data.dataset={given} has {len(classes)} class folder(s), at least {least} are needed; "
            "put the images of each class in a sub-folder of its own"
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(
            f"data.dataset={given} has {len(empty)} class(es) without an image: {', '.join(empty[:5])}; "
            "add images or remove the folder"
        )


def readable_names(given: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as they stand in prompts; a minus at the beginning stays.

    Raises:
        UserError: where two become the same words, or where one is no text.
    """
    if garbled := [name for name in classes if name != name.encode(errors="replace").decode()]:
        raise UserError(f"data.dataset={given} has the class name {garbled[0]!r}, which is not UTF-8; rename it")
    names = tuple(re.sub("_|(?<=.)-", " ", name) for name in classes)
    alike: dict[str, list[str]] = defaultdict(list)
    for written, name in zip(classes, names, strict=True):
        alike[" ".join(name.split()).casefold()].append(written)
    if twins := next((group for group in alike.values() if len(group) > 1), None):
        raise UserError(
            f"data.dataset={given} has classes whose prompts would be alike ({', '.join(map(repr, twins))}); "
            "rename all but one of them"
        )
    return names
