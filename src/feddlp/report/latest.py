"""What is known of every client after a method's last round: a round's records tell of who took part in it only."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Key = tuple[str, int]  # method, seed


def last_clients(path: Path, rows: Mapping[Key, Sequence[Row]]) -> dict[Key, tuple[Row, ...]]:
    """The last row of every client in clients.csv up to each method's last round, in the order of the clients."""
    found: dict[Key, dict[int, Row]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key, client = (row["method"], integer(row.get("seed"))), integer(row.get("client"))
                if key in rows and client >= 0 and 0 <= integer(row.get("round")) <= rows[key][-1]["round"]:
                    found.setdefault(key, {})[client] = row
    return {key: tuple(clients[client] for client in sorted(clients)) for key, clients in found.items()}


def last_ranks(
    lines: Iterable[Row], rows: Mapping[Key, Sequence[Row]], clients: Mapping[Key, Sequence[Row]]
) -> dict[Key, Row]:
    """Active ranks of all clients after each method's last round: of each as last told, or else as at the start."""
    found: dict[Key, Row] = {}
    for row in lines:
        key = row["method"], row["seed"]
        if key in rows and row["round"] <= rows[key][-1]["round"]:
            everybody = {int(client["client"]) for client in clients.get(key, ())}
            found[key] = carried(found.get(key), row, everybody)
    return found


def carried(before: Row | None, row: Row, everybody: Iterable[int]) -> Row:
    """A line of ranks.jsonl, filled up with what was known before; "clients" says whose the counts are."""
    clients = sorted({*everybody, *row["clients"], *(before["clients"] if before else ())})
    active = {}
    for site, counts in row["active"].items():
        known = dict(zip(before["clients"], before["active"][site], strict=True)) if before else {}
        known |= dict(zip(row["clients"], counts, strict=True))
        active[site] = [known.get(client, row["ranks"][site]) for client in clients]
    return {**row, "clients": clients, "active": active}


def integer(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else -1
