"""The one exception that is a message to the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OURS = "feddlp: error: "  # what a UserError begins with where it is shown


class UserError(Exception):
    """Something the user can put right; the command line prints it as one line and exits with code 2.

    The text names the option, the value found, and the way out.
    """


def counted(count: int, noun: str) -> str:
    """1, "class" -> 1 class; 2, "class" -> 2 classes"""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A half sentence that helps with a mistyped name: the closest valid ones, or all of them."""
    valid = sorted(valid)
    folded = {entry.lower(): entry for entry in valid}
    if name.lower() in folded:
        return f"did you mean {folded[name.lower()]}?"
    close = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=2, cutoff=0.5)]
    return f"did you mean {' or '.join(close)}?" if close else f"valid: {', '.join(valid)}"
