"""Methods of one's own: found again by what a run recorded of them, and free in what they send."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest
import torch

from fakegrid import FakeGrid, Listener, Time, real, served, small
from feddlp import api, experiment, methods
from feddlp.config import load_config, validate
from feddlp.errors import UserError
from feddlp.federation.host import Lane
from feddlp.federation.rounds import first_shared
from feddlp.trained import read_client
from terminal import assert_mistake

HEAD = '''"""{name}."""

from dataclasses import dataclass

import torch

from feddlp.methods.flora import FLoRA


@dataclass(frozen=True, kw_only=True)
class Own(FLoRA):
    """{name}."""

'''
FLAT = """
    def send(self, name, theta):
        return {"everything": torch.cat([value.detach().flatten(1) for value in theta.values()], dim=1)}

    def take(self, name, theta, received):
        parts = torch.split(received["everything"], [value[0].numel() for value in theta.values()])
        return {leaf: part.view(theta[leaf][0].shape).expand_as(theta[leaf]) for leaf, part in zip(theta, parts)}
"""  # FLoRA in another form
HALF = """
    def send(self, name, theta):
        return {leaf: value.detach()[:, : value.shape[1] // 2] for leaf, value in theta.items()}

    def take(self, name, theta, received):
        whole = {leaf: value.clone() for leaf, value in theta.items()}
        for leaf, value in received.items():
            whole[leaf][:, : len(value)] = value
        return whole
"""
SUMMED = """
    def send(self, name, theta):
        return {leaf: value.detach().sum(1) for leaf, value in theta.items()}
"""
ALL_TOGETHER = """
    def send(self, name, theta):
        return {leaf: value.detach().sum(0) for leaf, value in theta.items()}
"""
RENAMED = FLAT.replace("return {leaf: part", 'return {leaf + "2": part')


def forget(folder):
    """As a process that was begun without FEDDLP_METHODS."""
    if str(folder) in methods.__path__:
        methods.__path__.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("feddlp.methods.own_")]:
        del sys.modules[name]
    methods.registry.cache_clear()


@pytest.fixture
def own(tmp_path):
    """own(name, body): a method in a folder as FEDDLP_METHODS names one."""
    folder = tmp_path / "mine"
    folder.mkdir()

    def write(name, body):
        (folder / f"{name}.py").write_text(HEAD.format(name=name) + body)
        forget(folder)
        methods.__path__.append(str(folder))
        return folder / f"{name}.py"

    yield write
    forget(folder)


def config(tmp_path, *names, **training):
    places = {"runs_dir": str(tmp_path / "runs"), "model": {"adapt": "text"}}
    training = {"rounds": 2, "diagnostics": False, **training}
    return small(methods=list(names), method={"lr": 3e-3}, training=training, **places)


def rows(run):
    """What counts of every round, by method."""
    kept = ("round", "test", "validation", "train_loss", "parameters_sent", "bytes_down", "bytes_up")
    found: dict = {}
    for row in map(json.loads, run.rounds.read_text().splitlines()):
        found.setdefault(row["method"], []).append({key: row[key] for key in kept})
    return found


# What is sent


def test_another_form_of_the_same_adapter_gives_the_same_run(own, tmp_path):
    own("own_flat", FLAT)
    run = experiment.run(config(tmp_path, "flora", "own_flat"), Listener())
    found = rows(run)
    assert found["own_flat"] == found["flora"]
    shared = [read_client(run, name, 0, "global") for name in ("flora", "own_flat")]
    for leaf, value in shared[0].theta["adapter"].items():
        torch.testing.assert_close(shared[1].theta["adapter"][leaf], value)
    api.load_run(run.path).export(0, tmp_path / "out", "own_flat", "global")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_newcomers_and_clients_that_sat_out_take_it_too(own, tmp_path):
    own("own_flat", FLAT)
    both = config(tmp_path, "flora", "own_flat", participation=0.5)
    both = both.model_copy(update={"data": both.data.model_copy(update={"clients": 4, "newcomers": 1})})
    run = experiment.run(both, Listener())
    assert rows(run)["own_flat"] == rows(run)["flora"]
    first, second = run.read_newcomers().values()
    assert {**first, "method": ""} == {**second, "method": ""}
    absent = next(k for k in api.load_run(run.path).clients if f"own_flat,0,2,{k}," not in run.clients.read_text())
    if f"own_flat,0,1,{absent}," not in run.clients.read_text():
        with pytest.raises(UserError, match="not all of own_flat travels"):
            read_client(run, "own_flat", absent, "global")


def test_over_flower_it_is_the_run_of_one_process(own, tmp_path):
    own("own_half", HALF)
    one = config(tmp_path, "own_half", "flora")
    expected = experiment.run(one, Listener())
    nodes = {n: real(clients=share, state_dir=tmp_path / f"node-{n}") for n, share in ((7, "0-1"), (9, "2"))}
    found = served(FakeGrid(Time(), nodes), one)
    for left, right in zip(rows(found)["own_half"], rows(expected)["own_half"], strict=True):
        assert {**left, "train_loss": 0} == {**right, "train_loss": 0}
    half, whole = (rows(expected)[name][0] for name in ("own_half", "flora"))
    assert half["bytes_up"] == 4 * half["parameters_sent"]
    assert half["parameters_sent"] < whole["parameters_sent"]
    left, right = (run.load_checkpoint("own_half")[1] for run in (found, expected))
    assert left.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (SUMMED, "let take undo send"),
        (FLAT[: FLAT.index("def take")], "cannot be averaged and taken back (KeyError: "),
        (ALL_TOGETHER, "needs one row per client, and "),
        (RENAMED, "which the adapter has not; let take undo send"),
        (HALF.replace("whole[leaf][:, : len(value)] = value", "whole[leaf] = value"), "let take undo send"),
    ],
)
def test_what_cannot_be_taken_back_is_refused_before_the_first_round(own, tmp_path, backbones, body, told):
    own("own_odd", body)
    method = methods.registry()["own_odd"]()
    with pytest.raises(UserError) as refusal:
        first_shared(Lane(0, method), backbones["text"].sites, torch.empty(0))
    assert told in str(refusal.value)
    assert str(refusal.value).startswith("method Own: what it sends of 'adapter'")
    assert "\n" not in str(refusal.value)


# Where it is


@pytest.fixture
def played(own, tmp_path):
    """A run with a method that this process no longer knows."""
    file = own("own_flat", FLAT)
    run = experiment.run(config(tmp_path, "own_flat", rounds=1), Listener())
    forget(file.parent)
    return run, file


def test_a_run_records_where_its_methods_are_and_finds_them_again(played, feddlp, tmp_path):
    run, file = played
    (name, about), *others = tomllib.loads(run.config.read_text())["own_methods"].items()
    assert (name, about["file"], others) == ("own_flat", str(file), [])
    for words in (("show",), ("report",), ("resume",), ("export", "--client=0", f"--to={tmp_path / 'out'}")):
        forget(file.parent)
        done = feddlp(words[0], str(run.path), *words[1:])
        assert done.code == 0, done.err


def test_a_file_that_is_gone_or_has_changed_is_said_in_one_line(played, feddlp, tmp_path):
    run, file = played
    words = ("export", str(run.path), "--client=0", f"--to={tmp_path / 'out'}")
    text = file.read_text()
    file.write_text(text + "\n")
    assert_mistake(feddlp(*words), f"the method own_flat has changed since the run began: {file}; put it back, or name")
    file.unlink()
    assert_mistake(feddlp(*words), f"the method own_flat was found in {file}, which is not there any more; put it back")
    file.write_text(text + "\n")
    methods.__path__.append(str(file.parent))  # as FEDDLP_METHODS: whoever names it, means it
    assert feddlp(*words).code == 0
    assert_mistake(feddlp("resume", str(run.path)), "the code is not the one that the run began with; put it back")


def test_nobody_elses_configuration_loads_code_here(played):
    run, _ = played
    with pytest.raises(UserError, match=r"methods: 'own_flat' is not known"):
        validate(tomllib.loads(run.config.read_text()))
    assert load_config(run.config).methods == ("own_flat",)


def test_methods_of_the_package_leave_no_trace(tmp_path):
    run = experiment.run(config(tmp_path, "flora", rounds=1), Listener())
    assert tomllib.loads(run.config.read_text())["own_methods"] == {}
