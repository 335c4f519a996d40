"""Every file in configs/ is one that the commands accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from feddlp.config import load_config, read_table
from feddlp.sweepfile import check_sweep

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_is_accepted(path):
    table = read_table(path)
    if "seeds" in table:
        sweep = check_sweep(table)
        assert sweep.settings()
    else:
        assert load_config(path).build_methods()


def test_there_are_files_of_both_kinds():
    assert {"seeds" in read_table(path) for path in CONFIGS} == {True, False}
