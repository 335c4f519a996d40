"""A method of one's own is one file, and what the examples show works."""

from __future__ import annotations

from pathlib import Path

from feddlp.records import RunFolder
from terminal import forked, process, script

ROOT = Path(__file__).parents[1]


def test_a_method_in_a_folder_of_ones_own_is_a_method_like_any_other(tmp_path):
    words = ["run", "methods=fedper,flora", "name=own", "model.adapt=text", "data.partition=iid", "data.clients=2"]
    words += ["training.rounds=1", "method.fedper.shared_layers=1"]
    done = process(*words, cwd=tmp_path, FEDDLP_METHODS=str(ROOT / "examples" / "methods"))
    assert done.code == 0, done.err
    fedper, flora = RunFolder.open(tmp_path / "runs" / "own").read_rounds()
    assert fedper["parameters"] == flora["parameters"]
    assert 0 < fedper["bytes_up"] < flora["bytes_up"] / 2  # one layer of three travels, and no projection
    assert 4 * fedper["parameters_sent"] == fedper["bytes_up"]
    assert "shared_layers = 1" in (tmp_path / "runs/own/config.toml").read_text()


def test_the_python_example_runs_from_its_first_cell_to_its_last(tmp_path):
    words = ["training.rounds=1", "data.clients=2", "data.partition=few_shot_iid", "data.shots=4", "model.device=cpu"]
    done = forked(*words, cwd=tmp_path, do=script(ROOT / "examples" / "from_python.py"))
    assert done.code == 0, done.err
    assert "same class: " in done.out
    assert "adapter_model.safetensors" in done.out
    assert (tmp_path / "runs" / "from-python" / "client-0" / "README.md").is_file()
