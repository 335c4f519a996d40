"""A message as it travels: facts as JSON, adapters as bytes that nobody has looked into. Needs no torch.

RecordDict
    facts      {"json": "..."}
    adapters   one array of bytes for each adapter
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

SERIAL = "safetensors"


class RefusedError(ValueError):
    """A message that is not used; the text says why."""


@dataclass(frozen=True)
class Envelope:
    """One message, closed."""

    facts: str  # JSON
    adapters: Mapping[str, bytes] = field(default_factory=dict)


def to_record(envelope: Envelope) -> RecordDict:
    arrays = {name: Array("uint8", (len(content),), SERIAL, content) for name, content in envelope.adapters.items()}
    return RecordDict({"facts": ConfigRecord({"json": envelope.facts}), "adapters": ArrayRecord(arrays)})


def from_record(record: RecordDict) -> Envelope:
    """Raises RefusedError for anything but what `to_record` writes."""
    if set(record) != {"facts", "adapters"}:
        raise RefusedError(f"it holds {', '.join(sorted(map(str, record)))} in place of facts and adapters")
    try:
        facts, arrays = record.config_records["facts"]["json"], record.array_records["adapters"]
    except KeyError as error:
        raise RefusedError(f"it holds no facts and adapters (no {error})") from error
    if strange := [name for name, array in arrays.items() if array.stype != SERIAL]:
        raise RefusedError(f"adapter {strange[0]!r} is not written as {SERIAL}")
    return Envelope(str(facts), {str(name): array.data for name, array in arrays.items()})
