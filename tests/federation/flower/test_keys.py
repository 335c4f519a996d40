"""Certificates and keys as TLS, Flower, the file system and the person who typed the command see them."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import sys
import threading
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_public_key
from cryptography.x509 import verification
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feddlp import files
from feddlp.errors import UserError
from feddlp.federation.flower import keys
from feddlp.federation.flower.inventory import inventory, table
from terminal import assert_mistake

HOSTS = ("fl.example.org", "10.0.0.7", "2001:db8::7")
LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda label: label[2:4] != "--")
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A server for HOSTS and a node."""
    keys.make_server(tmp_path / "keys", HOSTS, days=365)
    keys.make_node(tmp_path / "keys", "sn0")
    return tmp_path / "keys"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Certificates


def verify(folder: Path, host: str) -> list[x509.Certificate]:
    """The chain, as the verifier of cryptography builds it for a host."""
    store = verification.Store([keys.read_certificate(folder / "ca.crt")])
    with contextlib.suppress(ValueError):
        return chain(store, folder, x509.IPAddress(ip_address(host)))
    return chain(store, folder, x509.DNSName(host))


def chain(store: verification.Store, folder: Path, subject: x509.DNSName | x509.IPAddress) -> list[x509.Certificate]:
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(subject)
    return verifier.verify(keys.read_certificate(folder / "server.crt"), [])


@pytest.mark.parametrize("host", [*HOSTS, *keys.ALWAYS])
def test_the_chain_is_verified_for_every_host(folder, host):
    assert verify(folder, host)[-1] == keys.read_certificate(folder / "ca.crt")


@pytest.mark.parametrize("host", ["example.org", "10.0.0.8", "2001:db8::8"])
def test_the_chain_is_verified_for_no_other_host(folder, host):
    with pytest.raises(verification.VerificationError):
        verify(folder, host)


def test_another_ca_is_not_believed(folder, tmp_path):
    keys.make_server(tmp_path / "other", HOSTS, days=365)
    files.write_atomically(folder / "ca.crt", (tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(verification.VerificationError):
        verify(folder, "localhost")


@settings(max_examples=25)
@given(st.lists(NAMES | st.ip_addresses().map(str), min_size=1, max_size=3))
@example(["a" * 63 + ".example"])
@example(["::ffff:10.0.0.1"])
def test_any_name_and_address_is_verified_and_read_back(hosts):
    with TemporaryDirectory() as parent:
        made = keys.make_server(folder := Path(parent) / "keys", hosts, days=1)
        assert set(keys.hosts_of(made)) == {*map(normal, hosts), *keys.ALWAYS}
        for host in hosts:
            assert verify(folder, host)


def normal(host: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ip_address(host))
    return host


@given(st.ip_addresses())
def test_an_address_is_never_taken_for_a_name(address: IPv4Address | IPv6Address):
    assert keys.subject_name(str(address)) == x509.IPAddress(address)


@pytest.mark.parametrize(
    "host",
    ["", "https://a.org", "a.org:8000", "[::1]", "a b", "-a.org", "a..b", "999.0.0.1", "10.1", "*.a.org", "a" * 64],
)
def test_what_is_no_host_is_refused_and_leaves_nothing(tmp_path, host):
    with pytest.raises(UserError, match="is no host name or IP address"):
        keys.make_server(tmp_path / "keys", [host], days=1)
    assert list(tmp_path.iterdir()) == []


def test_international_names_are_encoded():
    assert keys.subject_name("Müller.example") == x509.DNSName("xn--mller-kva.example")


# TLS, on a real socket


def handshake(folder: Path, host: str) -> str:
    """The protocol that a strict client agrees on with a server on loopback, which it calls `host`."""
    here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    here.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        answering = threading.Thread(target=answer, args=(listening, here))
        answering.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=20) as plain,
                client.wrap_socket(plain, server_hostname=host) as secure,
            ):
                return str(secure.version())
        finally:
            answering.join()


def answer(listening: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listening.accept()
    connection.settimeout(20)
    with contextlib.suppress(ssl.SSLError, OSError), context.wrap_socket(connection, server_side=True) as secure:
        secure.recv(1)
    connection.close()


@pytest.mark.parametrize("host", [*HOSTS, *keys.ALWAYS])
def test_tls_accepts_every_host(folder, host):
    assert handshake(folder, host) == "TLSv1.3"


@pytest.mark.parametrize("host", ["other.example.org", "10.0.0.8"])
def test_tls_refuses_another_name(folder, host):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(folder, host)


def test_tls_refuses_an_expired_certificate_and_takes_the_renewed(folder, monkeypatch):
    with monkeypatch.context() as earlier:
        then = keys.now() - timedelta(days=10)
        earlier.setattr(keys, "now", lambda: then)
        keys.make_server(folder, [], days=1, renew=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(folder, "localhost")
    keys.make_server(folder, [], days=1, renew=True)
    assert handshake(folder, "fl.example.org") == "TLSv1.3"


# Node keys, read by Flower


def test_flower_reads_a_nodes_keys(folder):
    options = argparse.Namespace(auth_supernode_private_key=str(folder / "sn0.key"), auth_supernode_public_key=None)
    private, public = _try_setup_client_authentication(options)
    assert isinstance(private.curve, ec.SECP384R1)
    registered = try_load_public_key(folder / "sn0.pub")
    assert registered == public_key_to_bytes(public)
    assert load_pem_public_key(registered) == private.public_key()


@pytest.mark.parametrize("name", ["", ".", "..", "ca", "server", "a/b", "../a", "-a", "a b", "a\n", "x" * 65])
def test_what_cannot_name_a_node_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot name a node"):
        keys.make_node(tmp_path / "keys", name)
    assert list(tmp_path.iterdir()) == []


# Files


def test_private_keys_are_for_their_owner_alone(folder):
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.glob("*.key")}
    assert modes == dict.fromkeys(("ca.key", "server.key", "sn0.key"), 0o600)


def test_a_private_file_is_closed_from_its_first_byte_and_whole_or_absent(tmp_path, monkeypatch):
    seen = []

    def full(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    before = os.umask(0)
    try:
        with pytest.raises(OSError, match="no space left"):
            files.create_private(tmp_path / "a.key", b"secret")
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_replaces_nothing(tmp_path):
    (tmp_path / "a.key").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        files.create_private(tmp_path / "a.key", b"new")
    assert contents(tmp_path) == {"a.key": b"old"}


def test_a_folder_open_to_others_is_refused_and_left_alone(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o755)
    for make in (lambda: keys.make_node(tmp_path / "keys", "a"), lambda: keys.make_server(tmp_path / "keys", ["a"], 1)):
        with pytest.raises(UserError, match=r"open to others \(mode 755\); chmod 700"):
            make()
    assert contents(tmp_path / "keys") == {}


def test_nothing_is_overwritten(folder):
    before = contents(folder)
    with pytest.raises(UserError, match=r"server\.crt exists and is not overwritten; renew it with --renew"):
        keys.make_server(folder, ["b.org"], days=1)
    with pytest.raises(UserError, match=r"sn0\.key exists and is not overwritten; choose another name"):
        keys.make_node(folder, "sn0")
    (folder / "sn0.key").unlink()
    with pytest.raises(UserError, match=r"sn0\.pub exists"):
        keys.make_node(folder, "sn0")
    del before["sn0.key"]
    assert contents(folder) == before


@pytest.mark.parametrize(("hosts", "kept"), [([], HOSTS), (["b.org"], ["b.org"])])
def test_renewing_changes_the_certificate_alone(folder, hosts, kept):
    before = contents(folder)
    renewed = keys.make_server(folder, hosts, days=7, renew=True)
    assert keys.hosts_of(renewed) == [*kept, *keys.ALWAYS]
    assert verify(folder, kept[0])
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"server.crt"}


def test_no_certificate_outlives_its_ca(folder, monkeypatch):
    end = keys.read_certificate(folder / "ca.crt").not_valid_after_utc
    monkeypatch.setattr(keys, "now", lambda: end - timedelta(days=5))
    assert keys.make_server(folder, [], days=365, renew=True).not_valid_after_utc == end
    monkeypatch.setattr(keys, "now", lambda: end)
    with pytest.raises(UserError, match=r"ca\.crt expired on"):
        keys.make_server(folder, [], days=365, renew=True)


def test_what_was_interrupted_is_completed(folder):
    """Killed after a key was written and before its certificate."""
    for name in ("ca.crt", "server.crt"):
        (folder / name).unlink()
    before = contents(folder)
    keys.make_server(folder, HOSTS, days=1)
    assert {name: content for name, content in contents(folder).items() if name in before} == before
    assert verify(folder, "localhost")


def rsa_key() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "ca.key").unlink(), r"ca\.crt is there without its ca\.key"),
        (lambda folder: (folder / "server.key").unlink(), r"server\.crt is there without its server\.key"),
        (lambda folder: (folder / "ca.key").write_bytes(b"x"), r"ca\.key cannot be read as a private key"),
        (lambda folder: (folder / "ca.key").write_bytes(rsa_key()), r"ca\.key is no ECDSA key"),
        (lambda folder: (folder / "ca.crt").write_bytes(b"x"), r"ca\.crt is missing or not a certificate"),
        (lambda folder: (folder / "server.crt").unlink(), r"server\.crt is missing or not a certificate"),
        (
            lambda folder: (folder / "ca.key").write_bytes((folder / "server.key").read_bytes()),
            r"ca\.crt and ca\.key do not belong together",
        ),
    ],
)
def test_what_is_damaged_is_named_and_nothing_is_written(folder, spoil, said):
    spoil(folder)
    before = contents(folder)
    with pytest.raises(UserError, match=said):
        keys.make_server(folder, [], days=1, renew=True)
    assert contents(folder) == before


# The list


def troubles(folder: Path, days: float) -> list[str]:
    return [one.trouble for one in inventory(folder, keys.now() + timedelta(days=days)) if one.trouble]


def test_the_list_warns_thirty_days_ahead(folder):
    assert troubles(folder, 0) == troubles(folder, 334) == []
    [soon] = troubles(folder, 335.5)
    assert "server.crt expires in 29 days; renew it with: feddlp keys server --renew --out" in soon
    [late] = troubles(folder, 366)
    assert "server.crt expired on" in late
    assert len(troubles(folder, 3700)) == 2


def test_the_list_names_what_is_damaged_or_open(folder):
    (folder / "sn0.key").chmod(0o644)
    for name in ("server.crt", "server.key", "sn0.pub"):
        (folder / name).write_bytes(b"\0")
    lines = list(table(inventory(folder, keys.now())))
    assert len(lines) == 1 + 6 + 4
    for said in ("not a certificate", "not a private key", "not a public key", "sn0.key is open to others (mode 644)"):
        assert any(said in line for line in lines)


# The commands


def test_the_commands_from_nothing_to_a_list(feddlp, tmp_path):
    assert feddlp("keys", "server", "--host", "a.org", "--host", "10.0.0.7").out.startswith(
        "keys/server.crt: for a.org, "
    )
    assert feddlp("keys", "node", "sn0").code == 0
    head, *rows = feddlp("keys", "list").out.splitlines()
    assert head.split() == ["file", "what", "it", "is", "valid", "until", "for"]
    assert [row.split()[0] for row in rows] == sorted(contents(tmp_path / "keys"))
    assert rows[2].endswith("a.org, 10.0.0.7, localhost, 127.0.0.1, ::1")


def test_the_list_shows_an_expired_certificate_until_it_is_renewed(feddlp, monkeypatch):
    with monkeypatch.context() as earlier:
        then = keys.now() - timedelta(days=10)
        earlier.setattr(keys, "now", lambda: then)
        feddlp("keys", "server", "--host", "a.org", "--days", "1")
    assert "keys/server.crt expired on" in feddlp("keys", "list").out
    assert feddlp("keys", "server", "--renew").code == 0
    assert "expire" not in feddlp("keys", "list").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["server"], "--host is missing"),
        (["server", "--host", "a:1"], "--host a:1"),
        (["server", "--host", "a", "--days", "0"], "--days"),
        (["server", "--renew"], "keys/server.crt is missing"),
        (["node", "ca"], "NAME=ca"),
        (["list"], "--out keys holds no keys"),
        (["server", "--host", "a", "--out", "/dev/null"], "--out /dev/null"),
        (["node", "a", "--out", "/dev/null/keys"], "--out /dev/null/keys"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(feddlp, tmp_path, words, said):
    assert_mistake(feddlp("keys", *words), said)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_key_is_one_line(feddlp):
    feddlp("keys", "node", "a")
    assert_mistake(feddlp("keys", "node", "a"), "keys/a.key exists and is not overwritten; choose another name")


@pytest.mark.parametrize("words", [["server", "--host", "a"], ["node", "a"], ["list"]])
def test_without_the_extra_it_is_named(feddlp, monkeypatch, words):
    for module in [name for name in sys.modules if name.startswith("feddlp.federation.flower")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    way_out = 'feddlp keys needs the extra flower; install it with: pip install "feddlp[flower]"'
    assert_mistake(feddlp("keys", *words), way_out)


@pytest.mark.parametrize("group", ["keys", "data"])
def test_a_group_alone_shows_its_help(feddlp, group):
    ended = feddlp(group)
    assert (ended.code, ended.err) == (0, "")
    assert "Commands:" in ended.out
