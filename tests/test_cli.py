"""The command line: one line for a mistake, and nothing left behind by it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from feddlp import __version__, experiment, materials
from feddlp.data.datasets import SOURCES
from feddlp.hyperparameters import variants
from feddlp.methods import registry
from feddlp.model.hub import EMBEDDED
from terminal import assert_mistake, forked, process

SMALL = ["methods=zero_shot", "training.rounds=1", "name=small"]


def assert_untouched(folder: Path, *expected: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A copy of the embedded model, to be spoilt."""
    return Path(shutil.copytree(EMBEDDED["tiny-clip"], tmp_path / "clip"))


# Mistakes


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "sed=1"], "did you mean seed?"),
        (["run", "training.rounds=none"], "training.rounds=none"),
        (["run", "methods=fedlp"], "did you mean feddlp"),
        (["run", "nowhere.toml"], "cannot read the configuration nowhere.toml"),
        (["run", "a.toml", "b.toml"], "'b.toml' is a second configuration file"),
        (["run", "data.dataset=digts"], "did you mean digits"),
        (["run", "data.dataset=folder:/nowhere"], "cannot read the folder /nowhere"),
        (["run", "data.clients=5000"], "data.clients=5000"),
        (["run", "data.template=photo"], "data.template='photo'"),
        (["run", "methods=zero_shot", "data.template={} " + "word " * 300], "has 303 tokens, the model reads 77"),
        (["run", "model.device=gpu"], "model.device=gpu"),
        (["run", "model.device=cuda:99"], "model.device=cuda:99"),
        (["run", "methods=zero_shot", "model.device=meta"], "model.device=meta"),
        (["run", "model.checkpoint=/no/such/model"], "model.checkpoint=/no/such/model cannot be loaded"),
        (["run", "name=two\nlines"], "name=two"),
        (["show", "runs/none"], "runs/none is not a run folder"),
        (["resume", "runs/none"], "runs/none is not a run folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(feddlp, tmp_path, words, part):
    assert_mistake(feddlp(*words), part)
    assert_untouched(tmp_path)


@pytest.mark.parametrize(("word", "part"), [("metods", "'methods'?"), ("reprot", "'report', ")])
def test_a_mistyped_command_gets_one_suggestion(feddlp, word, part):
    ended = feddlp(word)
    assert_mistake(ended, f"No such command '{word}'", f"Did you mean {part}")
    assert ended.err.count("Did you mean") == 1


@pytest.mark.parametrize("command", ["show", "resume"])
def test_the_help_describes_arguments(feddlp, command):
    assert "A run folder, such as runs/demo." in feddlp(command, "--help").out


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe\x00", b"{'a': 1}"])
def test_a_file_that_is_not_toml_is_named(feddlp, tmp_path, content):
    (tmp_path / "my.toml").write_bytes(content)
    assert_mistake(feddlp("run", "my.toml"), "my.toml is not valid TOML")
    assert_untouched(tmp_path, "my.toml")


def test_a_run_folder_cannot_be_made_in_a_file(feddlp, tmp_path):
    (tmp_path / "taken").write_text("")
    assert_mistake(feddlp("run", *SMALL, "runs_dir=taken"), "runs_dir=taken: cannot make a run folder there")
    assert_untouched(tmp_path, "taken")


def test_damaged_weights_are_a_mistake(feddlp, tmp_path, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert_mistake(feddlp("run", "model.checkpoint=clip"), "/clip cannot be loaded")
    assert_untouched(tmp_path, "clip")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_missing_file_of_a_checkpoint_is_a_mistake(feddlp, tmp_path, checkpoint, file):
    (checkpoint / file).unlink()
    assert_mistake(feddlp("run", "model.checkpoint=clip"), "/clip cannot be loaded")
    assert_untouched(tmp_path, "clip")


@pytest.mark.parametrize("kind", ["bert", "clip_text_model"])
def test_a_model_that_is_no_clip_is_a_mistake(feddlp, tmp_path, checkpoint, kind):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": kind}))
    assert_mistake(feddlp("run", "model.checkpoint=clip"), kind, "a CLIP or SigLIP checkpoint with both towers")
    assert_untouched(tmp_path, "clip")


def test_a_damaged_model_configuration_is_a_mistake(feddlp, tmp_path, checkpoint):
    (checkpoint / "config.json").write_text("{")
    assert_mistake(feddlp("run", "model.checkpoint=clip"), "/clip cannot be loaded")
    assert_untouched(tmp_path, "clip")


def test_a_damaged_image_is_a_mistake(feddlp, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(9):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(b"no image")
    ended = feddlp("run", "data.dataset=folder:photos", "data.clients=2", "data.partition=iid")
    assert_mistake(ended, "images cannot be read", "photos/cat/0.png")
    assert_untouched(tmp_path, "photos")


def test_a_real_process_says_it_in_one_line_and_exits_with_2(tmp_path):
    ended = process("run", "training.round=5", cwd=tmp_path)
    assert_mistake(ended, "did you mean rounds?")
    assert ended.out == ""
    assert_untouched(tmp_path)


def test_debug_shows_the_traceback(tmp_path):
    ended = forked("show", "runs/none", "--debug", cwd=tmp_path)
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "UserError: runs/none is not a run folder" in ended.err


# Other ends


def test_an_internal_error_is_one_line_and_exit_1(feddlp, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("two\n  lines")

    monkeypatch.setattr(materials, "prepare", fails)
    ended = feddlp("run")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "feddlp: error: RuntimeError: two lines (use --debug for the traceback)\n"
    assert_untouched(tmp_path)
    with pytest.raises(RuntimeError):
        feddlp("run", "--debug")


def test_an_error_without_words_is_still_named(feddlp, monkeypatch):
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(materials, "prepare", fails)
    assert feddlp("run").err == "feddlp: error: MemoryError: no message (use --debug for the traceback)\n"


def test_a_stop_says_how_to_go_on(feddlp, monkeypatch):
    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment, "play", stopped)
    ended = feddlp("run", *SMALL)
    assert ended.code == 130
    assert ended.err == "feddlp: stopped; go on with: feddlp resume runs/small\n"


def test_a_stop_before_the_first_round_says_so(feddlp, tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(materials, "prepare", stopped)
    ended = feddlp("run")
    assert (ended.code, ended.err) == (130, "feddlp: stopped; no run was begun yet; prepared images are kept\n")
    assert_untouched(tmp_path)


# What works


def test_a_run_is_recorded_shown_and_resumed(feddlp, tmp_path):
    ran = feddlp("run", *SMALL)
    assert (ran.code, ran.err) == (0, "")
    assert "run folder: runs/small" in ran.out
    shown = feddlp("show", "runs/small")
    assert (shown.code, shown.err) == (0, "")
    assert "zero_shot" in shown.out
    assert shown.out in ran.out
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    resumed = feddlp("resume", "runs/small")
    assert resumed.code == 0
    assert "already finished" in resumed.out
    assert before == {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}


def test_a_file_and_overrides_come_in_any_order(feddlp, tmp_path):
    (tmp_path / "my.toml").write_text("name = 'mine'\nmethods = 'zero_shot'\n")
    assert feddlp("run", "seed=3", "my.toml", "name=yours").code == 0
    assert "seed = 3" in (tmp_path / "runs" / "yours" / "config.toml").read_text()


def test_a_run_without_a_finished_round_says_how_to_start_it(feddlp, tmp_path):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "config.toml").write_text("")
    assert_mistake(feddlp("show", "runs/new"), "no finished round yet", "feddlp resume runs/new")


def test_a_run_whose_newcomers_have_not_joined_is_unfinished_until_it_is_resumed(feddlp, tmp_path):
    assert "Unfinished" not in feddlp("run", *SMALL, "data.newcomers=2").out
    (tmp_path / "runs" / "small" / "newcomers.jsonl").unlink()
    shown = feddlp("show", "runs/small").out
    assert "Unfinished (newcomers have yet to join zero_shot)." in shown
    assert "Go on with: feddlp resume runs/small" in shown
    assert "Unfinished" not in feddlp("resume", "runs/small").out


def test_methods_and_data_sets_are_listed_one_a_line(feddlp):
    for command, names in (("methods", [*registry(), *variants()]), ("datasets", SOURCES)):
        ended = feddlp(command)
        lines = ended.out.splitlines()
        assert ended.code == 0
        assert [line.split()[0] for line in lines] == list(names)
        assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize(
    "command", ["run", "resume", "show", "methods", "datasets", "bench", "export", "predict", "evaluate"]
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example(feddlp, command, flag):
    ended = feddlp(command, flag)
    assert (ended.code, ended.err) == (0, "")
    assert any(line.strip().startswith(f"feddlp {command}") for line in ended.out.splitlines())


def test_the_general_help_names_every_command(feddlp):
    ended = feddlp("--help")
    assert ended.code == 0
    for command in (
        "run",
        "resume",
        "sweep",
        "reproduce",
        "report",
        "show",
        "methods",
        "datasets",
        "data",
        "bench",
        "export",
        "predict",
        "evaluate",
    ):
        assert any(line.split()[:1] == [command] for line in ended.out.splitlines())
    assert "feddlp run" in ended.out


def test_the_version(tmp_path, feddlp):
    assert feddlp("--version") == (0, f"feddlp {__version__}\n", "")
    assert process("--version", cwd=tmp_path) == (0, f"feddlp {__version__}\n", "")


@pytest.mark.parametrize("words", [["bogus"], ["run", "--bogus"], ["show"]])
def test_a_wrong_command_or_option_exits_with_2(feddlp, words):
    ended = feddlp(*words)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "Error: " in ended.err or "error: " in ended.err
