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


def printable(text: object, keep: str = "") -> str:
    r"""Text with escapes such as \x1b and \u202e for all that a terminal or a page would obey or hide.

    Args:
        keep: characters that stay, such as the newline where the text has several lines.
    """
    whole = str(text)
    hidden = [sign for sign in set(whole) - set(keep) if is_hidden(unicodedata.category(sign))]
    return whole.translate({ord(sign): sign.encode("unicode_escape").decode() for sign in hidden})


def is_hidden(category: str) -> bool:
    """Control, format, surrogate, private and unassigned characters, and separators of lines and paragraphs."""
    return category[0] == "C" or category in ("Zl", "Zp")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A table for people: text is printable, and none of it is a formula; numbers stay as they are."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return table.getvalue()


def csv_cell(value: Any) -> Any:
    text = printable(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def check_text(given: str, what: str, names: Iterable[str]) -> None:
    """Refuse names that no record can hold.

    Raises:
        UserError: one that is not UTF-8.
    """
    if garbled := [name for name in names if name != name.encode(errors="replace").decode()]:
        raise UserError(f"data.dataset={given} has the {what} name {garbled[0]!r}, which is not UTF-8; rename it")


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def read_classes(given: str, written: Iterable[str]) -> dict[str, str]:
    """Class names as they are written -> as they stand in prompts: in NFC; a minus at the beginning stays.

    Raises:
        UserError: two become the same, or one is not UTF-8.
    """
    names: dict[str, str] = {}  # as in prompts -> as written
    for name in dict.fromkeys(written):
        check_text(given, "class", [name])
        twin = names.setdefault(nfc(re.sub("_|(?<=.)-", " ", name)), name)
        if twin != name:
            shown = " and ".join(f"{one!r}{'' if one.isascii() else f' ({one!a})'}" for one in (twin, name))
            raise UserError(f"data.dataset={given} has classes whose prompts would be alike ({shown}); rename one")
    return {name: shown for shown, name in names.items()}


def in_order(names: Iterable[str]) -> list[str]:
    """Classes by number where all are numbers, else by name; the same in every source and in a federation."""
    found = sorted(names)
    return sorted(found, key=Decimal) if are_numbers(found) else found


def are_numbers(names: Iterable[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)
