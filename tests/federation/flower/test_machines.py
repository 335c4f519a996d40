"""Flower's programs for real machines: what is refused before they begin."""

from __future__ import annotations

import re
import socket

import pytest

from feddlp.errors import UserError
from feddlp.federation.flower import machines
from feddlp.federation.flower.bindings import VARIABLE
from feddlp.federation.flower.keys import parse_address
from feddlp.federation.flower.machines import Trust, link, node, trust
from feddlp.federation.flower.processes import free_ports

NOBODY = Trust(None)


@pytest.fixture
def settings(tmp_path):
    return {"clients": "0", "state-dir": str(tmp_path / "state")}


def test_a_node_gets_its_settings_as_they_were_said(settings, tmp_path):
    command, variables = node("127.0.0.1:8000", 9094, {**settings, "data": "digits", "name": ""}, NOBODY, tmp_path)
    assert command[-1] == "--insecure"
    assert "name" not in (tmp_path / "node-9094.toml").read_text()
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"clients": "0-x"}, "--clients 0-x is no list of clients"),
        ({"data": "photos"}, "photos"),
        ({"data": "folder:/nowhere"}, "cannot read the folder /nowhere"),
        ({"device": "gpu7"}, "gpu7 is not available here"),
        ({"state-dir": "/dev/null"}, "state-dir: /dev/null"),
    ],
)
def test_what_a_node_could_not_work_with_is_refused_at_once(words, said, settings, tmp_path):
    with pytest.raises(UserError) as caught:
        node("127.0.0.1:8000", 9094, {**settings, **words}, NOBODY, tmp_path / "place")
    assert said in str(caught.value)
    assert not (tmp_path / "place").exists()


def test_the_servers_of_runs_learn_where_keys_are_bound_to_clients(tmp_path):
    for name in ("ca.crt", "server.crt", "server.key"):
        (tmp_path / name).touch(0o600)
    port = free_ports(1)[0]
    _, variables = link(f"127.0.0.1:{port}", Trust(tmp_path), tmp_path / "place")
    assert variables[VARIABLE] == str(tmp_path / "place" / "clients.json")
    assert VARIABLE not in link(f"127.0.0.1:{port}", NOBODY, tmp_path / "place")[1]


def test_an_address_that_cannot_be_listened_on_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host 127.0.0.1 --port {port}: address already in use"):
            link(f"127.0.0.1:{port}", NOBODY, tmp_path / "place")
    with pytest.raises(UserError, match=r"--host 192.0.2.1 --port 8000: cannot assign requested address"):
        link("192.0.2.1:8000", NOBODY, tmp_path / "place")
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("fl.example.org:8000", "--link fl.example.org is not this machine alone"),
        ("0.0.0.0:8000", "--link 0.0.0.0 is not this machine alone"),
    ],
)
def test_another_machine_needs_certificates(address, said):
    with pytest.raises(UserError, match=said):
        trust(address, None, False)


def test_this_machine_needs_none_and_others_if_somebody_says_so():
    for address in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000"):
        assert trust(address, None, False) == NOBODY
    assert trust("fl.example.org:8000", None, True) == NOBODY
    with pytest.raises(UserError, match=r"has no ca.crt; make it with: feddlp keys"):
        machines.control("fl.example.org:8000", Trust(machines.Path("/nowhere")), machines.Path("here"))


@pytest.mark.parametrize(
    "address",
    [
        "nonsense", "", ":", ":8000", "fl:", "fl", "fl:0", "fl:65536", "fl:99999", "fl:-1", "fl:+80", "fl:8_0", "fl:٨٠",
        " fl:80", "fl :80", "fl: 80", "fl:80 ", "fl:80\n", "http://fl:8000", "https://fl:8000/", "fl:80/x", "a@fl:80",
        "::1:8000", "::1", "fe80::1", "[::1]", "[::1]8000", "[fl]:80", "[10.0.0.1]:80", "[::1:8000", "[]:80", "[:]:80",
        "10.0.0.256:80", "1.2.3:80", "-fl:80", "fl..org:80", "fl.:80", f"{'a' * 64}:80", "fl:80:80",
    ],
)  # fmt: skip
@pytest.mark.parametrize("insecure", [False, True])
def test_what_is_no_address_is_refused_with_the_right_form(address, insecure):
    with pytest.raises(UserError) as caught:
        trust(address, None, insecure)
    shown = repr(address) if {*address} & {*" \n"} or not address else address
    assert str(caught.value).startswith(f"--link {shown} is no address; write HOST:PORT, as ")
    assert "[::1]:8000" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "host"),
    [("fl:1", "fl"), ("my_server:65535", "my_server"), ("10.0.0.7:08000", "10.0.0.7"), ("[fe80::1]:80", "fe80::1")],
)
def test_what_is_an_address_is_taken_apart(address, host):
    assert parse_address(address, "--link") == (host, int(address.rpartition(":")[2]))


@pytest.mark.parametrize("host", ["fl:8000", "http://fl", "", " ", "[fl]", "0.0.0.0/0", "*"])
def test_what_is_no_host_is_refused(host):
    with pytest.raises(UserError, match=r"--host .* is no host name or IP address; write it without https://, port"):
        machines.listening_on(host, 8000)


def test_a_host_may_be_of_ipv6():
    assert [machines.listening_on(host, 80) for host in ("::", "0.0.0.0", "fl")] == ["[::]:80", "0.0.0.0:80", "fl:80"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
@pytest.mark.parametrize("key", ["a.key", "server.key", "ca.key", "b.key"])
@pytest.mark.parametrize("side", ["link", "node"])
def test_a_private_key_that_others_may_read_is_refused(side, key, mode, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "check_free", lambda *_: None)
    for name in ("ca.crt", "server.crt", "a.pub", "a.key", "b.key", "server.key", "ca.key"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o600 if name.endswith(".key") else 0o644)
    begin = {
        "link": lambda: link("127.0.0.1:8000", Trust(tmp_path), tmp_path / "place"),
        "node": lambda: node("127.0.0.1:8000", 9094, {**settings, "name": "a"}, Trust(tmp_path), tmp_path / "place"),
    }[side]
    assert begin()
    (tmp_path / key).chmod(mode)
    with pytest.raises(UserError) as caught:
        begin()
    (words,) = re.findall(r"chmod 600 (\S+)$", str(caught.value))
    assert words == str(tmp_path / key)
