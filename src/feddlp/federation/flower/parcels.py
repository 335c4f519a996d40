"""What travels: facts as JSON, adapters as safetensors. Nothing is ever unpickled.

RecordDict
    facts      {"json": "..."}
    adapters   one array of bytes for each adapter: names, shapes and dtypes of its leaves, then 4 bytes a parameter
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.torch import load, save

from feddlp.model.adapters import Theta

PROTOCOL = 1
SERIAL = "safetensors"


class RefusedError(ValueError):
    """A message that is not used; the text says why."""


@dataclass(frozen=True)
class Parcel:
    """One message."""

    facts: Mapping[str, Any]
    adapters: Mapping[str, Theta] = field(default_factory=dict)


def to_bytes(theta: Theta) -> bytes:
    """An adapter, its leaves in order of their names, so that equal adapters are equal bytes."""
    content: bytes = save({leaf: theta[leaf].detach().cpu().contiguous() for leaf in sorted(theta)})
    return content


def from_bytes(name: str, content: bytes) -> Theta:
    """Raises RefusedError where the bytes are no tensors."""
    try:
        theta: Theta = load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise RefusedError(f"adapter {name!r} is no safetensors file ({error})") from error
    return theta


def to_record(parcel: Parcel) -> RecordDict:
    arrays = {
        name: Array("uint8", (len(content),), SERIAL, content)
        for name, content in ((name, to_bytes(theta)) for name, theta in parcel.adapters.items())
    }
    facts = ConfigRecord({"json": json.dumps({"protocol": PROTOCOL, **parcel.facts})})
    return RecordDict({"facts": facts, "adapters": ArrayRecord(arrays)})


def from_record(record: RecordDict, most_bytes: int | None = None) -> Parcel:
    """The parcel in a message.

    Args:
        most_bytes: what all adapters together may take; None = any.

    Raises:
        RefusedError: anything but facts and adapters as `to_record` writes them.
    """
    try:
        facts, records = json.loads(str(record.config_records["facts"]["json"])), record.array_records["adapters"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RefusedError(f"it holds no facts and adapters ({type(error).__name__}: {error})") from error
    if set(record) != {"facts", "adapters"} or not isinstance(facts, dict):
        raise RefusedError(f"it holds {', '.join(sorted(map(str, record)))} in place of facts and adapters")
    if facts.get("protocol") != PROTOCOL:
        raise RefusedError(f"it speaks protocol {facts.get('protocol')!r}, not {PROTOCOL}; install the same feddlp")
    arrays: dict[str, Array] = dict(records.items())
    if strange := [name for name, array in arrays.items() if array.stype != SERIAL]:
        raise RefusedError(f"adapter {strange[0]!r} is not written as {SERIAL}")
    total = sum(len(array.data) for array in arrays.values())
    if most_bytes is not None and total > most_bytes:
        raise RefusedError(f"its adapters take {total:,} bytes, {most_bytes:,} at most are expected")
    return Parcel(facts, {name: from_bytes(name, array.data) for name, array in arrays.items()})
