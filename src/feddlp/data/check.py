"""What a collection holds, found by opening every image of it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from PIL import Image

from feddlp.data.preparation import CHUNK, open_all, thread_pool
from feddlp.data.source import LeftOut, Source
from feddlp.errors import counted

FEW = 5


class Seen(NamedTuple):
    """One image that could be read."""

    width: int
    height: int
    digest: bytes  # of its pixels: the same picture in another lossless format has the same
    brightest: int | None  # value in the file, of grey with more than 8 bits


@dataclass(frozen=True)
class Findings:
    """A source and what opening its pictures showed."""

    source: Source
    seen: Mapping[int, Seen]  # by the picture's place
    unreadable: Sequence[LeftOut]

    def duplicates(self) -> list[list[int]]:
        """Places of pictures with the same pixels, in groups of two and more."""
        groups: dict[bytes, list[int]] = defaultdict(list)
        for index, seen in self.seen.items():
            groups[seen.digest].append(index)
        return [group for group in groups.values() if len(group) > 1]

    def empty_classes(self) -> list[str]:
        missing = set(range(len(self.source.class_names))) - set(self.source.labels)
        return [self.source.class_names[label] for label in sorted(missing)]


def examine(source: Source, progress: Callable[[int, int], None]) -> Findings:
    """Open every picture once."""
    outcomes: list[Seen | str] = []
    with thread_pool() as pool:
        for start in range(0, len(source.pictures), CHUNK):
            outcomes += open_all(pool, source.pictures[start : start + CHUNK], look_at)
            progress(len(outcomes), len(source.pictures))
    pairs = zip(source.pictures, outcomes, strict=True)
    unreadable = [LeftOut(picture.name, outcome) for picture, outcome in pairs if isinstance(outcome, str)]
    return Findings(source, {i: seen for i, seen in enumerate(outcomes) if isinstance(seen, Seen)}, unreadable)


def look_at(image: Image.Image) -> Seen:
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
    return Seen(*image.size, digest, image.info.get("brightest"))


def describe(findings: Findings) -> Iterator[str]:
    """The findings in lines."""
    source = findings.source
    counts = Counter(source.labels)
    per_class = [counts[label] for label in range(len(source.class_names))]
    yield f"{source.name}: {counted(len(source.labels), 'image')}, {counted(len(per_class), 'class')}"
    if len(per_class) == 1:
        yield "1 class is enough for a site of a federation and for feddlp evaluate; feddlp run needs at least 2"
    yield f"images of a class: {spread(per_class)}"
    smallest = sorted(zip(per_class, source.class_names, strict=True))[:FEW]
    yield "fewest: " + ", ".join(f"{name} {count}" for count, name in smallest)
    folded = {name: " ".join(name.casefold().split()) for name in source.class_names}
    for one in (form for form, times in Counter(folded.values()).items() if times > 1):
        names = " and ".join(repr(name) for name in folded if folded[name] == one)
        yield f"warning: {names} may be the same class to a tokenizer; `feddlp run` compares tokens"
    if findings.seen:
        yield f"width: {spread([seen.width for seen in findings.seen.values()])} pixels"
        yield f"height: {spread([seen.height for seen in findings.seen.values()])} pixels"
    if deep := [seen.brightest for seen in findings.seen.values() if seen.brightest is not None]:
        yield f"grey images of more than 8 bits: {len(deep)}, brightest value {max(deep):,} (scaled by declared depth)"
    if source.clients:
        sizes = Counter(source.clients)
        yield f"clients: {len(sizes)}, images of a client: {spread(list(sizes.values()))}"
    if source.parts:
        yield "official splits: " + ", ".join(f"{part} {count:,}" for part, count in Counter(source.parts).items())
    yield from describe_files(findings)


def spread(values: Sequence[int]) -> str:
    return f"{min(values):,} to {max(values):,}, median {median(values):,.0f}"


def describe_files(findings: Findings) -> Iterator[str]:
    """What is the matter with which files."""
    source, groups = findings.source, findings.duplicates()
    if empty := findings.empty_classes():
        yield f"without an image: {counted(len(empty), 'class')} ({', '.join(empty)})"
    across = ""
    for what, of in (("classes", source.labels), ("official splits", source.parts)) if groups else ():
        across += f", {sum(len({of[index] for index in group}) > 1 for group in groups)} across {what}" if of else ""
    yield f"duplicates: {counted(sum(map(len, groups)) - len(groups), 'image')}{across}"
    for group in groups[:FEW]:
        yield "  " + " = ".join(source.pictures[index].name for index in group)
    if source.ignored:
        yield f"not images: {counted(len(source.ignored), 'file')} ignored"
        yield from (f"  {file.name} ({file.reason})" for file in source.ignored[:FEW])
    yield f"unreadable: {len(findings.unreadable)}"
    yield from (f"  {file.name} ({file.reason})" for file in findings.unreadable)
