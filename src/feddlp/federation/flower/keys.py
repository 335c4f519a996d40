"""Certificates and keys of a deployment: a private CA, the server's TLS certificate, the nodes' key pairs.

    ca.key  ca.crt          the CA, made once: every node trusts ca.crt, and so whatever ca.key signs later
    server.key  server.crt  PEM, for `flower-superlink --ssl-keyfile --ssl-certfile`
    NAME.key  NAME.pub      OpenSSH, for `flower-supernode --auth-supernode-private-key` and `flwr supernode register`

All keys are ECDSA on P-384. Private keys have no password; they are whole or not there, of mode 0600 from their first
byte on, in a folder of mode 0700, and none is ever replaced: a certificate is renewed for the key that is there.
Certificates follow RFC 5280 as strict verifiers ask for it (OpenSSL's X509_STRICT, webPKI).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from feddlp.errors import UserError
from feddlp.files import create_private, make_folder, write_atomically

CURVE = ec.SECP384R1()
CA_LIFETIME = timedelta(days=3650)
CLOCKS_DIFFER = timedelta(hours=1)  # between machines, so that a new certificate is valid on all of them
ALWAYS = ("localhost", "127.0.0.1", "::1")
HOST_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*(?!\d+$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
)
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = ("ca", "server")
Extension = tuple[x509.ExtensionType, bool]  # and whether it is critical


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def make_server(folder: Path, hosts: Sequence[str], days: int, renew: bool = False) -> x509.Certificate:
    """Make the server's certificate, and its key and the CA where there are none.

    Args:
        hosts: names and IP addresses under which nodes reach the server; localhost and 127.0.0.1 come by themselves.
        renew: certify the key that is there once more; without `hosts`, for those of the present certificate.

    Raises:
        UserError: a host is none, the folder is open to others, or a certificate is there already; or, to renew, none.
    """
    file = folder / "server.crt"
    present = read_certificate(file) if renew else None
    if not present and not hosts:
        raise UserError(
            "--host is missing: the name or IP address under which nodes reach the server, such as localhost"
        )
    named = dict.fromkeys(subject_name(host) for host in (*hosts, *ALWAYS))  # each once
    names = alternative_names(present) if present and not hosts else list(named)
    if file.exists() and not renew:
        raise UserError(
            f"{file} exists and is not overwritten; renew it with --renew, or name another folder with --out"
        )
    open_folder(folder)
    ca_key, ca = authority(folder)
    key = key_beside(file).public_key()
    until = min(now() + timedelta(days=days), ca.not_valid_after_utc)
    extensions: list[Extension] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (key_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName(names), False),
    ]
    certificate = sign(ca_key, ca.subject, "feddlp server", key, until, extensions)
    write_atomically(file, certificate.public_bytes(Encoding.PEM))
    return certificate


def make_node(folder: Path, name: str) -> None:
    """A node's key pair: NAME.key, which goes to the node, and NAME.pub, which is registered.

    Raises:
        UserError: no good name, the folder is open to others, or there is such a key.
    """
    if not NODE_NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"NAME={name} cannot name a node; use letters, digits, '.', '_' and '-', and not ca or server")
    for file in (folder / f"{name}.key", folder / f"{name}.pub"):
        if file.exists():
            raise UserError(f"{file} exists and is not overwritten; choose another name, or move it away")
    open_folder(folder)
    key = ec.generate_private_key(CURVE)
    create_private(folder / f"{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomically(folder / f"{name}.pub", public + f" {name}\n".encode())


def open_folder(folder: Path) -> None:
    """Make the folder, for its owner alone; one that is there stays as it is, and must be so."""
    try:
        make_folder(folder, 0o700)
        mode = folder.stat().st_mode & 0o777
    except OSError as error:
        raise UserError(f"--out {folder}: no folder can be made there ({error.strerror}); name another one") from error
    if mode & 0o077:
        raise UserError(f"--out {folder} is open to others (mode {mode:o}); chmod 700 {folder}, or name another folder")


def authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The private CA of a folder, made where there is none."""
    file = folder / "ca.crt"
    key = key_beside(file)
    if not file.exists():
        name, signing = "feddlp private CA", key_usage("key_cert_sign", "crl_sign")
        extensions: list[Extension] = [(x509.BasicConstraints(ca=True, path_length=0), True), (signing, True)]
        certificate = sign(key, common_name(name), name, key.public_key(), now() + CA_LIFETIME, extensions)
        write_atomically(file, certificate.public_bytes(Encoding.PEM))
    certificate = read_certificate(file)
    if certificate.public_key() != key.public_key():
        raise UserError(f"{file} and ca.key do not belong together; put the right one back, or use another --out")
    if certificate.not_valid_after_utc <= now():
        raise UserError(
            f"{file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; make a new CA with another --out"
        )
    return key, certificate


def key_beside(certificate: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of a certificate; a new one where neither is there."""
    file = certificate.with_suffix(".key")
    if file.exists():
        return read_key(file)
    if certificate.exists():
        raise UserError(
            f"{certificate} is there without its {file.name}; put that back, or name another folder with --out"
        )
    key = ec.generate_private_key(CURVE)
    create_private(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def sign(
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    subject: str,
    public: ec.EllipticCurvePublicKey,
    until: datetime,
    extensions: Iterable[Extension],
) -> x509.Certificate:
    """A certificate that `key` signs in the name of `issuer`."""
    builder = (
        x509.CertificateBuilder(issuer, common_name(subject), public, x509.random_serial_number())
        .not_valid_before(now() - CLOCKS_DIFFER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA384())


def key_usage(*allowed: str) -> x509.KeyUsage:
    uses = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{use: use in allowed for use in uses})


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def subject_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode().lower()
    except UnicodeError:
        name = ""
    if not HOST_NAME.fullmatch(name):
        raise UserError(f"--host {host} is no host name or IP address; write it without https://, port and brackets")
    return x509.DNSName(name)


def parse_address(text: str, option: str) -> tuple[str, int]:
    """ "fl.example.org:8000" or "[::1]:8000" as host and port.

    Raises:
        UserError: it is neither.
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if re.fullmatch(r"\[.*:.*\]", host) else host
    try:
        subject_name(bare)
        if (":" in bare) == (bare == host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise ValueError(port)
    except (UserError, ValueError) as error:
        found = text if [text] == text.split() else repr(text)
        raise UserError(
            f"{option} {found} is no address; write HOST:PORT, as fl.example.org:8000 or [::1]:8000"
        ) from error
    return bare, int(port)


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    return [str(name.value) for name in alternative_names(certificate)]


def read_certificate(file: Path) -> x509.Certificate:
    """Read a certificate as PEM; raise UserError if it is missing or damaged."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is missing or not a certificate; check --out, or put it back") from error


def read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key as PEM or in OpenSSH's format; raise UserError if it is damaged or of another kind."""
    try:
        content = file.read_bytes()
        load = load_ssh_private_key if b"OPENSSH" in content else load_pem_private_key
        key = load(content, password=None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read as a private key; put it back, or name another folder with --out"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{file} is no ECDSA key, as `feddlp keys` makes them; name another folder with --out")
    return key
