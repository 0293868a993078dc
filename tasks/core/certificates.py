"""Certificates and keys as files: check that each exists, has the right names and is valid for long enough; create the
others. This module knows no component: pki.py says which certificates there are.

All keys are on the elliptic curve P-256: one is made in 1 ms, and Kubernetes accepts it for TLS and for signing tokens.

made.json records what was made, so that a check reads no certificate: importing `cryptography` takes 60 ms.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import read_json, write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LIFETIME = timedelta(days=365)
CA_LIFETIME = timedelta(days=3650)  # longer: each client that trusts the CA has a copy of it
RENEW_BEFORE = timedelta(days=30)  # a certificate is renewed so long before it expires
CLOCK = timedelta(hours=1)  # how far a client's clock may be behind
RECORD = "made.json"


@dataclass(frozen=True)
class Certificate:
    """A certificate, NAME.crt, and its private key, NAME.key."""

    name: str
    ca: str  # the name of the CA that signs it; its own name: a self-signed CA
    common_name: str
    group: str = ""  # the organization, which Kubernetes uses as the user's group
    client: bool = False  # a client certificate
    server: Sequence[str] = ()  # a serving certificate for these names and addresses

    @property
    def files(self) -> Sequence[str]:
        """The names of the certificate's files."""
        return f"{self.name}.crt", f"{self.name}.key"

    @property
    def is_ca(self) -> bool:
        """Whether the certificate is a CA, which signs others."""
        return self.ca == self.name


@dataclass(frozen=True)
class KeyPair:
    """A key pair without a certificate: NAME.key signs, NAME.pub verifies."""

    name: str

    @property
    def files(self) -> Sequence[str]:
        """The names of the key pair's files."""
        return f"{self.name}.pub", f"{self.name}.key"


def faults(directory: Path, wanted: Collection[Certificate | KeyPair]) -> dict[str, str]:
    """Return which of the wanted files must be made: name -> reason. Takes a millisecond."""
    made = _made(directory)
    found = {one.name: _fault(directory, one, made.get(one.name)) for one in wanted}
    return {name: why for name, why in found.items() if why}


def ends(directory: Path, wanted: Collection[Certificate | KeyPair]) -> datetime:
    """Return when the first of these certificates expires; all of them must have been made."""
    made = _made(directory)
    return datetime.fromtimestamp(min(made[one.name]["end"] for one in wanted if isinstance(one, Certificate)), UTC)


def make(directory: Path, wanted: Collection[Certificate | KeyPair]) -> None:
    """Make the wanted certificates and key pairs, CAs first; keep each key that exists and is usable.

    Raise OSError when a file cannot be read or written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = _made(directory)
    for one in sorted(wanted, key=lambda one: not (isinstance(one, Certificate) and one.is_ca)):
        (directory / one.name).parent.mkdir(mode=0o700, exist_ok=True)
        begin = _now() - CLOCK
        end = begin + (CA_LIFETIME if isinstance(one, Certificate) and one.is_ca else LIFETIME)
        if isinstance(one, Certificate):
            _make_certificate(directory, one, begin, end)
        else:
            _make_pair(directory, one)
        what = {"wanted": asdict(one), "begin": begin.timestamp(), "end": end.timestamp()}
        made[one.name] = {**json.loads(json.dumps(what)), "print": _fingerprint(directory, one)}
    _write(directory / RECORD, json.dumps(made, indent=1).encode())


def remove(directory: Path, wanted: Collection[Certificate | KeyPair]) -> None:
    """Remove the files of these certificates and key pairs, and the record of what was made."""
    for one in wanted:
        for file in one.files:
            (directory / file).unlink(missing_ok=True)
    (directory / RECORD).unlink(missing_ok=True)


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


# Check


def _made(directory: Path) -> dict[str, Any]:
    return read_json(directory / RECORD)


def _fingerprint(directory: Path, one: Certificate | KeyPair) -> str:
    """Return a fingerprint of the files of a certificate or key pair, and of the CA that signed it."""
    files = [*one.files, *([f"{one.ca}.key"] if isinstance(one, Certificate) else [])]
    return hashlib.sha256(b"\0".join((directory / file).read_bytes() for file in files)).hexdigest()


def _fault(directory: Path, one: Certificate | KeyPair, made: Any) -> str:
    file = one.files[0]
    missing = [name for name in one.files if not (directory / name).exists()]
    try:
        if missing:
            return f"{missing[0]} does not exist"
        if made["print"] != _fingerprint(directory, one):
            return f"{file} or its key has been replaced"
        if made["wanted"] != json.loads(json.dumps(asdict(one))):
            return f"{file} must have other names"
        begin, end = (datetime.fromtimestamp(made[when], UTC) for when in ("begin", "end"))
    except (OSError, KeyError, TypeError, ValueError):
        return f"{file} must be checked again"
    return "" if isinstance(one, KeyPair) else _fault_in_time(file, begin, end)


def _fault_in_time(file: str, begin: datetime, end: datetime) -> str:
    now = _now()
    if now < begin:
        return f"{file} is valid from {begin:%F %R} on, and the clock says {now:%F %R} (UTC)"
    if now > end - RENEW_BEFORE:
        return f"{file} {'expired' if now > end else 'expires'} on {end:%F}"
    return ""


# Make


def _make_pair(directory: Path, one: KeyPair) -> None:
    from cryptography.hazmat.primitives import serialization

    key = _key(directory / f"{one.name}.key")
    _write_key(directory / f"{one.name}.key", key)
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    _write(directory / f"{one.name}.pub", key.public_key().public_bytes(serialization.Encoding.PEM, kind))


def _make_certificate(directory: Path, one: Certificate, begin: datetime, end: datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = _key(directory / f"{one.name}.key")
    if one.is_ca:
        issuer, ca_key = _name(one), key
    else:
        issuer = x509.load_pem_x509_certificate((directory / f"{one.ca}.crt").read_bytes()).subject
        ca_key = _key(directory / f"{one.ca}.key")
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(one))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(_usage(one.is_ca), critical=True)
    )
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] if one.server else []
    uses += [ExtendedKeyUsageOID.CLIENT_AUTH] if one.client else []
    if one.is_ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    if uses:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if one.server:
        names = x509.SubjectAlternativeName([_general_name(name) for name in one.server])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    _write_key(directory / f"{one.name}.key", key)
    _write(directory / f"{one.name}.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _name(one: Certificate) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    group = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, one.group)] if one.group else []
    return x509.Name([*group, x509.NameAttribute(NameOID.COMMON_NAME, one.common_name)])


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(signs: bool) -> x509.KeyUsage:
    """Return the KeyUsage extension, which strict verifiers of RFC 5280 require (Python 3.13 is one)."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key(path: Path) -> EllipticCurvePrivateKey:
    """Return the key in the file if it is usable, so that what it has signed stays valid; else a new key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError):
        key = None
    good = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    return key if good else ec.generate_private_key(ec.SECP256R1())  # type: ignore[return-value]


def _write_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives import serialization

    kind = serialization.PrivateFormat.TraditionalOpenSSL
    _write(path, key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        path.chmod(0o600)
        return
    write_atomic(path, content.decode(), 0o600)
