"""The run folder: whatever happens to the process, what is on the disk is whole or is cut back to what was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feddlp import files
from feddlp.errors import UserError
from feddlp.files import write_atomically
from feddlp.record_types import CLIENT_COLUMNS
from feddlp.records import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, "run", 'name = "run"\n')


def tensors(round: int) -> dict[str, torch.Tensor]:
    return {"server/global/x.A": torch.full((2, 3), float(round)), "cohort/steps": torch.tensor([round, 2**40])}


def play(folder: RunFolder, round: int, method: str = "feddlp") -> None:
    """What a run does in a round."""
    folder.begin(method)
    clients = [dict.fromkeys(CLIENT_COLUMNS, "") | {"method": method, "round": round, "client": k} for k in range(2)]
    folder.record_round({"method": method, "seed": 0, "round": round, "seconds": 0.5}, clients)
    folder.save_checkpoint(method, round, tensors(round))


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def played(folder: RunFolder) -> list[tuple[str, int]]:
    return [(row["method"], row["round"]) for row in folder.read_rounds()]


def assert_loads(folder: RunFolder, round: int, method: str = "feddlp") -> None:
    found, state = folder.load_checkpoint(method)
    assert found == round
    assert state.keys() == tensors(round).keys()
    for name, tensor in tensors(round).items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype


# Folders


def test_nothing_is_ever_overwritten(tmp_path):
    made = [RunFolder.create(tmp_path / "runs", "demo", f"seed = {number}") for number in range(3)]
    assert [folder.path.name for folder in made] == ["demo", "demo-2", "demo-3"]
    assert [folder.config.read_text() for folder in made] == ["seed = 0", "seed = 1", "seed = 2"]


def test_a_file_also_takes_a_name(tmp_path):
    (tmp_path / "demo").write_text("mine")
    assert RunFolder.create(tmp_path, "demo", "").path.name == "demo-2"
    assert (tmp_path / "demo").read_text() == "mine"


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"runs_dir=.*file: cannot make a run folder there"):
        RunFolder.create(tmp_path / "file", "demo", "")
    with pytest.raises(UserError, match="cannot make a run folder there"):
        RunFolder.create(tmp_path, "x" * 300, "")


def test_only_a_run_folder_opens(tmp_path, folder):
    assert RunFolder.open(folder.path) == folder
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=rf"{path} is not a run folder"):
            RunFolder.open(path)


def test_the_environment_is_written_and_read(folder):
    assert folder.read_environment() == {}
    folder.write_environment({"data": "abc"})
    found = folder.read_environment()
    assert found["data"] == "abc"
    assert found["packages"]["torch"] == version("torch")


def test_the_partition_is_what_was_last_known_of_it(folder):
    assert folder.read_partition() is None
    for known in ({"class_names": ["cat"]}, {"class_names": ["cat"], "clients": []}):
        folder.write_partition(known)
        assert folder.read_partition() == known


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"3", b"null"])
@pytest.mark.parametrize("name", ["environment", "partition"])
def test_a_damaged_object_is_named(folder, name, content):
    (folder.path / f"{name}.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.json is damaged"):
        getattr(folder, f"read_{name}")()


# One process


def test_a_second_process_is_refused_until_the_first_has_gone(folder):
    program = "import sys, filelock as f; x = f.FileLock(sys.argv[1]); x.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", program, str(folder.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=rf"{folder.path} is in use by another"), folder.locked():
            pass
        other.kill()
    with folder.locked():
        pass


def test_a_lock_ends_with_an_error(folder):
    with pytest.raises(RuntimeError, match="inside"), folder.locked():
        raise RuntimeError("inside")
    with folder.locked():
        pass


# Records


def test_rounds_and_clients_are_appended(folder):
    for number in (1, 2):
        play(folder, number)
    assert played(folder) == [("feddlp", 1), ("feddlp", 2)]
    lines = folder.clients.read_text().splitlines()
    assert lines[0] == ",".join(CLIENT_COLUMNS)
    assert [line.split(",")[2:4] for line in lines[1:]] == [["1", "0"], ["1", "1"], ["2", "0"], ["2", "1"]]


def test_a_client_column_that_nobody_knows_is_an_error(folder):
    with pytest.raises(ValueError, match="surprise"):
        folder.record_round({}, [{"surprise": 1}])


def test_a_new_folder_has_no_rounds(folder):
    assert folder.read_rounds() == []


@given(cut=st.integers(0, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_not_committed_is_not_read(folder, cut):
    if not played(folder):
        play(folder, 1)
    size = folder.rounds.stat().st_size
    with folder.rounds.open("a") as file:
        file.write(('{"method": "feddlp", "round": 2}\n' * 3)[:cut])
    assert played(folder) == [("feddlp", 1)]
    os.truncate(folder.rounds, size)


@pytest.mark.parametrize("damage", [b'{"round": \n', b"\x00\x00\n", b"\xff\xfe\n"])
def test_a_damaged_line_is_named(folder, damage):
    play(folder, 1)
    whole = folder.rounds.read_bytes()
    folder.rounds.write_bytes(damage + whole[len(damage) :])
    with pytest.raises(UserError, match=r"rounds\.jsonl is damaged"):
        folder.read_rounds()


@pytest.mark.parametrize("row", [{"method": 3, "round": 1}, {"round": 1}, {"method": "a", "round": 1, "test": [1]}])
def test_a_row_of_the_wrong_types_is_named(folder, row):
    folder.begin("feddlp")
    folder.record_round(row, [])
    folder.save_checkpoint("feddlp", 1, {})
    with pytest.raises(UserError, match=r"rounds\.jsonl is damaged \("):
        folder.read_rounds()


def test_names_in_any_script_stay_one_line(folder):
    play(folder, 1, "größe\u2028\x85猫")
    assert played(folder) == [("größe\u2028\x85猫", 1)]


# Checkpoints


def test_a_checkpoint_comes_back_to_the_bit(folder):
    play(folder, 1)
    assert_loads(folder, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
def test_every_dtype_and_layout_comes_back(folder, dtype):
    play(folder, 1)
    tensor = torch.arange(12).view(3, 4).to(dtype).T
    folder.save_checkpoint("feddlp", 2, {"x": tensor, "scalar": torch.tensor(1)})
    _, state = folder.load_checkpoint("feddlp")
    assert state["x"].dtype == dtype
    assert torch.equal(state["x"], tensor)
    assert state["scalar"].shape == ()


def test_a_method_without_tensors_has_a_checkpoint_too(folder):
    play(folder, 1, "zero_shot")
    folder.save_checkpoint("zero_shot", 1, {})
    assert folder.load_checkpoint("zero_shot") == (1, {})


def test_a_new_folder_has_no_checkpoint(folder):
    assert folder.load_checkpoint("feddlp") is None
    assert folder.checkpoint_state("feddlp") is None


def test_only_the_last_checkpoint_is_kept_and_nothing_half_written(folder):
    for number in (1, 2, 3):
        play(folder, number)
    play(folder, 1, "flora")
    assert set(contents(folder)) == {
        "config.toml",
        "rounds.jsonl",
        "clients.csv",
        "checkpoint/state.json",
        "checkpoint/feddlp/round-0003.safetensors",
        "checkpoint/flora/round-0001.safetensors",
    }
    assert_loads(folder, 3)


def test_more_rounds_than_four_digits(folder):
    for number in (9999, 10000, 10001):
        play(folder, number)
    assert_loads(folder, 10001)
    assert len(list((folder.path / "checkpoint" / "feddlp").iterdir())) == 1


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_checkpoint_is_found_and_named(folder, data):
    play(folder, 1)
    file = folder.path / "checkpoint" / "feddlp" / "round-0001.safetensors"
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"round-0001\.safetensors is damaged \((its checksum|\d+ bytes)"):
        folder.load_checkpoint("feddlp")


def test_a_missing_checkpoint_is_named(folder):
    play(folder, 1)
    (folder.path / "checkpoint" / "feddlp" / "round-0001.safetensors").unlink()
    with pytest.raises(UserError, match=r"round-0001\.safetensors cannot be read .*No such file"):
        folder.load_checkpoint("feddlp")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b'{"round": 1}', b"\xff\xfe", b"\x00" * 100])
def test_a_damaged_state_is_named(folder, content):
    play(folder, 1)
    (folder.path / "checkpoint" / "state.json").write_bytes(content)
    for use in (folder.load_checkpoint, folder.checkpoint_state, lambda method: folder.rewind()):
        with pytest.raises(UserError, match=r"checkpoint/state\.json is damaged"):
            use("feddlp")


def test_a_state_of_another_version_is_refused(folder):
    play(folder, 1)
    file = folder.path / "checkpoint" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 999}))
    with pytest.raises(UserError, match="another version"):
        folder.load_checkpoint("feddlp")


# Rewinding


def test_rewinding_cuts_back_to_the_last_checkpoint(folder):
    play(folder, 1)
    before = contents(folder)
    folder.record_round({"method": "feddlp", "round": 2}, [{"client": 0}])
    files.append(folder.rounds, '{"method": "fed')
    folder.rewind()
    assert contents(folder) == before


def test_rewinding_without_a_checkpoint_starts_anew(folder):
    before = contents(folder)
    folder.begin("feddlp")
    folder.record_round({"method": "feddlp", "round": 1}, [{"client": 0}])
    folder.rewind()
    assert folder.read_rounds() == []
    assert contents(folder).keys() == {*before, "checkpoint/state.json"}
    play(folder, 1)
    fresh = contents(folder)
    assert fresh["clients.csv"].splitlines()[0].decode() == ",".join(CLIENT_COLUMNS)
    assert set(before) < set(fresh)


def test_rewinding_keeps_the_methods_that_are_done(folder):
    play(folder, 1, "flora")
    play(folder, 2, "flora")
    before = contents(folder)
    folder.record_round({"method": "feddlp", "round": 1}, [{"client": 0}])
    folder.rewind()
    assert contents(folder) == before
    play(folder, 1)
    folder.record_round({"method": "feddlp", "round": 2}, [{"client": 0}])
    folder.rewind()
    assert played(folder) == [("flora", 1), ("flora", 2), ("feddlp", 1)]


def test_rewinding_what_is_whole_changes_nothing(folder):
    for number in (1, 2):
        play(folder, number)
    before = contents(folder)
    folder.rewind()
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.csv"])
def test_records_shorter_than_the_checkpoint_says_are_named(folder, name):
    play(folder, 1)
    path = folder.path / name
    for content in (path.read_bytes()[:-1], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} (is damaged \(\d+ bytes,|cannot be read \(No such file)"):
            folder.rewind()


# Crashes


class Crash(BaseException):
    """The process dies here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Die in the middle of the given write, half of it done."""
    writes = count(1)

    def dying(path: Path, content: Any, real: Any, opening: str) -> None:
        if next(writes) != moment:
            return real(path, content)
        with (path if opening.startswith("a") else path.with_name(path.name + ".tmp")).open(opening) as file:
            file.write(content[: len(content) // 2])
        raise Crash

    for name, opening in (("append", "a"), ("write_whole", "wb")):
        real = getattr(files, name)
        monkeypatch.setattr(files, name, lambda path, content, r=real, o=opening: dying(path, content, r, o))


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_a_crash_during_any_write_of_a_round_leaves_the_round_before(tmp_path, monkeypatch, moment, first):
    undisturbed, folder = (RunFolder.create(tmp_path, name, "") for name in ("undisturbed", "disturbed"))
    for number in range(1, first + 2):
        play(undisturbed, number)
    for number in range(1, first + 1):
        play(folder, number)
    with monkeypatch.context() as patch:
        crash_at(patch, moment)
        with pytest.raises(Crash):
            play(folder, first + 1)
    folder.rewind()
    assert len(folder.read_rounds()) == first
    if first:
        assert_loads(folder, first)
    else:
        assert folder.load_checkpoint("feddlp") is None
    play(folder, first + 1)
    assert contents(folder) == contents(undisturbed)


def test_a_crash_before_the_state_is_replaced_leaves_the_checkpoint_before(folder, monkeypatch):
    play(folder, 1)
    replace = Path.replace

    def dying(path: Path, target: Path) -> Path:
        if target.name == "state.json":
            raise Crash
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Crash):
            play(folder, 2)
    assert_loads(folder, 1)
    folder.rewind()
    assert played(folder) == [("feddlp", 1)]
    play(folder, 2)
    assert_loads(folder, 2)
    assert not [path for path in contents(folder) if path.endswith(".tmp")]


def test_a_crash_before_old_tensors_are_removed_keeps_the_new_checkpoint(folder, monkeypatch):
    play(folder, 1)

    def dying(path: Path, missing_ok: bool = False) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        with pytest.raises(Crash):
            play(folder, 2)
    folder.rewind()
    assert_loads(folder, 2)
    assert len(folder.read_rounds()) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
