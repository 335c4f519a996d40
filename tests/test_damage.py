"""Whatever became of a state or record file, every command that reads it names it in one line and changes nothing.

Damage comes as single flipped bits (all of them, or a sample), and as whole files that are something else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fakegrid import FakeGrid, Time, real, served, small
from feddlp import experiment, files, states
from feddlp.config import load_config
from feddlp.errors import UserError
from feddlp.federation.flower.harvest import take
from feddlp.federation.flower.local import Shape, shape_before
from feddlp.federation.flower.registry import Registry
from feddlp.federation.flower.statefolder import StateFolder, identity
from feddlp.progress import PlainReporter
from feddlp.record_types import Partition, State
from feddlp.records import RunFolder
from feddlp.states import ClientsPiece, History
from terminal import assert_mistake

WORDS = (
    "methods=feddlp,local",
    "data.clients=3",
    "data.newcomers=1",
    "data.partition=few_shot_iid",
    "data.shots=2",
    "training.rounds=2",
    "training.batch_size=8",
    "name=run",
)
RECORDS = ("environment.json", "partition.json", "newcomers.jsonl", "rounds.jsonl", "clients.csv", "ranks.jsonl")
STATE = "checkpoint/state.json"
SAMPLE = 40  # bits of each file in the fast tests


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    config = load_config(None, [*WORDS, f"runs_dir={tmp_path_factory.mktemp('run')}"])
    return experiment.run(config, PlainReporter(Console(quiet=True))).path


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> SimpleNamespace:
    """The server's run folder and a node's state folder, after two rounds."""
    folder = tmp_path_factory.mktemp("federation")
    config = small(methods=["feddlp"], runs_dir=str(folder), training={"rounds": 2})
    served(FakeGrid(Time(), {7: real(clients="0-2", state_dir=folder / "node")}), config)
    return SimpleNamespace(run=folder / "run", node=folder / "node", config=config)


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def fingerprint(folder: Path) -> dict[str, str]:
    """Everything below a folder but for locks."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name != ".lock":
            kind = "link" if path.is_symlink() else "file" if path.is_file() else "other"
            content = path.read_bytes() if kind == "file" and os.access(path, os.R_OK) else b""
            found[str(path.relative_to(folder))] = kind + hashlib.sha256(content).hexdigest()
    return found


# Bits


def bits(content: bytes, every: bool, seed: str) -> list[int]:
    count = 8 * len(content)
    return list(range(count)) if every or count <= SAMPLE else random.Random(seed).sample(range(count), SAMPLE)


def flipped(path: Path, every: bool):
    """The file with one bit after the other flipped, and in the end as it was."""
    whole = path.read_bytes()
    for bit in bits(whole, every, path.name):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        yield
    path.write_bytes(whole)


def meaning_of_run(path: Path) -> tuple[object, ...]:
    """All that any command takes from the records of a run."""
    folder = RunFolder.open(path)
    read = (folder.read_environment, folder.read_partition, folder.read_newcomers, folder.read_rounds)
    return *(one() for one in read), folder.read_ranks(), folder.read_clients(), folder.state()


def assert_named_or_the_same(path: Path, meaning, every: bool) -> None:
    expected = meaning()
    for _ in flipped(path, every):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))} .*") as caught:
            meaning()
        assert "\n" not in str(caught.value)
    assert meaning() == expected


EVERY = [False, pytest.param(True, marks=pytest.mark.slow)]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("name", [*RECORDS, STATE])
def test_every_flipped_bit_of_a_run_is_a_named_error(name, every, copy):
    assert_named_or_the_same(copy / name, lambda: meaning_of_run(copy), every)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("name", ["state.json", "node.json", "partition.json"])
def test_every_flipped_bit_of_a_node_is_a_named_error(name, every, federation, tmp_path):
    node = Path(shutil.copytree(federation.node, tmp_path / "node"))
    (path,) = node.rglob(name)
    experiment = next(node.glob("*/config.toml")).parent
    state = StateFolder(experiment / "feddlp", {})
    partition = lambda: states.read(experiment / "partition.json", Partition)  # noqa: E731
    assert_named_or_the_same(path, lambda: (state.read(), identity(node), partition()), every)


@pytest.mark.parametrize("every", EVERY)
def test_every_flipped_bit_of_a_roster_is_a_named_error(every, federation, tmp_path):
    run = Path(shutil.copytree(federation.run, tmp_path / "run"))
    assert_named_or_the_same(run / "roster.json", lambda: vars(Registry.open(run, federation.config)), every)


def test_every_flipped_bit_of_what_federate_up_keeps_is_a_named_error(tmp_path):
    (tmp_path / "federation").mkdir()
    states.write(tmp_path / "federation" / "federation.json", Shape(nodes=2, simulated=False))
    folder = RunFolder(tmp_path)
    assert_named_or_the_same(tmp_path / "federation" / "federation.json", lambda: shape_before(folder), True)


# Whole files


def nested(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000 + "\n")


def replaced(content: bytes):
    return lambda path: path.write_bytes(content)


def instead(make):
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


DAMAGE = {
    "deleted": Path.unlink,
    "empty": replaced(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "directory": instead(Path.mkdir),
    "pipe": instead(os.mkfifo),
    "dangling link": instead(lambda path: path.symlink_to("nowhere")),
    "link to itself": instead(lambda path: path.symlink_to(path.name)),
    "nested": nested,
    "a number": replaced(b"7\n"),
    "a list": replaced(b"[]\n"),
    "another object": replaced(b'{"method": 7, "round": "x"}\n'),
    "a huge number": replaced(b'{"round": ' + b"9" * 6000 + b"}\n"),
    "no text": replaced(b"\xff\xfe\x00" * 99),
}


def commands(path: Path, to: Path) -> dict[str, tuple[str, ...]]:
    return {
        "resume": ("resume", str(path)),
        "show": ("show", str(path)),
        "report": ("report", str(path), "--to", str(to / "report.html")),
        "export": ("export", str(path), "--client", "0", "--method", "feddlp", "--to", str(to / "model")),
    }


@pytest.fixture
def within_ten_seconds():
    def late(*_: object) -> None:
        raise TimeoutError("a command hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*RECORDS, STATE])
def test_a_damaged_record_is_named_by_every_command(name, damage, copy, tmp_path, feddlp, within_ten_seconds):
    if (name, damage) in (("newcomers.jsonl", "deleted"), ("newcomers.jsonl", "empty")):
        pytest.skip("they join again")
    DAMAGE[damage](copy / name)
    before = fingerprint(tmp_path)
    for command in commands(copy, tmp_path).values():
        assert_mistake(feddlp(*command), str(copy / name))
        assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["round-0002.safetensors", "round-0002-0.safetensors"])
def test_damaged_tensors_are_named_before_they_are_used(name, damage, copy, tmp_path, feddlp, within_ten_seconds):
    file = copy / "checkpoint" / "feddlp" / name
    (copy / "config.toml").write_text((copy / "config.toml").read_text().replace("rounds = 2", "rounds = 3"))
    DAMAGE[damage](file)
    before = fingerprint(tmp_path)
    for command in ("resume", "export"):
        if not (damage == "nested" and command == "resume"):
            assert_mistake(feddlp(*commands(copy, tmp_path)[command]), str(file))
            assert fingerprint(tmp_path) == before


@pytest.fixture
def lent(run, feddlp, nobody) -> Path:
    """A copy for somebody for whom permissions count."""
    user = os.geteuid()
    os.seteuid(os.getuid())
    folder = Path(shutil.copytree(run, nobody / "run"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, -1)
    os.seteuid(user)
    return folder


@pytest.mark.parametrize("name", [*RECORDS, STATE, "checkpoint/feddlp/round-0002.safetensors"])
def test_a_file_that_may_not_be_read_is_named(name, lent, feddlp):
    (lent / name).chmod(0)
    assert_mistake(feddlp(*commands(lent, lent.parent)["export"]), str(lent / name), "Permission denied")


def test_a_folder_of_somebody_else_is_one_line(lent, feddlp, monkeypatch):
    monkeypatch.setenv("FEDDLP_CACHE", str(lent.parent / "cache"))
    (lent / ".lock").unlink()
    lent.chmod(0o500)
    assert_mistake(feddlp("resume", str(lent)), f"{lent}: cannot write there (Permission denied)")
    assert feddlp("show", str(lent)).code == 0
    lent.chmod(0o700)


@pytest.mark.parametrize("what", ["checkpoint", "checkpoint/feddlp"])
def test_a_folder_that_is_gone_is_named_and_nothing_is_touched(what, copy, tmp_path, feddlp):
    shutil.rmtree(copy / what)
    before = fingerprint(tmp_path)
    for command in commands(copy, tmp_path).values():
        assert_mistake(feddlp(*command), str(copy / what))
        assert fingerprint(tmp_path) == before


def test_an_older_state_beside_newer_tensors_is_refused(run, copy, tmp_path, feddlp):
    """As where only a part came back from a backup."""
    folder = RunFolder(copy)
    earlier = folder.state().methods["feddlp"].last.model_copy(update={"round": 1})
    piece = earlier.tensors.model_copy(update={"file": "round-0001.safetensors"})
    history = History(commits=(earlier.model_copy(update={"tensors": piece}),))
    states.write(copy / STATE, State(methods={**folder.state().methods, "feddlp": history}))
    assert_mistake(feddlp("resume", str(copy)), "round-0001.safetensors cannot be read (No such file")
    assert (copy / "rounds.jsonl").read_bytes() == (run / "rounds.jsonl").read_bytes()


def test_clients_that_were_exchanged_in_the_state_are_noticed(copy, tmp_path, feddlp):
    text = (copy / STATE).read_text()
    (copy / STATE).write_text(text.replace('"rows":[0,1]', '"rows":[1,0]'))
    assert (copy / STATE).read_text() != text
    assert_mistake(feddlp(*commands(copy, tmp_path)["export"]), f"{copy / STATE} is damaged")


@pytest.mark.parametrize("name", ["../run.safetensors", "/etc/passwd", "a/b.safetensors", ".", "state.json", "x\n"])
def test_a_state_names_files_of_its_own_folder_alone(name):
    with pytest.raises(ValueError, match="file"):
        ClientsPiece(file=name, size=0, sha256="0" * 64, rows=())


# Nodes


def spoil_node(node: Path, name: str, damage: str) -> Path:
    (path,) = node.rglob(name)
    DAMAGE[damage](path)
    return path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["state.json", "partition.json", "report-0002.safetensors", "round-0002-0.safetensors"]
)
def test_nothing_is_taken_from_a_damaged_node(name, damage, federation, tmp_path, feddlp, within_ten_seconds):
    node = Path(shutil.copytree(federation.node, tmp_path / "node"))
    path = spoil_node(node, name, damage)
    before = fingerprint(tmp_path)
    assert_mistake(feddlp("federate", "take", str(node), "--to", str(tmp_path / "here")), str(path))
    assert fingerprint(tmp_path) == before


def resealed(path: Path, change) -> None:
    """A state that somebody changed and signed again."""
    table = json.loads(path.read_text())
    del table["checksum"]
    change(table)
    rest = json.dumps(table).encode()[1:]
    path.write_bytes(states.seal(rest) + rest)


def test_a_signed_state_does_not_lead_out_of_its_folder(federation, tmp_path, feddlp):
    node = Path(shutil.copytree(federation.node, tmp_path / "node"))
    (path,) = node.rglob("state.json")

    def outwards(table):
        table["history"]["commits"][-1]["clients"][0]["file"] = "../../../secret.safetensors"

    resealed(path, outwards)
    before = fingerprint(tmp_path)
    assert_mistake(feddlp("federate", "take", str(node), "--to", str(tmp_path / "here")), f"{path} is damaged (")
    assert fingerprint(tmp_path) == before


def test_a_state_folder_is_its_owners_alone(federation, tmp_path):
    assert modes(federation.node) == {0o700, 0o600}
    wide = Path(shutil.copytree(federation.node, tmp_path / "wide"))
    for path in (wide, *wide.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    identity(wide)
    assert wide.stat().st_mode & 0o777 == 0o700, "which keeps others from all that is below"
    assert modes(take(wide, tmp_path / "taken").path) == {0o700, 0o600}


def test_a_folder_of_other_things_is_not_closed_for_others(tmp_path):
    (tmp_path / "shared").mkdir(0o755)
    (tmp_path / "shared" / "photo.jpg").touch(0o644)
    with pytest.raises(UserError, match=r"shared holds other things .* chmod 700"):
        identity(tmp_path / "shared")
    assert modes(tmp_path / "shared") == {0o755, 0o644}
    device = Path("/dev/null").stat().st_mode
    with pytest.raises(UserError, match="state-dir: /dev/null: Not a directory"):
        identity(Path("/dev/null"))
    assert Path("/dev/null").stat().st_mode == device


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


# Disks


def test_a_full_disk_names_the_place_and_how_to_go_on(copy, tmp_path, feddlp, monkeypatch):
    (copy / "config.toml").write_text((copy / "config.toml").read_text().replace("rounds = 2", "rounds = 3"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("append", "write_whole"):
        with monkeypatch.context() as patch:
            patch.setattr(files, function, full)
            again = f"put it right, then feddlp resume {copy}"
            assert_mistake(feddlp("resume", str(copy)), f"{copy}: No space left on device", again)
    assert feddlp("resume", str(copy)).code == 0
    assert len(RunFolder(copy).read_rounds()) == 6


def test_a_pipe_that_takes_the_place_of_a_file_after_a_look_at_it_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    looked = (tmp_path / "file").stat()
    monkeypatch.setattr(os, "stat", lambda *_, **__: looked)  # what a reader sees that looks before it opens
    with pytest.raises(OSError, match="not a regular file"):
        files.read_given(tmp_path / "pipe")
