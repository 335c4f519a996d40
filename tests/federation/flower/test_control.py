"""What a SuperLink is told, with a program in the place of Flower's command."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddlp.errors import UserError
from feddlp.federation.flower import bindings, control
from feddlp.federation.flower.control import Control, refusal
from feddlp.federation.flower.envelopes import RefusedError

FLWR = """#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "heard").open("a") as heard:
    print(json.dumps(sys.argv[1:]), file=heard)
said = json.loads((here / "says").read_text()).get(sys.argv[1], "")
print(said if isinstance(said, str) else json.dumps(said), end="")
sys.exit(not said or "success" in said and not said["success"])
"""


class Flower:
    """Flower's command: what it says to its first word, and what it heard."""

    def __init__(self, folder):
        self.folder, self.program = folder, folder / "flwr"
        self.program.write_text(FLWR.format(python=sys.executable))
        self.program.chmod(0o755)

    def says(self, **words):
        (self.folder / "says").write_text(json.dumps(words))

    @property
    def heard(self):
        return [json.loads(line) for line in (self.folder / "heard").read_text().splitlines()]


def run(number, status, details="N/A"):
    return {"run-id": number, "status": status, "status-details": details}


@pytest.fixture
def flower(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    found = Flower(tmp_path / "bin")
    monkeypatch.setattr(control, "program", lambda name: str(found.program))
    monkeypatch.setattr(control, "SETTLED_WITHIN", 0.0)
    return found


@pytest.fixture
def link(tmp_path):
    return Control(tmp_path / "place", "fl.example.org:8000", tmp_path / "ca.crt")


def test_a_run_is_submitted_with_whatever_its_configuration_holds(flower, link):
    flower.says(run={"success": True, "run-id": "7"})
    assert link.submit({"configuration": 'name = "a b"\n[data]\n'}, "--more") == "7"
    (words,) = flower.heard
    _, app, name, _, settings, *more = words
    assert (name, more) == ("feddlp", ["--more", "--format", "json"])
    assert tomllib.loads(Path(settings).read_text()) == {"configuration": 'name = "a b"\n[data]\n'}
    assert "feddlp_flower.server:app" in (Path(app) / "pyproject.toml").read_text()
    connection = tomllib.loads((link.home / "config.toml").read_text())["superlink"]["feddlp"]
    assert connection == {"address": "fl.example.org:8000", "root-certificates": str(link.root_certificates)}


STREAM = """Using SuperLink: feddlp (x)
\x1b[92mINFO \x1b[0m:      Starting logstream
Successfully installed feddlp-flower
run folder: runs/x
round 1/1
"""
WARNING = "\x1b[93mWARNING \x1b[0m:   low on memory\n"
FAILURE = "\x1b[91mERROR \x1b[0m:     feddlp: error: too few\nAn unhandled exception occurred in the ServerApp.\n"


def test_what_the_server_says_is_shown_and_nothing_else(flower, link):
    flower.says(
        log=STREAM + WARNING, ls={"success": True, "runs": [run("6", "running"), run("7", "finished:completed")]}
    )
    lines = []
    link.watch("7", lines.append)
    assert lines == ["run folder: runs/x", "round 1/1", WARNING.rstrip()]


WAITS = """#!{python}
import sys, time
from pathlib import Path
print("waiting for client 1\\n", end="")
end = time.monotonic() + 5
while not (seen := Path(__file__).with_name("seen").exists()) and time.monotonic() < end:
    time.sleep(0.01)
print("in time" if seen else "too late")
"""


def test_what_the_server_says_is_shown_at_once(flower, link, monkeypatch):
    """Though Flower's command prints into a pipe, and flushes nothing."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    flower.program.write_text(WAITS.format(python=sys.executable))
    lines = []
    for line in link._lines("7"):
        (flower.folder / "seen").touch()
        lines.append(line)
    assert lines == ["waiting for client 1\n", "in time\n"]


@pytest.mark.parametrize(
    ("status", "details", "error", "said"),
    [
        ("finished:failed", "ServerApp failed with exception: feddlp: error: too few", UserError, "^too few$"),
        ("finished:failed", "ServerApp failed with exception: 'x'", RuntimeError, "run 7 is finished:failed: .*'x'"),
        ("finished:stopped", "", UserError, "was stopped; go on with: feddlp federate run --resume RUN"),
        ("running", "", UserError, "run 7 goes on, but its server is heard no more"),
    ],
)
def test_a_run_that_failed_ends_in_one_line(flower, link, status, details, error, said):
    flower.says(log=STREAM + FAILURE, ls={"success": True, "runs": [run("7", status, details)]})
    lines = []
    with pytest.raises(error, match=said):
        link.watch("7", lines.append)
    assert lines == ["run folder: runs/x", "round 1/1"]


def test_what_is_under_way_is_stopped_and_nothing_else(flower, link):
    states = ("running", "finished:completed", "pending", "starting", "finished:failed")
    runs = [run(str(number), state) for number, state in enumerate(states)]
    flower.says(ls={"success": True, "runs": runs}, stop={"success": False, "error-message": "no"})
    with pytest.raises(UserError, match="0, 2, 3 cannot be stopped"):
        link.stop()
    assert [words[1] for words in flower.heard if words[0] == "stop"] == ["0", "2", "3"]
    flower.says(ls={"success": True, "runs": runs[1::3]})
    assert link.stop() == []


def test_a_node_is_let_in_with_its_clients_and_put_out_again(flower, link, tmp_path):
    for node, clients in ((7, (0, 1)), (8, (2,))):
        (tmp_path / "ward.pub").write_text(f"ecdsa-sha2-nistp384 AAAA{node} ward")
        flower.says(supernode={"success": True, "node-id": node})
        assert link.register(tmp_path / "ward.pub", clients) == str(node)
    file = str(link.place / bindings.FILE)
    assert json.loads(Path(file).read_text())["clients"] == {"7": [0, 1], "8": [2]}
    bindings.check_bound(file, 7, (1,))
    link.unregister("7")
    assert flower.heard[-1][:3] == ["supernode", "unregister", "7"]
    assert json.loads(Path(file).read_text())["clients"] == {"8": [2]}


def key_file(folder, name, content):
    (folder / f"{name}.pub").write_text(f"ecdsa-sha2-nistp384 {content} {name}\n")
    return str(folder / f"{name}.pub")


def supernodes(**status):
    return {"success": True, "node-id": "9", "nodes": [{"node-id": n[1:], "status": s} for n, s in status.items()]}


def test_a_key_that_is_registered_again_only_changes_its_clients(flower, link, tmp_path):
    flower.says(supernode={"success": True, "node-id": 7})
    key = tmp_path / "ward.pub"
    key_file(tmp_path, "ward", "AAAA")
    link.register(key, (0,))
    flower.says(supernode=supernodes(n7="online"))
    key.write_text("ecdsa-sha2-nistp384 AAAA\n")
    assert link.register(key, (1,)) == "7"
    assert [words[1] for words in flower.heard] == ["register", "ls"]
    assert bindings.known(link.place / bindings.FILE).clients == {"7": [1]}


@pytest.mark.parametrize("left", [{}, {"n7": "unregistered"}])
def test_a_key_whose_node_flower_does_not_have_is_registered_as_a_new_one(left, flower, link, tmp_path):
    key = Path(key_file(tmp_path, "ward", "AAAA"))
    flower.says(supernode={"success": True, "node-id": 7})
    link.register(key, (0,))
    flower.says(supernode=supernodes(**left))
    assert link.register(key, (1,)) == "9"
    assert bindings.known(link.place / bindings.FILE).clients == {"9": [1]}


def test_clients_that_another_key_holds_are_named_with_commands_that_work(flower, feddlp, tmp_path):
    feddlp("keys", "server", "--host", "localhost", "--out", "my keys")
    options = ("--keys", "my keys", "--link", "localhost:81")
    for node, name, clients, warned in ((7, "a", "0-1", False), (8, "b", "2", False), (9, "c", "1", True)):
        flower.says(supernode={"success": True, "node-id": node})
        *warning, last = feddlp(
            "federate", "register", key_file(tmp_path, name, name), "--clients", clients, *options
        ).out.splitlines()
        put_out = f"feddlp federate unregister {node} --link localhost:81 --keys 'my keys'"
        assert last == f"{name} may join with clients {clients}; to unregister it: {put_out}"
        put_out = put_out.replace(str(node), "7")
        assert (
            warning
            == [f"warning: a (clients 0-1) is registered for some of these, too. If c replaces it: {put_out}"] * warned
        )
    flower.says(supernode={"success": True})
    assert feddlp(*shlex.split(put_out)[1:]).out == "node 7 is put out\n"


def test_the_command_that_keys_node_prints_registers_it(flower, feddlp):
    said = feddlp("keys", "node", "a", "--out", "my keys").out
    feddlp("keys", "server", "--host", "localhost", "--out", "my keys")
    command, found = said.partition("register it with: ")[2].partition(" --clients N ")[:2]
    assert found
    flower.says(supernode={"success": True, "node-id": 7})
    assert "a may join with clients 0;" in feddlp(*shlex.split(command)[1:], "--clients", "0").out


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9), min_size=1))
def test_a_node_holds_the_clients_of_its_key_and_no_others(held, claimed):
    with TemporaryDirectory() as folder:
        file = Path(folder) / bindings.FILE
        bindings.check_bound("", 7, claimed)  # where there are no keys
        with pytest.raises(RefusedError, match=rf"for client {min(claimed)}; register it again"):
            bindings.check_bound(str(file), 7, claimed)  # nobody is registered yet
        bindings.bind(Path(folder), "7", held)
        with nullcontext() if claimed <= held else pytest.raises(RefusedError, match="not registered for client"):
            bindings.check_bound(str(file), 7, claimed)
        with pytest.raises(RefusedError):
            bindings.check_bound(str(file), 8, claimed)


def test_a_key_that_is_not_there_is_named(flower, link, tmp_path):
    with pytest.raises(UserError, match=r"ward.pub is not there; the node makes it with: feddlp keys node NAME"):
        link.register(tmp_path / "ward.pub", (0,))


def test_a_secret_key_in_place_of_the_public_one_is_named(flower, link, tmp_path):
    (tmp_path / "ward.key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    with pytest.raises(UserError, match=r"ward.key is no public key; give the file NAME.pub"):
        link.register(tmp_path / "ward.key", (0,))


FLOWER_SAID = "Using SuperLink: feddlp (x:1)\n Listing all runs...\n\n"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            FLOWER_SAID + "Client error '403 Forbidden' for url",
            "it starts runs and lets nodes in from its own",
        ),
        (FLOWER_SAID + "Something is\n\x1b[91munheard\x1b[0m of.", "Something is unheard of."),
        (
            FLOWER_SAID + "Connection to the\nSuperLink is unavailable.",
            "nobody answers; is feddlp",
        ),
        (
            "Using SuperLink: feddlp (x:1)\n\n[code: 23] Public key already in use.",
            "Flower takes no key twice, also not after federate unregister; make a pair under another name",
        ),
        ("", "no answer"),
    ],
)
def test_a_refusal_is_one_line(flower, link, said, line):
    flower.says(ls={"success": False, "error-message": said})
    with pytest.raises(UserError) as caught:
        link.runs()
    assert str(caught.value).startswith(f"--link fl.example.org:8000: {line}")
    assert refusal(said).startswith(line)


def test_a_command_that_dies_is_one_line(flower, link):
    flower.says()
    with pytest.raises(UserError, match=r"fl.example.org:8000: no answer$"):
        link.runs()
