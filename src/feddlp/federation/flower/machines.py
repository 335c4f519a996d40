"""Flower's programs for real machines, each with the options that a federation needs.

Without certificates they speak to this machine alone, unless somebody says that it is to be insecure.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from feddlp.errors import UserError
from feddlp.federation.flower import bindings, limits
from feddlp.federation.flower.control import Control
from feddlp.federation.flower.keys import parse_address, subject_name
from feddlp.federation.flower.processes import environment, program, write_settings
from feddlp.federation.flower.settings import read_settings
from feddlp.files import make_folder, write_whole

Command = tuple[list[str], dict[str, str]]
ONCE = """#!/bin/sh
"exec" "{}" "$0" "$@"
from feddlp.federation.flower.once import main
main()
"""


class Trust(NamedTuple):
    """Certificates, or the knowledge that there are none."""

    keys: Path | None

    def file(self, name: str) -> str:
        """The path of a file of the folder; raises UserError if it is missing, or private keys are open to others."""
        assert self.keys is not None
        path = self.keys.absolute() / name
        if not path.is_file():
            raise UserError(f"--keys {self.keys} has no {name}; make it with: feddlp keys, or bring it here")
        for key in sorted(path.parent.glob("*.key")) if path.suffix == ".key" else ():
            if key.is_file() and key.stat().st_mode & 0o077:
                raise UserError(f"{key} is a private key that other users may read; close it with: chmod 600 {key}")
        return str(path)


def trust(address: str, keys: Path | None, insecure: bool, option: str = "--link") -> Trust:
    """What to trust when listening on or speaking to an address, such as "fl.example.org:8000".

    Args:
        option: where it comes from.

    Raises:
        UserError: another machine, without certificates.
    """
    host, _ = parse_address(address, option)
    if keys is None and not insecure and not is_loopback(host):
        raise UserError(
            f"{option} {host} is not this machine alone, and there are no certificates; make them with feddlp keys and "
            "give --keys DIR, or say --insecure"
        )
    return Trust(keys)


def listening_on(host: str, port: int) -> str:
    """HOST:PORT, where the two are given apart."""
    subject_name(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def link(address: str, trusted: Trust, place: Path) -> Command:
    """The SuperLink."""
    host, port = parse_address(address, "--host")
    check_free(host, port)
    make_folder(place)
    program("flower-superlink")  # or say how to get it: it is started with our gate before it
    command = [sys.executable, "-m", "feddlp.federation.flower.gate", "--host", host, "--port", str(port)]
    command += ["--disable-runtime-dependency-installation", "--database", str(place.absolute() / "link.db")]
    variables = environment(place.absolute() / "flwr")
    if trusted.keys is None:
        command.append("--insecure")
    else:
        variables[bindings.VARIABLE] = str(place.absolute() / bindings.FILE)
        command += ["--ssl-ca-certfile", trusted.file("ca.crt"), "--ssl-certfile", trusted.file("server.crt")]
        command += ["--ssl-keyfile", trusted.file("server.key"), "--enable-supernode-auth"]
    return command, variables


def check_free(host: str, port: int) -> None:
    """Refuse an address on which nobody can listen: it is taken, or is none of this machine's."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(where)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--host {host} --port {port}: {reason}; stop what listens there, or choose another") from error


def node(address: str, port: int, settings: Mapping[str, str], trusted: Trust, place: Path) -> Command:
    """A SuperNode.

    Args:
        port: of this machine, for Flower's own use.
        settings: its node-config; see `settings`.

    Raises:
        UserError: settings with which it could not work.
    """
    try:
        read_settings(settings, {}, limits.CLIENTS).check()
    except UserError as error:
        raise UserError(re.sub(r"node-config: ([a-z-]+)=", r"--\1 ", str(error))) from error
    file = write_settings(place.absolute() / f"node-{port}.toml", {key: text for key, text in settings.items() if text})
    command = [program("flower-supernode"), "--superlink", address, "--port", str(port), "--node-config", str(file)]
    if trusted.keys is None:
        command.append("--insecure")
    else:
        if not settings.get("name"):
            raise UserError(f"--keys {trusted.keys} needs --name, the name of this node's key")
        command += ["--root-certificates", trusted.file("ca.crt")]
        command += ["--auth-supernode-private-key", trusted.file(f"{settings['name']}.key")]
    variables = environment(place.absolute() / "flwr")
    script = place.absolute() / "bin" / "flwr-clientapp"
    make_folder(script.parent)
    write_whole(script, ONCE.format(sys.executable).encode())
    script.chmod(0o700)
    return command, variables | {"PATH": f"{script.parent}{os.pathsep}{variables['PATH']}"}


def control(address: str, trusted: Trust, place: Path) -> Control:
    """What tells a SuperLink what to do."""
    return Control(place, address, Path(trusted.file("ca.crt")) if trusted.keys else None)
