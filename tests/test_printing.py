"""What the commands print, whatever the width of the terminal."""

from __future__ import annotations

import re

import pytest

from feddlp.errors import UserError
from feddlp.printing import print_run
from feddlp.progress import Console, make_reporter
from feddlp.record_types import CLIENT_COLUMNS
from feddlp.records import RunFolder
from tampering import commit

ROW = {
    "method": "feddlp", "seed": 0, "round": 100, "train_loss": {"local": 0.1234}, "bytes_down": 2**40 + 1,
    "bytes_up": 2**41, "parameters": {"local": 123_456_789}, "parameters_sent": 98_765_432, "active_ranks": 1234.5,
    "gates": 2000, "export_bytes": 1000.0, "lanes": 1, "seconds": 12345.67,
    "validation": {"pooled": 87.65},
    "test": {"pooled": 91.23, "client_mean": 90.12, "client_std": 13.57, "client_lowest": 24.68, "client_p10": 80.24},
}  # fmt: skip
NUMBERS = ("91.23", "(r100)", "90.12", "13.57", "24.68", "80.24", "123,456,789", "98,765,432", "1234.5 of 2000")
NUMBERS += ("12345.67", f"{(2**40 + 1 + 2**41) / 2**20:.2f}", "feddlp")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "run", "methods = 'feddlp'\ntraining.rounds = 100\n")
    folder.record_round(ROW, [dict.fromkeys(CLIENT_COLUMNS, "")])
    return commit(folder)


@pytest.mark.parametrize("colours", ["", "1"])  # rich takes what has colours for a terminal
def test_a_table_shows_every_number_whole_at_any_width(run, colours, capsys, monkeypatch):
    if colours:
        monkeypatch.setenv("FORCE_COLOR", colours)
    for columns in (*range(0, 90, 3), 100, 200, 300, "", "x", -1):
        monkeypatch.setenv("COLUMNS", str(columns))
        console = Console()
        assert console.is_terminal == bool(colours)
        print_run(run, console)
        text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
        assert [number for number in NUMBERS if number not in text] == [], columns


def test_a_damaged_configuration_is_named(run):
    run.config.write_text("x = [")
    with pytest.raises(UserError, match=r"config\.toml is not valid TOML"):
        print_run(run, Console())


@pytest.mark.parametrize("colours", ["", "1"])
def test_a_round_is_told_on_one_line_at_any_width(colours, capsys, monkeypatch):
    if colours:
        monkeypatch.setenv("FORCE_COLOR", colours)
    for columns in (0, 1, 7, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with make_reporter(Console()) as reporter:
            reporter.warn("123,456,789 images are left out, which is more than the 98,765,432 that are there")
        assert "123,456,789 images are left out, which is more than the 98,765,432 that" in capsys.readouterr().out
