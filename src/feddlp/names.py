"""Names that come from outside, of classes, clients and files: how they are read, ordered and shown."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from feddlp.errors import UserError

FORMULA = tuple("=+-@＝＋－＠")  # what a spreadsheet computes
NUMBER = re.compile(r"[-+]?\d+\.?\d*(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Control, format, surrogate, private and unassigned characters, and separators of lines and paragraphs."""


def printable(text: object, keep: str = "") -> str:
    r"""Text with escapes such as \x1b and \u202e for all that a terminal or a page would obey or hide.

    Args:
        keep: characters that stay, such as the newline where the text has several lines.
    """
    whole = str(text)
    hidden = {sign for sign in set(whole) - set(keep) if unicodedata.category(sign) in HIDDEN}
    return whole.translate({ord(sign): sign.encode("unicode_escape").decode() for sign in hidden})


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A table for people: text is printable, and none of it is a formula; numbers stay as they are."""

    def cell(value: Any) -> Any:
        text = printable(value) if isinstance(value, str) else ""
        return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text or value

    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return table.getvalue()


def is_text(name: str) -> bool:
    """Whether a record can hold it: names of files may be no UTF-8."""
    return name == name.encode(errors="replace").decode()


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def read_classes(given: str, written: Iterable[str]) -> dict[str, str]:
    """Class names as they are written -> as they stand in prompts: in NFC; a minus at the beginning stays.

    Raises:
        UserError: two become the same.
    """
    names: dict[str, str] = {}  # as in prompts -> as written
    for name in dict.fromkeys(written):
        if (twin := names.setdefault(nfc(re.sub("_|(?<=.)-", " ", name)), name)) != name:
            shown = " and ".join(repr(one) if one.isascii() else f"{one!r} ({one!a})" for one in (twin, name))
            raise UserError(f"data.dataset={given} has classes whose prompts would be alike ({shown}); rename one")
    return {name: shown for shown, name in names.items()}


def in_order(names: Iterable[str]) -> list[str]:
    """Classes by number where all are numbers, else by name; the same in every source and in a federation."""
    found = sorted(names)
    return sorted(found, key=Decimal) if are_numbers(found) else found


def are_numbers(names: Iterable[str]) -> bool:
    return all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names)
