"""The SuperLink with a gate: other machines reach what nodes need, and nothing else.

Flower serves three interfaces on one port. /v1/fleet is for nodes, who prove who they are with their keys. /v1/control
starts runs and lets nodes in, and /v1/runtime is for the processes that play them; both ask for no key, and a run is
code that every node executes. So a site that may speak to the server could run what it likes on all the others. Here
these two answer the server's own machine alone, and no web page that is open on it; who works from another machine
comes through an SSH tunnel. Bodies are bounded before Flower reads them, and so are connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import resource
from base64 import b64decode
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import uvicorn
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.logger import console_handler
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.main import create_app
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from feddlp.federation.flower import limits
from feddlp.federation.flower.keys import hosts_of, read_certificate
from feddlp.federation.flower.processes import ONE_PORT

FLEET, HEALTH = "/v1/fleet/", "/health"
FORWARDED = {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"}
OWN_SITE = (b"none", b"same-origin")
ELSEWHERE = "only the server's own machine may start runs and let nodes in (from elsewhere: an SSH tunnel to it)"
OTHER_NAME = "the server is not called that; use localhost, its address or a name of its certificate"
WEB_PAGE = "requests of web pages are not answered"
log = logging.getLogger("feddlp")


class Gate:
    """Passes on what is for nodes, and what comes from this machine; of either, no more than `limits` allow.

    Args:
        names: of this machine, beside localhost and the address that a request is sent to.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()):
        self.app, self.names, self.held = app, {"localhost", *map(str.lower, names)}, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        body, sizes = deque[Message](), list[int]()

        async def again() -> Message:
            return body.popleft() if body else await receive()

        try:
            self.check(scope)
            await self.read(scope, receive, body, sizes)
            await self.app(scope, again, send)
        except HTTPException as refusal:
            who, why = (scope.get("client") or ["somebody"])[0], refusal.detail
            log.warning("%s was refused %r: %s", who, scope["path"], why)
            await PlainTextResponse(why, refusal.status_code, {"connection": "close"})(scope, receive, send)
        finally:
            self.held -= sum(sizes)

    def check(self, scope: Scope) -> None:
        """Raise HTTPException for what is not for the one who asks."""
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        if any(name == b"origin" or (name == b"sec-fetch-site" and site not in OWN_SITE) for name, site in headers):
            raise HTTPException(403, WEB_PAGE)
        if not is_for_nodes(scope["path"]):
            if not is_from_here(scope):
                raise HTTPException(403, ELSEWHERE)
            if not all(self.is_own(host.decode("latin-1"), scope) for name, host in headers if name == b"host"):
                raise HTTPException(403, OTHER_NAME)

    def is_own(self, host: str, scope: Scope) -> bool:
        """Whether this machine is called so; any other name may be one that somebody else has it resolve to."""
        name = re.sub(r":\d*$", "", host.lower()).strip("[]")
        try:
            found = address_of(name)
        except ValueError:
            return name in self.names
        return found.is_loopback or name in self.names or found == address_of(scope["server"][0])

    async def read(self, scope: Scope, receive: Receive, body: deque[Message], sizes: list[int]) -> None:
        """Take a request's body and the sizes of its parts; raise HTTPException where it is too large or too slow."""
        told = sum(int(size) for name, size in scope["headers"] if name == b"content-length" and size.isdigit())
        most, within = limits.STRANGERS_BODY if is_for_nodes(scope["path"]) else limits.BODY
        if told > most and await asyncio.to_thread(is_signed, scope):  # Flower's nodes say how long a body is
            most, within = limits.BODY
        try:
            async with asyncio.timeout(within):
                while max(told, sum(sizes)) <= most and self.held <= limits.BODIES:
                    if body and not body[-1].get("more_body"):
                        return
                    body.append(await receive())
                    sizes.append(len(body[-1].get("body", b"")))
                    self.held += sizes[-1]
        except TimeoutError:
            raise HTTPException(408, f"its body did not come within {within:g} s") from None
        if max(told, sum(sizes)) > most:
            raise HTTPException(413, f"a body of more than {most:,} bytes is not read")
        raise HTTPException(503, "too much is being read; try again")


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


def is_signed(scope: Scope) -> bool:
    """Whether a node that the SuperLink knows has signed a request; Flower itself looks only once it has read it."""
    headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
    try:
        key, signature = (
            b64decode(headers[name], validate=True)
            for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
        )
        if verify_signature(bytes_to_public_key(key), headers[TIMESTAMP_HEADER], signature):
            return scope["app"].state.linkstate_factory.state().get_node_id_by_public_key(key) is not None
    except Exception as error:  # whatever a stranger wrote there
        log.debug("%s", error)
    return False


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


class Connection(H11Protocol):
    """A connection that is closed where no whole request header comes in time, or where there are too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(limits.SILENCE, self.end_silence, None)
        self.origin = origin_of(self.client)
        others = [one.origin for one in self.connections if isinstance(one, Connection) and one.origin]
        if self.origin and (len(others) > limits.CONNECTIONS or others.count(self.origin) > limits.OF_ONE_MACHINE):
            log.warning("a connection of %s was closed: there are too many", self.client)
            transport.abort()

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()
        self.loop.call_later(limits.SILENCE, self.end_silence, answered)

    def end_silence(self, last: RequestResponseCycle | None) -> None:
        """Close it where no request has begun since the last one, and make an end of it where nobody listens."""
        if self.cycle is last:
            self.transport.close()
            self.loop.call_later(limits.BODY[1], self.transport.abort)


def origin_of(client: tuple[str, int] | None) -> bytes | None:
    """The machine at the other end, or its network of IPv6; None for this machine."""
    found = address_of(client[0]) if client else None
    return found.packed[:8] if found and not found.is_loopback else None


def main() -> None:
    """As `flower-superlink`, with its options."""
    os.environ.update(ONE_PORT)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    config = _parse_superlink_lifespan_config()
    app = create_app(config, SuperLinkLifespan)
    names = hosts_of(read_certificate(Path(config.ssl_certfile))) if config.ssl_certfile else []
    app.add_middleware(Gate, names=[config.host, *names])
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        http=Connection,
        ws="none",
        timeout_keep_alive=int(limits.SILENCE),
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        workers=1,
        proxy_headers=False,  # the address is that of the connection
    )


if __name__ == "__main__":
    ours = logging.StreamHandler()
    ours.setFormatter(logging.Formatter("feddlp: %(message)s"))
    log.addHandler(ours)
    main()
