"""What a folder of keys holds: each file, for whom it is, until when; and what its owner should do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

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


@dataclass(frozen=True)
class Entry:
    """A file of the folder; `until` is None for what has no end, `trouble` empty where there is none."""

    file: str
    what: str
    whom: str
    until: datetime | None = None
    trouble: str = ""


def inventory(folder: Path, now: datetime) -> list[Entry]:
    """Everything that is there, by name.

    Raises:
        UserError: there is no such folder, or no key in it.
    """
    files = sorted(folder.glob("*.*"))
    entries = [READERS[file.suffix](file, now) for file in files if file.suffix in READERS]
    if not entries:
        raise UserError(f"--out {folder} holds no keys; make some with: feddlp keys server --host NAME_OR_IP")
    return entries


def certificate(file: Path, now: datetime) -> Entry:
    try:
        found = read_certificate(file)
        whom = ", ".join(hosts_of(found))
    except UserError as error:
        return Entry(file.name, "not a certificate", "", trouble=str(error))
    except x509.ExtensionNotFound:
        whom = "all nodes"
    what = "certificate of " + WHOSE.get(file.stem, file.stem)
    until = found.not_valid_after_utc
    return Entry(file.name, what, whom, until, expiry(file, until, now))


def expiry(file: Path, until: datetime, now: datetime) -> str:
    if until > now + SOON:
        return ""
    when = f"expires in {(until - now).days} days" if until > now else f"expired on {until:%Y-%m-%d}"
    way_out = RENEWAL.get(file.name, "remove it").format(folder=file.parent)
    return f"{file} {when}; {way_out}"


def private_key(file: Path, now: datetime) -> Entry:
    whom = WHOSE.get(file.stem, f"node {file.stem}")
    try:
        read_key(file)
    except UserError as error:
        return Entry(file.name, "not a private key", whom, trouble=str(error))
    mode = file.stat().st_mode & 0o777
    trouble = f"{file} is open to others (mode {mode:o}); chmod 600 {file}" if mode & 0o077 else ""
    return Entry(file.name, "private key", whom, trouble=trouble)


def public_key(file: Path, now: datetime) -> Entry:
    whom = f"node {file.stem}"
    try:
        load_ssh_public_key(file.read_bytes())
    except (OSError, ValueError) as error:
        return Entry(file.name, "not a public key", whom, trouble=f"{file} is damaged ({error})")
    return Entry(file.name, "public key", whom)


READERS = {".crt": certificate, ".key": private_key, ".pub": public_key}


def table(entries: list[Entry]) -> Iterator[str]:
    """Lines of a table, then one for each trouble."""
    head = ("file", "what it is", "valid until", "for")
    rows = [head, *((one.file, one.what, day(one.until), one.whom) for one in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield from (one.trouble for one in entries if one.trouble)


def day(until: datetime | None) -> str:
    return f"{until:%Y-%m-%d}" if until else "-"
