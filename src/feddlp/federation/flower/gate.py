"""The SuperLink with a gate: other machines reach what nodes need, and nothing else.

Flower serves three interfaces on one port. /v1/fleet is for nodes, who prove who they are with their keys. /v1/control
starts runs and lets nodes in, and /v1/runtime is for the processes that play them; both ask for no key, and a run is
code that every node executes. So a site that may speak to the server could run what it likes on all the others. Here
these two answer the server's own machine alone; who works from another one comes through an SSH tunnel.
"""

from __future__ import annotations

import ipaddress
import logging
import os

import uvicorn
from flwr.common.logger import console_handler
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.main import create_app
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from feddlp.federation.flower.processes import ONE_PORT

FLEET, HEALTH = "/v1/fleet/", "/health"
FORWARDED = {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"}
REFUSAL = "only the server's own machine may start runs and let nodes in (from elsewhere: an SSH tunnel to it)"
log = logging.getLogger("flwr")


class Gate:
    """Passes on what is for nodes, and what comes from this machine."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_for_nodes(scope["path"]) or is_from_here(scope):
            await self.app(scope, receive, send)
            return
        log.warning("%s was refused %r: %s", (scope.get("client") or ["somebody"])[0], scope["path"], REFUSAL)
        await PlainTextResponse(REFUSAL, status_code=403)(scope, receive, send)


def is_for_nodes(path: str) -> bool:
    return path.startswith(FLEET) or path == HEALTH


def is_from_here(scope: Scope) -> bool:
    """Whether a request comes over the loopback interface or from the address that it is sent to, and from no proxy."""
    if any(name.lower() in FORWARDED for name, _ in scope.get("headers", ())):
        return False
    try:
        client, server = (address_of(scope[end][0]) for end in ("client", "server"))
    except (KeyError, TypeError, ValueError):
        return False
    return client.is_loopback or client == server


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


def main() -> None:
    """As `flower-superlink`, with its options."""
    os.environ.update(ONE_PORT)
    config = _parse_superlink_lifespan_config()
    app = create_app(config, SuperLinkLifespan)
    app.add_middleware(Gate)
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        workers=1,
        proxy_headers=False,  # the address is that of the connection
    )


if __name__ == "__main__":
    main()
