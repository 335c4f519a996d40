"""Folders of images: one sub-folder per class, or per client and class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from feddlp.data.pictures import PictureFile, is_picture
from feddlp.data.source import LeftOut, Source
from feddlp.errors import UserError

Found = Iterator[PictureFile | LeftOut]


def folder(argument: str) -> Source:
    """folder:PATH, one sub-folder per class, images in any format that Pillow reads, nested folders included."""
    root = existing_folder("folder", argument)
    found = {path.name: list(files_below(path)) for path in sub_folders(root)}
    ignored = [*lonely(root), *(one for files in found.values() for one in files if isinstance(one, LeftOut))]
    classes = {name: [one for one in files if isinstance(one, PictureFile)] for name, files in found.items()}
    check_classes(f"folder:{argument}", classes)
    pictures = [picture for files in classes.values() for picture in files]
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    names = readable_names(f"folder:{argument}", list(classes))
    return Source(root.resolve().name, labels, names, pictures=pictures, ignored=ignored)


def clients(argument: str) -> Source:
    """clients:PATH, one sub-folder per client, and in each one sub-folder per class."""
    root = existing_folder("clients", argument)
    found = [
        (client.name, kind.name, one)
        for client in sub_folders(root)
        for kind in sub_folders(client)
        for one in files_below(kind)
    ]
    taken = [(client, kind, one) for client, kind, one in found if isinstance(one, PictureFile)]
    stray = [one for place in (root, *sub_folders(root)) for one in lonely(place)]
    ignored = [*stray, *(one for *_, one in found if isinstance(one, LeftOut))]
    order = sorted({kind for _, kind, _ in taken})
    check_classes(f"clients:{argument}", {name: [one for _, kind, one in taken if kind == name] for name in order})
    return Source(
        root.resolve().name,
        [order.index(kind) for _, kind, _ in taken],
        readable_names(f"clients:{argument}", order),
        pictures=[one for *_, one in taken],
        clients=[client for client, *_ in taken],
        ignored=ignored,
    )


def existing_folder(kind: str, argument: str) -> Path:
    if not argument:
        raise UserError(f"data.dataset={kind} needs a path; write data.dataset={kind}:PATH")
    return Path(argument).expanduser()


def list_folder(path: Path) -> list[Path]:
    """The visible entries, sorted by name; an unreadable folder is the user's error."""
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"data.dataset: cannot read the folder {path} ({error.strerror}); check the path and its permissions"
        ) from error


def sub_folders(path: Path) -> list[Path]:
    return [entry for entry in list_folder(path) if entry.is_dir()]


def lonely(root: Path) -> list[LeftOut]:
    """The files that lie beside the folders of the classes."""
    return [LeftOut(str(path), "lies in no class folder") for path in list_folder(root) if not path.is_dir()]


def files_below(path: Path) -> Found:
    """The images below a class folder, and what else lies there."""
    for entry in list_folder(path):
        if not entry.is_dir():
            yield PictureFile(entry) if is_picture(entry) else LeftOut(str(entry), "no image by name or content")
        elif entry.is_symlink():  # one to a folder above would never end
            yield LeftOut(str(entry), "a link to a folder below a class folder is not followed")
        else:
            yield from files_below(entry)


def check_classes(given: str, classes: dict[str, list[PictureFile]]) -> None:
    """Refuse fewer than two classes, and any without an image."""
    if len(classes) < 2:
        raise UserError(
            f"data.dataset={given} has {len(classes)} class folder(s), at least 2 are needed; "
            "put the images of each class in a sub-folder of its own"
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(
            f"data.dataset={given} has {len(empty)} class(es) without an image: {', '.join(empty[:5])}; "
            "add images or remove the folder"
        )


def readable_names(given: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as they stand in prompts.

    Raises:
        UserError: where two become the same.
    """
    names = tuple(name.replace("_", " ").replace("-", " ") for name in classes)
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"data.dataset={given} has classes that differ only in '_' and '-' ({', '.join(twins)}), "
            "so their prompts would be alike; rename one of them"
        )
    return names
