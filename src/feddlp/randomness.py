"""Randomness is addressed, not consumed: every draw has a generator of its own, found by its address.

A draw such as "the order of client 3's samples in round 7" comes from (seed, "shuffle", 3, 7). So nothing depends
on how many clients run side by side, on the engine, on the order of events, or on where a run was resumed.
"""

from __future__ import annotations

import hashlib

import torch


def address_seed(seed: int, *address: str | int) -> int:
    """A 63-bit seed for one address; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *address))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *address: str | int) -> torch.Generator:
    """The CPU generator of one address, for example generator(0, "shuffle", client, round, epoch)."""
    return torch.Generator().manual_seed(address_seed(seed, *address))
