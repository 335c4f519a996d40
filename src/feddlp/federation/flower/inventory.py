"""What a folder of keys holds: each file, for whom it is, until when; and what its owner should do about it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from feddlp.errors import UserError
from feddlp.federation.flower.keys import hosts_of, read_certificate, read_key

SOON = timedelta(days=30)
WHOSE = {"ca": "the private CA", "server": "the server"}  # every other key is a node's
RENEWAL = {
    "ca.crt": "make a new CA and server certificate with another --out, and give every node the new ca.crt",
    "server.crt": "renew it with: feddlp keys server --renew --out {folder}",
}
KINDS = {
    ".crt": ("certificate", read_certificate),
    ".key": ("private key", read_key),
    ".pub": ("public key", lambda file: load_ssh_public_key(file.read_bytes())),
}


class Entry(NamedTuple):
    """A file of the folder; `until` is "-" for what has no end, `trouble` empty where there is none."""

    file: str
    what: str
    until: str
    whom: str
    trouble: str = ""


def inventory(folder: Path, now: datetime) -> list[Entry]:
    """Everything that is there, by name; raises UserError if there is no such folder, or no key in it."""
    entries = [entry_of(file, now) for file in sorted(folder.glob("*.*")) if file.suffix in KINDS]
    if not entries:
        raise UserError(f"--out {folder} holds no keys; make some with: feddlp keys server --host NAME_OR_IP")
    return entries


def entry_of(file: Path, now: datetime) -> Entry:
    kind, read = KINDS[file.suffix]
    whom = WHOSE.get(file.stem, f"node {file.stem}")
    try:
        found = read(file)
    except (UserError, OSError, ValueError) as error:
        trouble = str(error) if isinstance(error, UserError) else f"{file} is damaged ({error})"
        return Entry(file.name, f"not a {kind}", "-", whom, trouble)
    if isinstance(found, x509.Certificate):
        until = found.not_valid_after_utc
        return Entry(file.name, f"certificate of {whom}", f"{until:%Y-%m-%d}", holders(found), expiry(file, until, now))
    mode = file.stat().st_mode & 0o777
    is_open = file.suffix == ".key" and mode & 0o077
    return Entry(
        file.name, kind, "-", whom, f"{file} is open to others (mode {mode:o}); chmod 600 {file}" if is_open else ""
    )


def holders(certificate: x509.Certificate) -> str:
    try:
        return ", ".join(hosts_of(certificate))
    except x509.ExtensionNotFound:  # the CA's
        return "all nodes"


def expiry(file: Path, until: datetime, now: datetime) -> str:
    if until > now + SOON:
        return ""
    when = f"expires in {(until - now).days} days" if until > now else f"expired on {until:%Y-%m-%d}"
    return f"{file} {when}; {RENEWAL.get(file.name, 'remove it').format(folder=file.parent)}"


def table(entries: list[Entry]) -> Iterator[str]:
    """Lines of a table, then one for each trouble."""
    rows = [("file", "what it is", "valid until", "for"), *(one[:4] for one in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield from (one.trouble for one in entries if one.trouble)
