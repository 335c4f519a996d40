"""feddlp from Python: light to import, and every name where it is said to be."""

from __future__ import annotations

import subprocess
import sys

import pytest

import feddlp
from feddlp.errors import UserError
from feddlp.trained import choose_method


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, feddlp; sys.exit(bool({'torch', 'transformers', 'pydantic', 'rich'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_is_there_and_no_other():
    for name in feddlp.__all__:
        assert getattr(feddlp, name).__doc__
    assert set(feddlp.__all__) <= set(dir(feddlp))
    with pytest.raises(AttributeError, match="has no attribute 'rum'"):
        feddlp.rum  # noqa: B018


def test_a_run_is_found_again(played):
    run = feddlp.load_run(played("image").path)
    assert run.config == played("image").config
    assert list(dict.fromkeys(row["method"] for row in run.rounds)) == list(run.config.methods)
    assert len(run.clients) == 3
    assert run.client(run.clients[0]).backbone is run.client(run.clients[1], "flora").backbone


def test_of_several_methods_feddlp_is_meant_and_without_it_one_must_be_said(played):
    run = played("image")
    assert choose_method(run.config, None) == "feddlp"
    others = run.config.model_copy(update={"methods": ("zero_shot", "flora", "local")})
    with pytest.raises(UserError, match="one of flora, local"):
        choose_method(others, None)
    one = run.config.model_copy(update={"methods": ("zero_shot", "local")})
    assert choose_method(one, None) == "local"


def test_of_a_sweep_the_one_run_that_fits_is_found(played, tmp_path, monkeypatch):
    folders = [played(tower).folder for tower in ("image", "text")]
    monkeypatch.setattr("feddlp.trained.is_sweep", lambda path: True)
    monkeypatch.setattr("feddlp.trained.run_folders", lambda path: folders)
    with pytest.raises(UserError, match="2 runs that fit"):
        feddlp.load_run(tmp_path, seed=0)
    with pytest.raises(UserError, match="holds seed 0"):
        feddlp.load_run(tmp_path, seed=1)
    monkeypatch.setattr("feddlp.trained.run_folders", lambda path: folders[:1] * 3)
    assert feddlp.load_run(tmp_path, seed=0).folder == folders[0]
