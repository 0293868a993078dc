"""Keys and certificates: a CA of our own, the API server's certificate, the administrator's, and the key for tokens.

Elliptic curve P-256 throughout: a key is made in a millisecond, and Kubernetes 1.20 takes it for TLS and for signing
tokens. The names follow https://kubernetes.io/docs/setup/best-practices/certificates/ .
"""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer
from .core.progress import Progress

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)  # of its end
FILES = ("ca.crt", "ca.key", "apiserver.crt", "apiserver.key", "admin.crt", "admin.key", "sa.pub", "sa.key")


def server_names(context: Context) -> list[str]:
    """Every name and address under which the API server is reached, from the host, the machine, or a Pod."""
    settings = context.settings
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    return [*names, "localhost", settings.machine, "127.0.0.1", settings.address, settings.service_address(1)]


def _record(context: Context) -> Path:
    return context.pki / "made.json"


def _prints(context: Context) -> dict[str, str]:
    return {name: hashlib.sha256((context.pki / name).read_bytes()).hexdigest() for name in FILES}


def _is_made(context: Context) -> Answer:
    try:
        made = json.loads(_record(context).read_text())
        if made["files"] != _prints(context):
            return Answer(False, "a file is not the one that was made")
    except (OSError, ValueError, KeyError):
        return Answer(False, "keys and certificates are not all there")
    if made["names"] != server_names(context):
        return Answer(False, "the API server has other names now")
    now = time.time()
    if not made["begin"] <= now <= made["end"] - RENEW_BEFORE.total_seconds():
        return Answer(False, f"the certificates end on {datetime.fromtimestamp(made['end'], UTC):%F}")
    return Answer(True, f"valid until {datetime.fromtimestamp(made['end'], UTC):%F}")


def _make(context: Context, progress: Progress) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    context.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    _record(context).unlink(missing_ok=True)
    begin = datetime.now(UTC) - timedelta(hours=1)  # for a client whose clock is a little behind
    keys = {name: _key(context.pki / f"{name}.key") for name in ("ca", "apiserver", "admin", "sa")}
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dmuc")])
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in server_names(context)])
    # system:masters may do everything, whatever the API server's authorization mode.
    subjects: dict[str, tuple[list[x509.NameAttribute[str]], list[x509.ExtensionType]]] = {
        "apiserver": (
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, "kube-apiserver")],
            [alternatives, _usage(), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])],
        ),
        "admin": (
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "system:masters"),
                x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin"),
            ],
            [_usage(), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])],
        ),
    }
    ca = _sign(
        ca_name,
        ca_name,
        keys["ca"],
        keys["ca"],
        begin,
        [x509.BasicConstraints(ca=True, path_length=0), _usage(signs=True)],
    )
    certificates = {"ca": ca} | {
        name: _sign(x509.Name(subject), ca_name, keys[name], keys["ca"], begin, extensions)
        for name, (subject, extensions) in subjects.items()
    }
    for name, key in keys.items():
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        _write(context.pki / f"{name}.key", pem)
    for name, certificate in certificates.items():
        _write(context.pki / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    public = (
        keys["sa"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    _write(context.pki / "sa.pub", public)
    made = {
        "names": server_names(context),
        "begin": begin.timestamp(),
        "end": (begin + LIFETIME).timestamp(),
        "files": _prints(context),
    }
    _write(_record(context), json.dumps(made, indent=1).encode())


def _key(path: Path) -> EllipticCurvePrivateKey:
    """The key in the file if there is a good one, for what it has signed is to stay valid; else a new one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError):
        key = None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else ec.generate_private_key(ec.SECP256R1())


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(signs: bool = False) -> x509.KeyUsage:
    """What a key is for; verifiers that go by RFC 5280 to the letter, as Python 3.13 does, ask for it."""
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


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    ca_key: EllipticCurvePrivateKey,
    begin: datetime,
    extensions: list[x509.ExtensionType],
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca_key, hashes.SHA256())


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:  # the time of a key is when it was made: see service_account.py
        path.chmod(0o600)
        return
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)


def _remove(context: Context) -> None:
    for name in FILES:
        (context.pki / name).unlink(missing_ok=True)
    _record(context).unlink(missing_ok=True)


PKI = Goal(
    name="pki",
    doc="make keys and certificates: a CA of our own, and what it signs",
    holds=_is_made,
    make=_make,
    undo=_remove,
)

PARTS = [PKI]
