"""What a message says: facts, and adapters as safetensors. Nothing is ever unpickled.

An adapter's bytes are the names, shapes and dtypes of its leaves, then 4 bytes a parameter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
from flwr.app import RecordDict
from safetensors.torch import load, save

from feddlp.federation.flower import envelopes, limits
from feddlp.federation.flower.envelopes import Envelope, RefusedError
from feddlp.model.adapters import Theta

__all__ = ["Parcel", "RefusedError", "from_record", "opened", "sealed", "to_bytes", "to_record"]

PROTOCOL = 1


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
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise RefusedError(f"adapter {name!r} is no safetensors file ({error})") from error
    return theta


def sealed(parcel: Parcel) -> Envelope:
    facts = json.dumps({"protocol": PROTOCOL, **parcel.facts})
    return Envelope(facts, {name: to_bytes(theta) for name, theta in parcel.adapters.items()})


def opened(envelope: Envelope, most_bytes: int | None = None) -> Parcel:
    """The parcel in an envelope.

    Args:
        most_bytes: what all adapters together may take; None = any.

    Raises:
        RefusedError: another protocol, or too many bytes, or some that are no tensors.
    """
    if len(envelope.facts) > limits.FACTS:
        raise RefusedError(f"its facts take {len(envelope.facts):,} characters, {limits.FACTS:,} at most are expected")
    try:
        facts = json.loads(envelope.facts)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"its facts are no JSON ({type(error).__name__})") from error
    if not isinstance(facts, dict) or facts.get("protocol") != PROTOCOL:
        found = facts.get("protocol") if isinstance(facts, dict) else None
        raise RefusedError(f"it speaks protocol {found!r}, not {PROTOCOL}; install the same feddlp")
    total = sum(map(len, envelope.adapters.values()))
    if most_bytes is not None and total > most_bytes:
        raise RefusedError(f"its adapters take {total:,} bytes, {most_bytes:,} at most are expected")
    return Parcel(facts, {name: from_bytes(name, content) for name, content in envelope.adapters.items()})


def to_record(parcel: Parcel) -> RecordDict:
    return envelopes.to_record(sealed(parcel))


def from_record(record: RecordDict, most_bytes: int | None = None) -> Parcel:
    """The parcel in a message; arguments and errors as those of `opened`."""
    return opened(envelopes.from_record(record), most_bytes)
