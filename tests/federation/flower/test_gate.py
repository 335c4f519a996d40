"""Who may ask a SuperLink for what."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from feddlp.federation.flower import gate

FLEET, OTHERS = "/v1/fleet/pull-messages", ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/")


def asked(app, path, client, server="10.0.0.1", headers=()):
    """The status with which a request is answered."""
    heard = []
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": client and (client, 5000), "server": (server, 8000), "scheme": "https",
        "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}, "state": {},
    }  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        heard.append(message)

    asyncio.run(app(scope, receive, send))
    return next(message["status"] for message in heard if message["type"] == "http.response.start")


async def everything(scope, receive, send):
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


def test_what_is_asked_for_cannot_write_lines_of_its_own_into_the_log(caplog):
    assert asked(gate.Gate(everything), "/x\nERROR forged\x1b[2J", "10.0.0.9") == 403
    assert caplog.messages[0].count("\n") == 0
    assert "\x1b" not in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's own imports
def test_flowers_superlink_stands_behind_the_gate(monkeypatch, tmp_path):
    """What `feddlp federate link` serves: the real app, with its real paths."""
    served = []
    monkeypatch.setattr(gate.uvicorn, "run", lambda app, **options: served.append((app, options)))
    words = ["--insecure", "--isolation", "process", "--port", "8123", "--database", str(tmp_path / "link.db")]
    monkeypatch.setattr(sys, "argv", ["flower-superlink", *words])
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    gate.main()
    assert os.environ["FLWR_INTERNAL_GRPC_CONTROL_API"] == "0", "no second interface on a port of its own"
    ((app, options),) = served
    assert (options["port"], options["workers"], options["proxy_headers"]) == (8123, 1, False)
    paths = app.openapi()["paths"]
    control = [path for path in paths if path.startswith(("/v1/control", "/v1/runtime"))]
    fleet = [path for path in paths if path.startswith("/v1/fleet")]
    assert len(control) > 20
    assert len(fleet) > 5
    assert {asked(app, path, "10.0.0.9") for path in control} == {403}
    assert 403 not in {asked(app, path, "10.0.0.9") for path in fleet}
    assert 403 not in {asked(app, path, "127.0.0.1") for path in control}
