"""Planted faults: one token each, always the same, and found where a test looks at it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import mutants
from mutants import Fault, faults


@pytest.fixture
def source(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training/one.py").write_text("from a import b\n\n\ndef f(x=1):\n    return x + 1 if x < 2 else -x\n")
    (tmp_path / "other.py").write_text("y = 1 + 1\n")
    return tmp_path


def test_each_fault_is_one_token_of_the_core(source):
    text = (source / "training/one.py").read_text()
    found = list(faults(source))
    assert [(fault.line, fault.token) for fault in found] == [(5, "+"), (5, "1"), (5, "<"), (5, "-")]
    assert found[2].planted(text) == text.replace("x < 2", "x <= 2")
    assert str(found[0]) == "training/one.py:5:14 '+' -> '-'"


def test_tests_run_from_near_to_far_and_the_first_that_fails_is_named(monkeypatch, tmp_path):
    for name in ("src/feddlp/training", "tests/training"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src/feddlp/__init__.py").touch()
    (tmp_path / "src/feddlp/training/__init__.py").touch()
    (tmp_path / "src/feddlp/training/one.py").write_text("x = 1 + 1\n")
    (tmp_path / "tests/training/test_one.py").write_text(
        "from feddlp.training import one\n\n\ndef test_x():\n    assert one.x == 2\n"
    )
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    fault = Fault("training/one.py", 1, 6, "+")
    assert [Path(tests[0]).name for tests in mutants.stages(fault)] == ["test_one.py", "training", "tests"]
    assert mutants.found_by(fault) == "FAILED tests/training/test_one.py::test_x"
