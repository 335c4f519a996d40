"""How the command line is looked at: what a command ended with, in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def process(*words: str, cwd: Path) -> Ended:
    """The same in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "feddlp", *words], capture_output=True, text=True, cwd=cwd)
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_mistake(ended: Ended, *parts: str) -> None:
    """Exit code 2, and one line that names what is wrong."""
    assert ended.code == 2
    assert ended.err.startswith("feddlp: error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert "Traceback" not in ended.err + ended.out
    for part in parts:
        assert part in ended.err
