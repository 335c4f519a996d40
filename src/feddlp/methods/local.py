"""Local: every client trains a LoRA of its own and nothing travels (the paper's §VI).

Scored on each client's own test set. (The public code scores every local model on client 0's, see docs/protocol.md.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from feddlp.methods.flora import FLoRA


@dataclass(frozen=True, kw_only=True)
class Local(FLoRA):
    """One LoRA per client, never sent."""

    shared: ClassVar[tuple[str, ...]] = ()
