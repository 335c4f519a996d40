"""A node answers the same order with the same report, whatever happened to its process in between."""

from __future__ import annotations

import errno
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.common.serde import recorddict_to_proto
from PIL import Image

from fakegrid import Killed, small
from feddlp import __version__, files, states
from feddlp.federation.flower import node
from feddlp.federation.flower.checks import frozen
from feddlp.federation.flower.node import answer
from feddlp.federation.flower.parcels import Parcel, to_bytes, to_record
from feddlp.federation.rounds import Federation
from feddlp.states import KEPT
from feddlp.training.cohort import Cohort

METHODS = ("fedclip", "feddlp", "feddat", "local", "zero_shot", "flora")
WORDS = {"clients": "0-1", "name": "ward"}


def told(method, **sections):
    return small(methods=[method], **sections)


def order(config, round=0, shift=0.0, clients=(0, 1), experiment="0" * 32, kind="train"):
    """What the server says; its shared adapters as they begin, or something else."""
    (method,) = config.methods
    parcel = Parcel({"class_names": [], "experiment": experiment, "configuration": config.to_toml()})
    told = node.Node(node.NodeSettings((0, 1), Path()), config, parcel.facts)
    (shared,) = Federation(told.host(method).lanes, told.host(method), config.training).order().shared
    moved = {name: {leaf: value * (1 - shift) for leaf, value in theta.items()} for name, theta in shared.items()}
    about = {"kind": kind, "version": __version__, "method": method, "round": round, "clients": list(clients)}
    model = frozen(told.materials.fingerprints["backbone"], told.sites)
    return Parcel({**parcel.facts, **about, "frozen": model}, moved)


def ask(parcel, folder, **words):
    return answer(parcel, {**WORDS, "state-dir": str(folder), **words}, {})


def problem(parcel, folder, **words):
    """The one line that comes in place of a report."""
    said = ask(parcel, folder, **words)
    assert "problem" in said.facts, "it was answered"
    assert "\n" not in said.facts["problem"]
    return said.facts["problem"]


def wire(parcel):
    return recorddict_to_proto(to_record(parcel)).SerializeToString()


def numbers(parcel):
    """A report but for the time that it took."""
    facts = {key: value for key, value in parcel.facts.items() if key != "seconds"}
    return json.dumps(facts), {name: to_bytes(theta) for name, theta in parcel.adapters.items()}


def content(folder):
    """What is kept, but for locks and for the time that a report tells of."""
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "node.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def tensors(folder):
    """Clients by file."""
    return {name: found for name, found in content(folder).items() if "round-" in name}


@pytest.fixture
def no_training(monkeypatch):
    def fail(*_):
        raise AssertionError("somebody trains")

    monkeypatch.setattr(Cohort, "fit", fail)


# The same order, and others


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wave", [0, 1])
def test_the_same_order_is_answered_with_the_same_bytes_and_nobody_trains_twice(method, wave, tmp_path, monkeypatch):
    config = told(method, training={"wave": wave})
    first = ask(order(config), tmp_path)
    assert first.facts["clients"]
    assert "problem" not in first.facts
    kept = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "fit", lambda *_: pytest.fail("somebody trains"))
        again = ask(order(config), tmp_path)
    assert wire(again) == wire(first)
    assert content(tmp_path) == kept


@pytest.mark.parametrize("method", [pytest.param("feddlp", marks=pytest.mark.slow), "fedclip"])
@pytest.mark.parametrize("store", ["memory", "disk"])
def test_another_shared_adapter_takes_the_last_round_back(method, store, tmp_path):
    config = told(method, training={"client_store": store})
    for folder in (tmp_path / "misled", tmp_path / "straight"):
        ask(order(config, 0), folder)
    other = ask(order(config, 1, shift=0.5), tmp_path / "misled")
    found, expected = (ask(order(config, 1, shift=0.1), tmp_path / name) for name in ("misled", "straight"))
    assert numbers(found) == numbers(expected) != numbers(other)
    assert tensors(tmp_path / "misled") == tensors(tmp_path / "straight")
    found, expected = (ask(order(config, 2), tmp_path / name) for name in ("misled", "straight"))
    assert numbers(found) == numbers(expected)


def test_a_first_round_is_taken_back_too(tmp_path):
    config = told("fedclip")
    ask(order(config, 0, shift=0.5), tmp_path / "misled")
    found, expected = (ask(order(config), tmp_path / name) for name in ("misled", "straight"))
    assert numbers(found) == numbers(expected)


def test_other_clients_in_the_same_round_take_it_back(tmp_path):
    config = told("fedclip")
    ask(order(config, clients=(0,)), tmp_path / "misled")
    found, expected = (ask(order(config, clients=(1,)), tmp_path / name) for name in ("misled", "straight"))
    assert numbers(found) == numbers(expected)
    assert found.facts["clients"] == [1]


@pytest.mark.parametrize("back", [1, 3])
def test_an_earlier_round_takes_the_later_ones_back(back, tmp_path, caplog):
    config = told("fedclip")
    for number in range(4):
        ask(order(config, number), tmp_path / "misled")
        if number < 4 - back:
            ask(order(config, number), tmp_path / "straight")
    found, expected = (ask(order(config, 4 - back, shift=0.1), tmp_path / n) for n in ("misled", "straight"))
    assert numbers(found) == numbers(expected)
    assert tensors(tmp_path / "misled") == tensors(tmp_path / "straight")
    assert f"the server went back: round 4 is taken back to round {4 - back}" in caplog.text


def test_further_back_than_is_kept_is_refused_and_changes_nothing(tmp_path):
    config = told("zero_shot")
    for number in range(KEPT + 2):
        ask(order(config, number), tmp_path)
    kept = content(tmp_path)
    line = problem(order(config, 1), tmp_path)
    assert f"asks for round 2, and here round {KEPT + 2} was played; round 3 is as far as it can go back" in line
    assert content(tmp_path) == kept
    assert ask(order(config, 3), tmp_path).facts["round"] == 3


def undoing(parcel, *rounds):
    return Parcel({**parcel.facts, "undone": list(rounds)}, parcel.adapters)


def test_who_sat_out_the_round_after_it_goes_back_as_well(tmp_path):
    """The server was taken back to round 1, and asks this node for round 3 next."""
    config = told("fedclip")
    for number in range(3):
        ask(order(config, number), tmp_path / "misled")
    ask(order(config, 0), tmp_path / "straight")
    found, expected = (ask(undoing(order(config, 3, 0.1), 1), tmp_path / n) for n in ("misled", "straight"))
    assert numbers(found) == numbers(expected)
    assert tensors(tmp_path / "misled") == tensors(tmp_path / "straight")


def test_an_order_from_before_it_went_back_is_refused(tmp_path):
    config = told("fedclip")
    ask(order(config, 0), tmp_path)
    ask(undoing(order(config, 1), 1), tmp_path)
    kept = content(tmp_path)
    assert "the server has forgotten that it was taken back to round 1" in problem(order(config, 2), tmp_path)
    assert content(tmp_path) == kept


def test_a_client_that_sat_rounds_out_goes_on_from_where_it_was(tmp_path):
    config = told("fedclip")
    ask(order(config, 0), tmp_path)
    assert ask(order(config, 5), tmp_path).facts["round"] == 5


# Poison


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -1e4])
@pytest.mark.parametrize("number", [0, 1, 7])
def test_an_order_out_of_proportion_changes_nothing(value, number, tmp_path):
    config = told("feddlp")
    ask(order(config, 0), tmp_path)
    kept, poison = content(tmp_path), order(config, number)
    poison = Parcel(poison.facts, {"global": {leaf: v * 0 + value for leaf, v in poison.adapters["global"].items()}})
    line = problem(poison, tmp_path)
    assert line.startswith("the server's order cannot be used: ")
    assert "NaN or infinity" in line or "is out of all proportion" in line
    assert content(tmp_path) == kept
    assert ask(order(config, 1), tmp_path).facts["round"] == 1


@pytest.mark.parametrize("where", ["theta", "moments", "loss", "upload"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_never_kept(where, value, tmp_path, monkeypatch):
    config, fit, upload = told("feddlp"), Cohort.fit, Cohort.upload
    ask(order(config, 0), tmp_path)
    kept = content(tmp_path)

    def diverging(cohort, *rest):
        losses = fit(cohort, *rest)
        if where == "theta":
            next(iter(cohort.theta["local"].values())).data[1].view(-1)[0] = value
        elif where == "moments":
            cohort.optimizers["local"].v[1, -1] = value
        elif where == "loss":
            losses["global"][1] = value
        return losses

    def sending(cohort):
        sent = {name: {leaf: v.clone() for leaf, v in theta.items()} for name, theta in upload(cohort).items()}
        next(iter(sent["global"].values()))[1] = value
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "fit", diverging)
        if where == "upload":
            patch.setattr(Cohort, "upload", sending)
        line = problem(order(config, 1), tmp_path)
    assert "round 2: client 1 diverged to NaN or infinity; nothing of this round is kept" in line
    assert content(tmp_path) == kept
    assert ask(order(config, 1), tmp_path).facts["clients"] == [0, 1]


# Killed, and a full disk


def killed(*_, **__):
    raise Killed


WRITES = [(files, "write_atomically"), (files, "write_whole"), (Path, "unlink"), (Path, "replace")]


class Writes:
    """Every write of a round, of which one goes wrong, before or after it was done."""

    def __init__(self, monkeypatch, error=Killed, at=0, after=False):
        self.count, self.at, self.error, self.after = 0, at, error, after
        for owner, name in WRITES:
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name)))

    def watched(self, original):
        def call(*args, **options):
            self.count += 1
            mine = self.count == self.at
            if mine and not self.after:
                raise self.error
            found = original(*args, **options)
            if mine:
                raise self.error
            return found

        return call


SECOND = 1  # the round in which things go wrong


@pytest.fixture(scope="module")
def first_round(tmp_path_factory):
    """A node after its first round, the report of its second, and how many writes that takes."""
    folder, config = tmp_path_factory.mktemp("node"), told("fedclip", training={"wave": 1})
    ask(order(config, 0), folder / "once")
    shutil.copytree(folder / "once", folder / "twice")
    with pytest.MonkeyPatch.context() as patch:
        writes = Writes(patch)
        expected = ask(order(config, SECOND, 0.1), folder / "twice")
    third = ask(order(config, 2, 0.2), folder / "twice")
    return folder / "once", config, expected, third, writes.count, tensors(folder / "twice")


@pytest.mark.parametrize(
    ("after", "store"),
    [
        (False, "memory"),
        (True, "disk"),
        pytest.param(True, "memory", marks=pytest.mark.slow),
        pytest.param(False, "disk", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_write_a_round_ends_as_undisturbed(after, store, first_round, tmp_path):
    once, config, expected, third, count, kept = first_round
    config = told("fedclip", training={"wave": 1, "client_store": store})
    assert count >= 6
    for at in range(1, count + 1):
        folder = tmp_path / str(at)
        shutil.copytree(once, folder)
        with pytest.MonkeyPatch.context() as patch:
            Writes(patch, at=at, after=after)
            with pytest.raises(Killed):
                ask(order(config, SECOND, 0.1), folder)
        assert numbers(ask(order(config, SECOND, 0.1), folder)) == numbers(expected)
        assert numbers(ask(order(config, 2, 0.2), folder)) == numbers(third)
        assert tensors(folder) == kept
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("at", range(1, 9))
def test_killed_while_a_round_is_taken_back(at, first_round, tmp_path):
    once, config, _, _, _, _ = first_round
    expected = ask(order(config, 0, 0.7), tmp_path / "fresh")
    shutil.copytree(once, tmp_path / "node")
    with pytest.MonkeyPatch.context() as patch:
        Writes(patch, at=at)
        with pytest.raises(Killed):
            ask(order(config, 0, 0.7), tmp_path / "node")
    assert numbers(ask(order(config, 0, 0.7), tmp_path / "node")) == numbers(expected)


def test_a_full_disk_is_one_line_and_loses_nothing(first_round, tmp_path):
    once, config, expected, _, count, _ = first_round
    full = OSError(errno.ENOSPC, "No space left on device")
    for at in range(1, count + 1):
        folder = tmp_path / str(at)
        shutil.copytree(once, folder)
        with pytest.MonkeyPatch.context() as patch:
            Writes(patch, full, at)
            line = problem(order(config, SECOND, 0.1), folder)
        assert "state-dir" in line
        assert "No space left on device; nothing is lost" in line
        assert numbers(ask(order(config, SECOND, 0.1), folder)) == numbers(expected)
        assert not list(folder.rglob("*.tmp"))


def test_a_disk_that_is_full_before_the_commit_leaves_the_state_as_it_was(first_round, tmp_path):
    once, config, *_ = first_round
    shutil.copytree(once, tmp_path / "node")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: full_disk())
        assert "nothing is lost" in problem(order(config, SECOND), tmp_path / "node")
    before, now = content(once), content(tmp_path / "node")
    assert {name: now[name] for name in before} == before


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_half_a_file_of_a_killed_process_goes_with_the_next_commit(tmp_path):
    config = told("fedclip")
    ask(order(config, 0), tmp_path)
    half = tmp_path / ("0" * 32) / "fedclip" / "round-0009-0.safetensors.tmp"
    half.write_bytes(b"half")
    ask(order(config, 1), tmp_path)
    assert not half.exists()


def test_a_state_dir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = problem(order(told("fedclip")), tmp_path / "file")
    assert "state-dir" in line
    assert str(tmp_path / "file") in line


# Damage, and what belongs to something else


@pytest.mark.parametrize("what", ["state.json", "round-*", "report-*"])
@pytest.mark.parametrize("how", ["bit", "cut", "gone", "empty"])
def test_a_damaged_file_is_named_in_one_line_and_left_as_it_is(what, how, first_round, tmp_path, no_training):
    once, config, *_ = first_round
    shutil.copytree(once, tmp_path / "node")
    folder = tmp_path / "node" / ("0" * 32) / "fedclip"
    file = next(folder.glob(what))
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"bit": whole, "cut": whole[:-3], "empty": b""}[how])
    kept = content(tmp_path)
    line = problem(order(config, 0 if what == "report-*" else 1), tmp_path / "node")
    assert file.name in line
    assert "damaged" in line or "cannot be read" in line or "is missing" in line
    assert content(tmp_path) == kept


@pytest.mark.parametrize(
    "table",
    [
        "[]", "{}", "null", "7", '{"round": 3}', '{"round": "x", "sha256": 4}', '{"after": [1], "format": 1}', "{",
        '{"a": NaN}', "\xff",
    ],
)  # fmt: skip
def test_whatever_stands_in_state_json_is_one_line(table, first_round, tmp_path, no_training):
    once, config, *_ = first_round
    shutil.copytree(once, tmp_path / "node")
    file = tmp_path / "node" / ("0" * 32) / "fedclip" / "state.json"
    file.write_bytes(table.encode("latin1"))
    assert f"{file} is damaged" in problem(order(config, 1), tmp_path / "node")


def test_a_state_of_another_format_is_refused_and_not_called_damaged(first_round, tmp_path, no_training):
    once, config, *_ = first_round
    shutil.copytree(once, tmp_path / "node")
    file = tmp_path / "node" / ("0" * 32) / "fedclip" / "state.json"
    rest = file.read_bytes()[len(states.seal(b"")) :].replace(b'"format":4', b'"format":5')
    file.write_bytes(states.seal(rest) + rest)
    assert "is from another version of feddlp" in problem(order(config, 1), tmp_path / "node")


@pytest.mark.parametrize("table", ["[]", "{}", '{"state": 7}', "{", '{"x": 1}'])
def test_a_damaged_identity_is_one_line(table, tmp_path):
    (tmp_path / "node.json").write_text(table)
    assert "node.json is damaged" in problem(order(told("fedclip"), kind="hello"), tmp_path)
    assert (tmp_path / "node.json").read_text() == table


def test_the_identity_of_a_state_folder_stays(tmp_path):
    hello = order(told("fedclip"), kind="hello")
    first, again, other = ask(hello, tmp_path / "a"), ask(hello, tmp_path / "a"), ask(hello, tmp_path / "b")
    assert first.facts["state"] == again.facts["state"] != other.facts["state"]


def changed(config, **sections):
    table = {name: {**getattr(config, name).model_dump(), **value} for name, value in sections.items()}
    return small(methods=list(config.methods), **table)


@pytest.mark.parametrize(
    ("key", "words", "sections"),
    [
        ("clients", {"clients": "0-2"}, {}),
        ("configuration", {}, {"training": {"batch_size": 4}}),
        ("configuration", {}, {"data": {"partition_seed": 2}}),
    ],
)
def test_a_state_of_something_else_is_refused_and_left_as_it_is(key, words, sections, tmp_path, no_training):
    config = told("zero_shot")
    ask(order(config, 0), tmp_path)
    kept = content(tmp_path)
    line = problem(order(changed(config, **sections), 1), tmp_path, **words)
    assert f"was begun with another {key} and is left as it is; put the {key} back" in line
    assert content(tmp_path) == kept


@pytest.mark.parametrize("key", ["backbone", "data"])
def test_a_state_over_another_checkpoint_or_other_images_is_refused(key, tmp_path, monkeypatch, no_training):
    config = told("zero_shot")
    ask(order(config, 0), tmp_path)
    kept = content(tmp_path)
    monkeypatch.setitem(node.load.__wrapped__.__globals__, "load", lambda *args: altered(args, key))
    line = problem(order(config, 1), tmp_path)
    assert f"was begun with another {'checkpoint' if key == 'backbone' else key}" in line
    assert content(tmp_path) == kept


ORIGINAL = node.load


def altered(args, key):
    found = ORIGINAL(*args)
    return type(found)(**{**vars(found), "fingerprints": {**found.fingerprints, key: "0" * 64}})


@pytest.mark.parametrize("kind", ["train", "start"])
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"checkpoint": "0" * 64}, "the checkpoint here is not that of the federation"),
        ({"sites": "0" * 64}, "the sites here is not that of the federation"),
        (None, "the checkpoint here is not that of the federation"),
    ],
)
def test_an_order_over_another_model_is_refused_and_nobody_trains(kind, wrong, line, tmp_path, no_training):
    asked = order(told("fedclip"), kind=kind)
    frozen = {**asked.facts["frozen"], **wrong} if wrong else None
    assert line in problem(Parcel({**asked.facts, "frozen": frozen}, asked.adapters), tmp_path)
    assert content(tmp_path) == {}


def test_another_experiment_begins_anew_beside_the_first(tmp_path):
    config = told("fedclip")
    ask(order(config, 0), tmp_path)
    kept = content(tmp_path / ("0" * 32))
    other, fresh = (ask(order(config, 0, experiment="1" * 32), tmp_path / name) for name in ("", "fresh"))
    assert numbers(other) == numbers(fresh)
    assert content(tmp_path / ("0" * 32)) == kept


def test_methods_do_not_share_a_state(tmp_path):
    for method in ("fedclip", "local"):
        ask(order(told(method, name="x"), 0), tmp_path)
    assert {path.parent.name for path in tmp_path.rglob("state.json")} == {"fedclip", "local"}


# Two processes

HOLDER = """
import sys, time
from pathlib import Path
from filelock import FileLock
with FileLock(Path(sys.argv[1]) / ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_works_on_is_busy(first_round, tmp_path, monkeypatch, no_training):
    once, config, *_ = first_round
    shutil.copytree(once, tmp_path / "node")
    monkeypatch.setattr(node, "PATIENCE", 0.1)
    folder = tmp_path / "node" / ("0" * 32) / "fedclip"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        said = ask(order(config, 0), tmp_path / "node")
        other.communicate()
    assert said.facts["busy"] is True
    assert f"{folder} is in use by another process; give every node a state-dir of its own" in said.facts["problem"]
    assert "problem" not in ask(order(config, 0), tmp_path / "node").facts


# What is said


def test_an_upload_holds_the_shared_leaves_of_each_client_and_nothing_else(tmp_path):
    config = told("feddlp")
    asked = order(config)
    report = ask(asked, tmp_path)
    assert report.adapters.keys() == asked.adapters.keys()
    for name, theta in report.adapters.items():
        assert theta.keys() == asked.adapters[name].keys()
        assert all(value.shape == (2, *asked.adapters[name][leaf].shape) for leaf, value in theta.items())


def test_start_says_what_the_clients_get_right_before_they_learn(tmp_path):
    said = ask(order(told("fedclip"), kind="start"), tmp_path)
    assert len(said.facts["correct"]["test"]) == len(said.facts["clients"])
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"clients": "7"}, "client 7 is none of data.clients=3"),
        ({"colour": "red"}, "node-config has colour"),
        ({"state-dir": ""}, "node-config has no state-dir"),
    ],
)
def test_mistakes_of_the_nodes_owner_are_one_line(words, line, tmp_path):
    assert line in problem(order(told("fedclip")), tmp_path, **words)


def test_a_server_of_another_version_is_refused(tmp_path):
    asked = order(told("fedclip"))
    other = Parcel({**asked.facts, "version": "0.0.0"}, asked.adapters)
    assert "the server has feddlp 0.0.0" in problem(other, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda shared: {name: {leaf: v * float("nan") for leaf, v in t.items()} for name, t in shared.items()}, "NaN"),
        (lambda shared: {name: {leaf: v[:1] for leaf, v in t.items()} for name, t in shared.items()}, "the shape"),
        (lambda shared: {name: {leaf: v.double() for leaf, v in t.items()} for name, t in shared.items()}, "float64"),
        (lambda shared: {}, "adapters lacks 'adapter'"),
        (lambda shared: {**shared, "more": {}}, "the unknown 'more'"),
    ],
)
def test_what_the_server_sends_is_checked_before_anybody_learns_from_it(spoil, line, tmp_path, no_training):
    good = order(told("flora"))
    said = problem(Parcel(good.facts, spoil(good.adapters)), tmp_path)
    assert said.startswith("the server's order cannot be used: ")
    assert line in said
    assert not list(tmp_path.rglob("state.json"))


def test_classes_that_the_checkpoint_reads_as_one_are_refused_before_anything_is_trained(tmp_path, no_training):
    for name in ("cat!", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "own" / name / f"{number}.png")
    data = {"partition": "natural", "dataset": f"folder:{tmp_path / 'own'}", "clients": 2}
    config = small(methods=["fedclip"], data=data)
    facts = {"class_names": ["cat !", "cat!", "dog"], "experiment": "0" * 32, "configuration": config.to_toml()}
    about = {"kind": "train", "version": __version__, "method": "fedclip", "round": 0, "clients": [0], "frozen": {}}
    said = ask(Parcel({**facts, **about}), tmp_path / "state", clients="0", data=data["dataset"])
    assert "'a photo of a cat !.' and 'a photo of a cat!.' are the same tokens" in said.facts["problem"]
    assert not (tmp_path / "state" / ("0" * 32)).exists()
