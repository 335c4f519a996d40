"""What is known of every client at the end, from rows that tell of some of them."""

from __future__ import annotations

import csv
import json

from records_factory import client_row, make_run

from feddlp.record_types import CLIENT_COLUMNS
from feddlp.report.latest import carried
from feddlp.report.series import read_run
from tampering import commit


def rewritten(folder, told):
    """The clients' tables of a run in which only some took part: round -> client ids."""
    with folder.clients.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CLIENT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, clients in told.items():
            writer.writerows(client_row("feddlp", 0, number, client) for client in clients)
    rows = [
        {
            "method": "feddlp", "seed": 0, "round": number, "clients": clients, "ranks": {"a": 4, "b": 4},
            "active": {site: [number % 4 for _ in clients] for site in ("a", "b")},
        }
        for number, clients in told.items() if number
    ]  # fmt: skip
    folder.ranks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return commit(folder)


def test_the_last_row_of_every_client_counts_and_who_never_took_part_is_as_at_the_start(tmp_path):
    folder = make_run(tmp_path, methods=("feddlp",), rounds=3, clients=4)
    run = read_run(rewritten(folder, {0: [0, 3, 5, 7], 1: [3, 5], 2: [5], 3: [0]}))
    rows = run.clients["feddlp", 0]
    assert [(row["client"], row["round"]) for row in rows] == [("0", "3"), ("3", "1"), ("5", "2"), ("7", "0")]
    assert run.ranks["feddlp", 0]["active"] == {"a": [3, 1, 2, 4], "b": [3, 1, 2, 4]}


def test_rows_of_a_round_that_was_not_finished_do_not_count(tmp_path):
    folder = make_run(tmp_path, methods=("feddlp",), rounds=2, clients=2)
    run = read_run(rewritten(folder, {0: [0, 1], 1: [0], 2: [1], 3: [0, 1]}))
    assert [row["round"] for row in run.clients["feddlp", 0]] == ["1", "2"]
    assert run.ranks["feddlp", 0]["active"]["a"] == [1, 2]


def test_counts_stay_with_their_clients_whoever_is_absent_and_in_whatever_order():
    """A row's "clients" says whose the counts are, after any lines that told of any of them."""
    before = carried(None, {"clients": [7, 2], "active": {"a": [70, 20]}, "ranks": {"a": 99}}, [])
    after = carried(before, {"clients": [5, 2], "active": {"a": [50, 21]}, "ranks": {"a": 99}}, [9])
    assert dict(zip(after["clients"], after["active"]["a"], strict=True)) == {2: 21, 5: 50, 7: 70, 9: 99}
