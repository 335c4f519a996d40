"""What a server writes down is what a follower tells, each line once, whatever happened to the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakegrid import Listener
from feddlp.federation.flower.events import Follower, Recorder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def test_everything_is_told_once_and_passed_on(path):
    inner, listener = Listener(), Listener()
    follower, recorder = Follower(path, listener), Recorder(path, inner)
    follower.follow()  # there is nothing yet
    recorder.write("serving", 42)
    recorder.run_started(Path("/runs/demo"))
    recorder.method_started("feddlp", 3, 2, 0)
    follower.follow()
    recorder.stepped()
    recorder.warn("client 3 is late")
    recorder.round_finished({"round": 1})
    for _ in range(2):
        follower.follow()
    assert follower.server == 42
    assert listener.warnings == inner.warnings == ["client 3 is late"]
    assert [event for event, _ in listener.told] == ["run_started", "method_started", "stepped", "round_finished"]
    assert listener.told[-1] == inner.told[-1] == ("round_finished", ({"round": 1},))
    assert follower.ended is None
    recorder.write("failed", "no quorum")
    follower.follow()
    assert follower.ended == ("failed", "no quorum")


def test_half_a_line_waits_for_its_end(path):
    listener = Listener()
    follower = Follower(path, listener)
    recorder = Recorder(path, Listener())
    recorder.note("one")
    size = path.stat().st_size
    recorder.note("two")
    whole = path.read_bytes()
    path.write_bytes(whole[: size + 30])
    follower.follow()
    assert listener.notes == ["one"]
    path.write_bytes(whole)
    follower.follow()
    assert listener.notes == ["one", "two"]


def test_half_a_line_of_a_killed_server_is_no_harm_to_the_next(path):
    Recorder(path, Listener()).note("one")
    with path.open("a") as file:
        file.write('{"event": "no')
    listener = Listener()
    follower, recorder = Follower(path, listener), Recorder(path, Listener())
    recorder.note("two")
    follower.follow()
    assert listener.notes == ["two"]


def test_what_an_earlier_server_said_is_not_told_again(path):
    Recorder(path, Listener()).write("failed", "earlier")
    follower = Follower(path, Listener())
    follower.follow()
    assert follower.ended is None


def followed(path, content):
    """What a follower tells of these events, and how they ended."""
    path.unlink()
    listener = Listener()
    follower = Follower(path, listener)
    path.write_bytes(content)
    follower.follow()
    return listener.notes, follower.ended


def test_damage_costs_the_damaged_lines_alone(path):
    recorder = Recorder(path, Listener())
    recorder.note("one")
    recorder.note("two")
    recorder.write("finished")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        left = [line for line in lines if line in bytes(damaged).splitlines(keepends=True)]
        notes, ended = followed(path, damaged)
        assert notes == [name for name, line in zip(("one", "two"), lines, strict=False) if line in left]
        assert ended == (("finished", "") if lines[2] in left else None)


def test_a_name_that_is_no_text_stops_nothing(path):
    Recorder(path, Listener()).note("caf\udce9.png is left out")
    assert followed(path, path.read_bytes())[0] == ["caf?.png is left out"]
