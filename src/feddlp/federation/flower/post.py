"""Messages to nodes and what comes back, over Flower's grid.

Replies come in any order, or as one of Flower's errors, or never; every one is told apart by the message it answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from feddlp.federation.flower.parcels import Parcel, to_record

UNAVAILABLE, CRASHED = 5, 8  # flwr.common.constant.ErrorCode
GARBAGE = -1  # ours
WHY = {
    1: "its app cannot be loaded (is feddlp[flower] installed there?)",
    2: "its app failed",
    3: "the message got lost",
    4: "its reply got lost",
    UNAVAILABLE: "its node went away",
    7: "the app did not arrive whole",
    CRASHED: "its process died",
    GARBAGE: "its reply cannot be unpacked",
}
AGAIN = (3, 4, CRASHED)  # after these it is worth asking again


@dataclass(frozen=True)
class Letter:
    """One message on its way."""

    id: str
    node: int
    kind: str  # "hello", "start" or "train"
    clients: tuple[int, ...]
    subject: str  # of which question, in words


@dataclass(frozen=True)
class Lost:
    """Flower's error in place of a reply."""

    code: int
    reason: str

    @property
    def again(self) -> bool:
        return self.code in AGAIN

    def __str__(self) -> str:
        return WHY.get(self.code, f"error {self.code}") + (f": {self.reason}" if self.code in (0, 2, GARBAGE) else "")


Reply = tuple[Letter, RecordDict | Lost]


class Post:
    """All messages of one run.

    Args:
        lifetime: seconds after which Flower gives a message up.
    """

    def __init__(self, grid: Grid, lifetime: float):
        self.grid, self.lifetime = grid, lifetime
        self.pending: dict[str, Letter] = {}

    def nodes(self) -> set[int]:
        """The nodes that are there."""
        return set(self.grid.get_node_ids())

    def send(self, node: int, parcel: Parcel, clients: Iterable[int], subject: str) -> Letter | None:
        """A message on its way; None where Flower does not take it."""
        kind = str(parcel.facts["kind"])
        to = MessageType.TRAIN if kind == "train" else MessageType.QUERY
        message = Message(to_record(parcel), node, to, ttl=self.lifetime)
        (found, *_) = (*self.grid.push_messages([message]), None)
        if not found:
            return None
        letter = Letter(found, node, kind, tuple(clients), subject)
        self.pending[found] = letter
        return letter

    def forget(self, letter: Letter) -> None:
        """Nobody waits for its reply any more."""
        self.pending.pop(letter.id, None)

    def collect(self) -> Iterator[Reply]:
        """What has come since."""
        for found in self._pull(list(self.pending)):
            if letter := self.pending.pop(found[0], None):
                yield letter, found[1]

    def _pull(self, ids: list[str]) -> Iterator[tuple[str, RecordDict | Lost]]:
        """Replies, by the message they answer; one that cannot be unpacked holds up neither us nor the others."""
        try:
            for message in self.grid.pull_messages(ids) if ids else ():
                lost = message.has_error()
                reply = Lost(message.error.code, str(message.error.reason)) if lost else message.content
                yield message.metadata.reply_to_message_id, reply
        except httpx.HTTPError:  # the SuperLink, not a reply
            raise
        except Exception as error:
            if len(ids) == 1:
                yield ids[0], Lost(GARBAGE, f"{type(error).__name__}: {error}")
            else:
                for one in ids:
                    yield from self._pull([one])
