"""A Flower grid in this process, on which time passes when somebody sleeps, and that can be listened to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

from feddlp.config import Config, validate
from feddlp.federation.flower import remote, serving
from feddlp.federation.flower.inquiry import Inquiry, gather
from feddlp.federation.flower.node import answer
from feddlp.federation.flower.nodes import Nodes
from feddlp.federation.flower.parcels import Parcel, from_record, to_record
from feddlp.records import RunFolder

DATA = {"partition": "few_shot_iid", "shots": 3, "clients": 3, "validation_share": 0.3}
TRAINING = {"rounds": 3, "batch_size": 8}
NEVER = float("inf")
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # whose messages these are
Says = Callable[[Parcel], "Parcel | RecordDict | Error | Exception"]


def small(**sections: Any) -> Config:
    """Three clients with a few digits each; sections as in the configuration file."""
    data, training = {**DATA, **sections.pop("data", {})}, {**TRAINING, **sections.pop("training", {})}
    return validate({"methods": ["feddlp"], **sections, "data": data, "training": training})


class Time:
    """A clock that goes on when somebody sleeps, and at a thousandth of a second a look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


class Killed(BaseException):
    """The process is no more."""


class Listener:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def __getattr__(self, event: str) -> Callable[..., None]:
        return lambda *said: self.told.append((event, said))


@dataclass
class FakeNode:
    """A SuperNode.

    `script` holds what comes of the next orders, other than hellos, in place of an answer: a function of the parcel,
    an `Error`, an exception of unpacking, or NEVER.
    """

    says: Says
    delay: float = 1.0  # seconds until an answer is there
    script: list[Any] = field(default_factory=list)
    heard: list[Parcel] = field(default_factory=list)

    def reply(self, parcel: Parcel) -> Any:
        self.heard.append(parcel)
        if parcel.facts["kind"] != "hello" and self.script:
            scripted = self.script.pop(0)
            return scripted(parcel) if callable(scripted) else scripted
        return self.says(parcel)

    @property
    def orders(self) -> list[Parcel]:
        return [parcel for parcel in self.heard if parcel.facts["kind"] != "hello"]


def real(**node_config: Any) -> FakeNode:
    """A node that answers as the app does."""
    config = {key.replace("_", "-"): str(value) for key, value in node_config.items()}
    return FakeNode(lambda parcel: answer(parcel, config, {}))


@dataclass
class FakeGrid:
    """Nodes by id. `dies_at`: the number of the call at which the server's process is killed, before or after it."""

    time: Time
    nodes: dict[int, FakeNode] = field(default_factory=dict)
    dies_at: int = 0
    dies_after: bool = False
    calls: int = 0
    down: list[bytes] = field(default_factory=list)  # every message to a node
    up: list[bytes] = field(default_factory=list)  # every answer
    waiting: dict[str, tuple[float, Message]] = field(default_factory=dict)
    ids: Any = field(default_factory=count)

    def _call(self, after: bool) -> None:
        self.calls += not after
        if self.calls == self.dies_at and after == self.dies_after:
            raise Killed

    def get_node_ids(self) -> Iterable[int]:
        self._call(False)
        found = list(self.nodes)
        self._call(True)
        return found

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._call(False)
        found = [self._push(message) for message in messages]
        self._call(True)
        return found

    def pull_messages(self, ids: list[str]) -> list[Message]:
        self._call(False)
        ready = [id for id in ids if id in self.waiting and self.waiting[id][0] <= self.time.now]
        damaged = [self.waiting[id][1] for id in ready if isinstance(self.waiting[id][1], Exception)]
        if damaged and len(ids) > 1:
            raise damaged[0]
        found = [self.waiting.pop(id)[1] for id in ready]
        if damaged:
            raise damaged[0]
        self._call(True)
        return found

    def _push(self, message: Message) -> str:
        id = f"message-{next(self.ids)}"
        message.metadata.__dict__["_message_id"] = id
        node = self.nodes.get(message.metadata.dst_node_id)
        said = node.reply(from_record(self._sent(message.content, self.down))) if node else Error(5, "gone")
        if said is not NEVER:
            due = self.time.now + (node.delay if node else 60.0)
            self.waiting[id] = due, self._answer(message, said)
        return id

    def _answer(self, message: Message, said: Any) -> Any:
        if isinstance(said, Parcel):
            said = to_record(said)
        if isinstance(said, RecordDict):
            said = self._sent(said, self.up)
        return said if isinstance(said, Exception) else Message(said, reply_to=message)

    def _sent(self, record: RecordDict, wire: list[bytes]) -> RecordDict:
        """As it arrives."""
        wire.append(recorddict_to_proto(record).SerializeToString())
        return recorddict_from_proto(ProtoRecordDict.FromString(wire[-1]))

    def leaves(self, node: int) -> FakeNode:
        """A SuperNode is gone: what it was asked comes back as Flower's error 5, a minute later."""
        for id, (_, message) in list(self.waiting.items()):
            if isinstance(message, Message) and message.metadata.src_node_id == node:
                del self.waiting[id]
        return self.nodes.pop(node)


@contextmanager
def passing(time: Time) -> Iterator[None]:
    """The server's waiting takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "Nodes", partial(Nodes, clock=time.clock))
        patch.setattr(serving, "gather", partial(gather, sleep=time.sleep))
        patch.setattr(remote, "Inquiry", partial(Inquiry, sleep=time.sleep))
        yield


def served(grid: FakeGrid, config: Config | Path, reporter: Listener | None = None, back: str = "") -> RunFolder:
    """Play a run over a grid: a new one, or the one in a folder to its end, from an earlier round where `back` is."""
    asked = (
        {"run": str(config), "from-round": back} if isinstance(config, Path) else {"configuration": config.to_toml()}
    )
    with passing(grid.time):
        return serving.serve(grid, {**asked, "from-round": back}, reporter or Listener())
