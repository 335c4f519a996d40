"""The client store: what clients keep between rounds, in memory or in files, a block for each wave.

    put     the clients of a wave, as they are after it, become a block; their older states are forgotten
    parts   some clients, out of whichever blocks hold them

A block is a few matrices with a row for each client, so that a client is a handful of contiguous pieces wherever it
lies. A client that never took part has no entry and costs nothing. A block in which nobody's latest state is left is
dropped; where fewer than half are left, they move into a block of their own, so that no more than twice what clients
need is ever kept.

On the disk a block is a safetensors file, written once and never changed, and read through a memory map: a client of
ten thousand is read without touching the others. Its checksum is compared when the file is first read.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from feddlp import tensors
from feddlp.errors import UserError
from feddlp.states import RESTORE, ClientsPiece

State = Mapping[str, Tensor]
"""As `Cohort.state_dict` gives it: "adapter/kind/leaf" -> [W, ...]."""


@dataclass(frozen=True)
class Packed:
    """The state of W clients, the leaves of a kind side by side."""

    layout: dict[str, dict[str, tuple[int, ...]]]  # "adapter/kind" -> leaf -> shape for one client
    matrices: dict[str, Tensor]  # "adapter/kind" -> [W, P]

    def rows(self, places: Sequence[int]) -> Packed:
        """Some of the clients."""
        index = torch.tensor(places)
        return Packed(self.layout, {name: matrix[index] for name, matrix in self.matrices.items()})


def pack(state: State) -> Packed:
    """A copy in main memory."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        adapter, kind, *leaf = name.split("/", 2)
        groups.setdefault(f"{adapter}/{kind}", {})["".join(leaf)] = value
    layout = {group: {leaf: tuple(v.shape[1:]) for leaf, v in leaves.items()} for group, leaves in groups.items()}
    matrices = {
        group: torch.cat([v.reshape(len(v), v.shape[1:].numel()) for v in leaves.values()], dim=1).cpu()
        for group, leaves in groups.items()
    }
    return Packed(layout, matrices)


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The leaves, as views."""
    state = {}
    for group, leaves in packed.layout.items():
        matrix = packed.matrices[group]
        parts = torch.split(matrix, [math.prod(shape) for shape in leaves.values()], dim=1)
        for (leaf, shape), part in zip(leaves.items(), parts, strict=True):
            state[f"{group}/{leaf}" if leaf else group] = part.view(len(matrix), *shape)
    return state


Part = tuple[Sequence[int], Packed]
"""Some clients, and the places on the client axis where they are to stand."""


def gather(parts: Sequence[Part]) -> dict[str, Tensor]:
    """The state of all clients of all parts; a view where there is one part, in order.

    Clients with fewer ranks than others get ranks that are 0 in every leaf: they have neither effect nor gradient
    (see `model.gates`).
    """
    if len(parts) == 1 and list(parts[0][0]) == list(range(len(parts[0][0]))):
        return unpack(parts[0][1])
    if all(packed.layout == parts[0][1].layout for _, packed in parts):
        merged = merge([(places, packed.matrices) for places, packed in parts])
        return unpack(Packed(parts[0][1].layout, merged))
    return merge([(places, unpack(packed)) for places, packed in parts])


def merge(parts: Sequence[tuple[Sequence[int], State]]) -> dict[str, Tensor]:
    """Put the rows of the parts in their places, with zeros where one is narrower than another."""
    merged, count = {}, sum(len(places) for places, _ in parts)
    for name, first in parts[0][1].items():
        shapes = [state[name].shape[1:] for _, state in parts]
        whole = first.new_zeros(count, *map(max, *shapes, shapes[0]))
        for places, state in parts:
            corner = whole[(slice(None), *map(slice, state[name].shape[1:]))]
            corner[torch.tensor(places)] = state[name]
        merged[name] = whole
    return merged


@dataclass
class Block:
    """The clients of one wave."""

    name: str
    rows: tuple[int, ...]
    packed: Packed | None  # None: in its file only
    file: ClientsPiece | None = None  # None: there is none yet
    checked: bool = False

    def pick(self, places: Sequence[int], folder: Path | None) -> Packed:
        """The clients in these places of the block."""
        if self.packed is None:
            assert folder is not None
            return self._read(folder, places)
        return self.packed if list(places) == list(range(len(self.rows))) else self.packed.rows(places)

    def write(self, folder: Path) -> ClientsPiece:
        """The file, flushed; that its name survives a power cut is up to the commit."""
        if self.file is None:
            assert self.packed is not None
            piece = tensors.write(folder / self.name, self.packed.matrices, {"layout": json.dumps(self.packed.layout)})
            self.file = ClientsPiece(**dict(piece), rows=self.rows)
        return self.file

    def _read(self, folder: Path, places: Sequence[int]) -> Packed:
        assert self.file is not None
        if not self.checked:
            self.file.read(folder)
            self.checked = True
        try:
            return read_rows(folder / self.name, places)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{folder / self.name} cannot be read ({error}); {RESTORE}") from error


def read_rows(path: Path, places: Sequence[int]) -> Packed:
    """Some rows of a block's matrices, through a memory map."""
    with safetensors.safe_open(path, "pt") as file:
        found = json.loads(file.metadata()["layout"])
        layout = {group: {leaf: tuple(shape) for leaf, shape in leaves.items()} for group, leaves in found.items()}
        matrices = {}
        for group in layout:
            rows = file.get_slice(group)
            matrices[group] = torch.cat([rows[place : place + 1] for place in places])
    return Packed(layout, matrices)


class ClientStore:
    """The clients of one lane.

    Args:
        folder: where blocks are written; None keeps them in memory, and `flush` writes nothing.
        on_disk: blocks lie in their files alone, written as soon as they are put; otherwise in memory, and in files
            from `flush` on.
    """

    def __init__(self, folder: Path | None = None, on_disk: bool = False):
        self.folder, self.on_disk = folder, on_disk
        self.blocks: dict[str, Block] = {}
        self.where: dict[int, tuple[Block, int]] = {}  # client row -> block and place in it
        self.living: Counter[str] = Counter()  # clients of each block whose latest state it holds

    def put(self, name: str, rows: Sequence[int], state: State) -> None:
        """The clients `rows` are in this state from now on; `name` is the block's and its file's."""
        if not state:
            return
        self._settle(Block(name, tuple(rows), pack(state)))
        for sparse in [block for block in self.blocks.values() if 2 * self.living[block.name] < len(block.rows)]:
            places = [place for place, row in enumerate(sparse.rows) if self.where[row][0] is sparse]
            left = tuple(sparse.rows[place] for place in places)
            self._settle(Block(f"left-{sparse.name}", left, sparse.pick(places, self.folder)))

    def _settle(self, block: Block) -> None:
        """A new block goes to where blocks are kept."""
        if self.on_disk and self.folder:
            block.write(self.folder)
            block.packed = None
        self._add(block)

    def _add(self, block: Block) -> None:
        self.blocks[block.name] = block
        for place, row in enumerate(block.rows):
            if row in self.where:
                self._leave(self.where[row][0].name)
            self.where[row] = block, place
        self.living[block.name] = len(block.rows)

    def _leave(self, name: str) -> None:
        self.living[name] -= 1
        if not self.living[name]:
            del self.living[name], self.blocks[name]

    def parts(self, rows: Mapping[int, int]) -> list[Part]:
        """The states of some clients, block by block. rows: client row -> place on the client axis"""
        found: dict[str, list[tuple[int, int]]] = {}
        for row, place in rows.items():
            block, inside = self.where[row]
            found.setdefault(block.name, []).append((place, inside))
        return [
            ([place for place, _ in pairs], self.blocks[name].pick([inside for _, inside in pairs], self.folder))
            for name, pairs in found.items()
        ]

    def flush(self) -> list[ClientsPiece]:
        """Have every block in its file, and list them for `load`, oldest first."""
        return [block.write(self.folder) for block in self.blocks.values()] if self.folder else []

    def load(self, listed: Sequence[ClientsPiece]) -> None:
        """Go on from the blocks that `flush` listed.

        Raises:
            UserError: a file is missing or damaged; here, or on the disk when it is first read.
        """
        self.blocks, self.where, self.living = {}, {}, Counter()
        for piece in listed:
            block = Block(piece.file, piece.rows, None, piece)
            if not self.on_disk:
                block.packed = block.pick(range(len(block.rows)), self.folder)
            self._add(block)
