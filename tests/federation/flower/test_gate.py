"""Who may ask a SuperLink for what."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from base64 import b64encode
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
import uvicorn
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message

from feddlp.federation.flower import gate, limits
from feddlp.federation.flower.keys import make_server

FLEET, OTHERS = "/v1/fleet/pull-messages", ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/")


def scope_of(path, client, server="10.0.0.1", headers=()):
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": client and (client, 5000), "server": (server, 8000), "scheme": "https",
        "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}, "state": {},
    }  # fmt: skip


def status_of(app, scope, receive):
    """The status with which a request is answered."""
    heard = []

    async def send(message):
        heard.append(message)

    asyncio.run(app(scope, receive, send))
    return next(message["status"] for message in heard if message["type"] == "http.response.start")


def asked(app, path, client, server="10.0.0.1", headers=(), parts=(b"",), pause=0.0):
    left = list(parts)

    async def receive():
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

    return status_of(app, scope_of(path, client, server, headers), receive)


async def everything(scope, receive, send):
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("client", ["10.0.0.9", "::ffff:10.0.0.9", "2001:db8::9", None, "somewhere"])
def test_another_machine_reaches_what_nodes_need_and_nothing_else(client):
    app = gate.Gate(everything)
    assert [asked(app, path, client) for path in (FLEET, "/health")] == [200, 200]
    assert [asked(app, path, client) for path in OTHERS] == [403] * 4
    assert [asked(app, path, client) for path in ("/v1/fleet", "/x/v1/fleet/", "//v1/fleet/", "/healthz")] == [403] * 4


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:127.0.0.1", "::"),
    ],
)  # fmt: skip
def test_the_servers_own_machine_reaches_all(client, server):
    assert [asked(gate.Gate(everything), path, client, server) for path in (FLEET, *OTHERS)] == [200] * 5


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "x-real-ip"])
def test_what_a_proxy_of_this_machine_brings_is_not_from_here(header):
    headers = [(b"host", b"here"), (header.encode(), b"127.0.0.1")]
    app = gate.Gate(everything)
    assert [asked(app, path, "127.0.0.1", headers=headers) for path in (FLEET, *OTHERS)] == [200, *[403] * 4]


OTHER_NAMES = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.2:8000", "",
    "[2001:db8::9]:8000", "user@localhost", "localhost:8000:1", "0.0.0.0", "localhost,evil.example", "localhost x",
]  # fmt: skip
OWN_NAMES = [
    "localhost", "LocalHost:8000", "127.0.0.1:9", "127.1.2.3", "[::1]:8000", "[::ffff:127.0.0.1]:8000", "10.0.0.1:8000",
    "fl.example.org:8000", "FL.example.org",
]  # fmt: skip


@pytest.mark.parametrize(("hosts", "status"), [(OTHER_NAMES, 403), (OWN_NAMES, 200)])
@pytest.mark.parametrize("client", ["127.0.0.1", "10.0.0.1"])
def test_from_this_machine_the_server_is_called_by_a_name_of_its_own(hosts, status, client):
    """A web page may have its own name resolve to this machine; a browser then takes us for that page's server."""
    app = gate.Gate(everything, names=["fl.example.org"])
    for host in hosts:
        headers = [(b"host", host.encode())]
        assert {asked(app, path, client, headers=headers) for path in OTHERS} == {status}, host
        assert [asked(app, path, client, headers=headers) for path in (FLEET, "/health")] == [200, 200]
    two = [(b"host", b"localhost"), (b"host", hosts[0].encode())]
    assert asked(app, OTHERS[0], client, headers=two) == status


@pytest.mark.parametrize(
    "header",
    [
        (b"origin", b"http://localhost:8000"), (b"origin", b"null"), (b"origin", b""),
        (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-site", b"same-site"), (b"Origin", b"http://evil.example"),
    ],
)  # fmt: skip
def test_a_web_page_is_answered_nothing(header):
    headers = [(b"host", b"localhost:8000"), header]
    assert {asked(gate.Gate(everything), path, "127.0.0.1", headers=headers) for path in (FLEET, *OTHERS)} == {403}


def test_who_opens_the_documentation_in_a_browser_may():
    headers = [(b"host", b"localhost:8000"), (b"sec-fetch-site", b"none")]
    assert asked(gate.Gate(everything), "/docs", "127.0.0.1", headers=headers) == 200


@pytest.mark.parametrize(("path", "most"), [(OTHERS[0], limits.BODY[0]), (FLEET, limits.STRANGERS_BODY[0])])
def test_a_body_is_read_up_to_its_limit(path, most):
    app, part = gate.Gate(everything), b"x" * (most // 4)
    assert asked(app, path, "127.0.0.1", parts=[part] * 4) == 200
    assert asked(app, path, "127.0.0.1", parts=[part] * 4 + [b"x"]) == 413
    assert asked(app, path, "127.0.0.1", parts=[b"x" * (most + 1)]) == 413
    assert app.held == 0


@pytest.mark.parametrize(("signed", "more", "status"), [(True, 0, 200), (False, 0, 413), (True, 1, 413)])
def test_a_node_that_signs_may_send_more(signed, more, status, monkeypatch):
    monkeypatch.setattr(gate, "is_signed", lambda scope: signed)
    length = limits.BODY[0] + more
    headers = [(b"content-length", str(length).encode())]
    assert asked(gate.Gate(everything), FLEET, "10.0.0.9", headers=headers, parts=[b"x" * length]) == status


def test_no_more_of_a_body_is_read_than_its_limit():
    asked_for = []

    async def endless():
        asked_for.append(1)
        return {"type": "http.request", "body": b"x" * 2**20, "more_body": True}

    statuses = [status_of(gate.Gate(everything), scope_of(OTHERS[0], "127.0.0.1"), endless)]
    assert statuses == [413]
    assert len(asked_for) == limits.BODY[0] // 2**20 + 1


def test_a_body_that_is_said_to_be_too_long_is_not_read_at_all():
    async def never():
        pytest.fail("it was read")

    headers = [(b"content-length", str(limits.STRANGERS_BODY[0] + 1).encode())]
    assert status_of(gate.Gate(everything), scope_of(FLEET, "10.0.0.9", headers=headers), never) == 413


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(limits, "STRANGERS_BODY", (100, 0.05))
    assert asked(gate.Gate(everything), FLEET, "10.0.0.9", parts=[b"x"] * 9, pause=0.01) == 408
    assert asked(gate.Gate(everything), FLEET, "10.0.0.9", parts=[b"x"] * 2, pause=0.01) == 200


def test_all_bodies_together_are_bounded_and_forgotten_once_answered(monkeypatch):
    monkeypatch.setattr(limits, "BODIES", 100)
    inner = []

    async def asks_again(scope, receive, send):
        await receive()
        inner.append(await asyncio.to_thread(asked, app, FLEET, "10.0.0.9", parts=[b"x"]))
        await everything(scope, receive_nothing, send)

    async def receive_nothing():
        return {"type": "http.request", "more_body": False}

    app = gate.Gate(asks_again)
    assert asked(app, FLEET, "10.0.0.9", parts=[b"x" * 100]) == 200
    assert inner == [503]
    assert app.held == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("spoil", "known"),
    [
        ({}, True), ({"flwr-signature": b"AAAA"}, False), ({"flwr-timestamp": b"2026-01-01"}, False),
        ({"flwr-public-key": b"AAAA"}, False), ({"flwr-public-key": b"!"}, False), ({"flwr-signature": None}, False),
        ({"registered": None}, False),
    ],
)  # fmt: skip
def test_a_registered_node_signs_what_it_sends(spoil, known):
    private, public = generate_key_pairs()
    key, now = public_key_to_bytes(public), b"2026-11-28T10:00:00+00:00"
    headers = {
        "flwr-public-key": b64encode(key), "flwr-timestamp": now,
        "flwr-signature": b64encode(sign_message(private, now)),
        "registered": b"",
    } | spoil  # fmt: skip
    registered = {key} if headers.pop("registered") is not None else set()
    state = SimpleNamespace(get_node_id_by_public_key=lambda key: 7 if key in registered else None)
    app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: state)))
    pairs = [(name.encode(), value) for name, value in headers.items() if value is not None]
    assert gate.is_signed({**scope_of(FLEET, "10.0.0.9", headers=pairs), "app": app}) is known


@pytest.fixture
def served(monkeypatch):
    """A port on which requests are answered, and connections are bounded, as by `gate.main`."""
    monkeypatch.setattr(limits, "SILENCE", 0.4)
    monkeypatch.setattr(limits, "CONNECTIONS", 3)
    monkeypatch.setattr(limits, "OF_ONE_MACHINE", 2)
    listening = socket.create_server(("127.0.0.1", 0))
    options = uvicorn.Config(gate.Gate(everything), http=gate.Connection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "parts", [[], [b"GET /health"], [b"GET /health HTTP/1.1\r\n"] + [b"x: y\r\n"] * 20, [ASK], [ASK, ASK[:9]]]
)
def test_a_connection_that_brings_no_request_is_closed(served, parts):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", served), 5) as connection, suppress(ConnectionError):
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        while connection.recv(4096):
            pass
    assert 0.3 < time.monotonic() - began < 3


def test_a_connection_may_stay_while_it_brings_requests(served):
    with socket.create_connection(("127.0.0.1", served), 5) as connection:
        for _ in range(6):
            connection.sendall(ASK)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(0.15)


def test_connections_from_elsewhere_are_counted(served, monkeypatch):
    origins = [b"a", b"a", b"a", b"b", b"c", None]
    monkeypatch.setattr(gate, "origin_of", lambda client: origins.pop(0))
    answered = []
    with ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", served), 5))
            try:
                connection.sendall(ASK)
                answered.append(connection.recv(4096)[9:12])
            except ConnectionError:
                answered.append(b"")
    assert answered == [b"200", b"200", b"", b"200", b"", b"200"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False), ("10.0.0.1", "::ffff:10.0.0.1", True), ("2001:db8::1", "2001:db8::f:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)  # fmt: skip
def test_an_ipv6_network_counts_as_one_machine(one, other, same):
    assert (gate.origin_of((one, 1)) == gate.origin_of((other, 2))) is same
    assert gate.origin_of(("::1", 1)) is gate.origin_of(("127.0.0.1", 1)) is gate.origin_of(None) is None


def test_what_is_asked_for_cannot_write_lines_of_its_own_into_the_log(caplog):
    assert asked(gate.Gate(everything), "/x\nERROR forged\x1b[2J", "10.0.0.9") == 403
    assert caplog.messages[0].count("\n") == 0
    assert "\x1b" not in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's own imports
def test_flowers_superlink_stands_behind_the_gate(monkeypatch, tmp_path):
    """What `feddlp federate link` serves: the real app, with its real paths."""
    served = []
    monkeypatch.setattr(gate.uvicorn, "run", lambda app, **options: served.append((app, options)))
    make_server(tmp_path / "keys", ["fl.example.org"], 1)
    files = (("ssl-ca-certfile", "ca.crt"), ("ssl-certfile", "server.crt"), ("ssl-keyfile", "server.key"))
    words = [word for option, file in files for word in (f"--{option}", str(tmp_path / "keys" / file))]
    words += ["--isolation", "process", "--host", "here.example", "--port", "8123"]
    words += ["--database", str(tmp_path / "link.db")]
    monkeypatch.setattr(sys, "argv", ["flower-superlink", *words])
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    gate.main()
    assert os.environ["FLWR_INTERNAL_GRPC_CONTROL_API"] == "0", "no second interface on a port of its own"
    ((app, options),) = served
    assert (options["port"], options["workers"], options["proxy_headers"]) == (8123, 1, False)
    assert (options["http"], options["ws"]) == (gate.Connection, "none")
    paths = app.openapi()["paths"]
    control = [path for path in paths if path.startswith(("/v1/control", "/v1/runtime"))]
    fleet = [path for path in paths if path.startswith("/v1/fleet")]
    assert len(control) > 20
    assert len(fleet) > 5
    assert {asked(app, path, "10.0.0.9") for path in control} == {403}
    assert 403 not in {asked(app, path, "10.0.0.9") for path in fleet}
    assert 403 not in {asked(app, path, "127.0.0.1") for path in control}
    rebound, own = [(b"host", b"evil.example:8123")], [(b"host", b"127.0.0.1:8123")]
    assert {asked(app, path, "127.0.0.1", headers=rebound) for path in control} == {403}
    assert 403 not in {asked(app, path, "127.0.0.1", headers=own) for path in control}
    named = [[(b"host", name)] for name in (b"fl.example.org:8123", b"here.example")]
    assert 403 not in {asked(app, control[0], "127.0.0.1", headers=headers) for headers in named}
    assert {asked(app, path, "127.0.0.1", headers=[*own, (b"origin", b"null")]) for path in control} == {403}
    assert {asked(app, path, "10.0.0.9", parts=[b"x" * (limits.STRANGERS_BODY[0] + 1)]) for path in fleet} == {413}
