"""Keys and certificates are what the API server, its clients and its Pods need, and are remade when they must be."""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tasks import pki
from tasks.core import certificates
from tasks.core.certificates import RENEW_BEFORE, Certificate
from tasks.core.context import Context
from tasks.core.goal import UpToDate
from tasks.core.progress import Silent
from tests.unit.support import a_context

PKI = pki.PKI


@pytest.fixture
def context(tmp_path: Path) -> Context:
    context = a_context(tmp_path, machine="host")
    PKI.make(context, Silent())
    return context


def certificate(context: Context, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((context.pki / f"{name}.crt").read_bytes())


def content(context: Context) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in context.pki.iterdir()}


def changed(before: dict[str, bytes], context: Context) -> set[str]:
    now = content(context)
    return {name for name in before | now if before.get(name) != now.get(name)} - {"made.json"}


def names(context: Context, name: str) -> set[str]:
    alternatives = certificate(context, name).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, alternatives.get_values_for_type(x509.IPAddress))
    return {*alternatives.get_values_for_type(x509.DNSName), *addresses}


def all_certificates(context: Context) -> list[Certificate]:
    return [one for one in pki.everything(context) if isinstance(one, Certificate)]


# What they are


def test_they_are_all_there_and_private(context: Context) -> None:
    assert {path.name for path in context.pki.iterdir()} == {*pki.files(context), "made.json"}
    assert stat.S_IMODE(context.pki.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in context.pki.iterdir()} == {0o600}


def test_they_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        PKI.make(context := a_context(tmp_path), Silent())
    finally:
        os.umask(before)
    assert stat.S_IMODE(context.pki.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in context.pki.iterdir()} == {0o600}


def test_the_servers_names_are_those_it_is_reached_under(tmp_path: Path) -> None:
    machine = a_context(tmp_path, machine="dmuc7", link_range="192.168.5.0/30", service_range="172.20.0.0/20")
    PKI.make(machine, Silent())
    assert names(machine, "apiserver") == {
        *("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
        *("localhost", "dmuc7"),
        *("127.0.0.1", "192.168.5.2", "172.20.0.1"),
    }
    assert names(machine, "kubelet-server") == {"dmuc7", "192.168.5.2"}
    assert names(machine, "etcd") == {"localhost", "127.0.0.1"}


# https://kubernetes.io/docs/setup/best-practices/certificates/ : the CA, the common name, the organization, the kinds.
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
WITHOUT_RBAC = {
    "apiserver": ("ca", "kube-apiserver", "", [SERVER]),
    "admin": ("ca", "admin", "system:masters", [CLIENT]),
    "front-proxy-client": ("front-proxy-ca", "front-proxy-client", "", [CLIENT]),
}
WITH_RBAC = {
    "kube-controller-manager": ("ca", "system:kube-controller-manager", "", [CLIENT]),
    "kube-scheduler": ("ca", "system:kube-scheduler", "", [CLIENT]),
    "kube-proxy": ("ca", "system:kube-proxy", "", [CLIENT]),
    "kubelet": ("ca", "system:node:dmuc7", "system:nodes", [CLIENT]),
    "kubelet-server": ("ca", "system:node:dmuc7", "", [SERVER]),
    "apiserver-kubelet-client": ("ca", "kube-apiserver-kubelet-client", "system:masters", [CLIENT]),
    "etcd": ("etcd-ca", "kube-etcd", "", [SERVER, CLIENT]),
    "apiserver-etcd-client": ("etcd-ca", "kube-apiserver-etcd-client", "", [CLIENT]),
}


@pytest.mark.parametrize(("security", "wanted"), [("none", WITHOUT_RBAC), ("rbac", WITHOUT_RBAC | WITH_RBAC)])
def test_each_certificate_has_the_subject_and_the_issuer_that_kubernetes_expects(
    tmp_path: Path, security: str, wanted: dict[str, tuple[str, str, str, list[object]]]
) -> None:
    context = a_context(tmp_path, machine="dmuc7", security=security)
    PKI.make(context, Silent())
    for name, (ca, common_name, group, uses) in wanted.items():
        made = certificate(context, name)
        made.verify_directly_issued_by(certificate(context, ca))
        key = serialization.load_pem_private_key((context.pki / f"{name}.key").read_bytes(), None)
        assert key.public_key() == made.public_key()
        organization = [part.value for part in made.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        assert organization == ([group] if group else [])
        assert [p.value for p in made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [common_name]
        assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == uses
    cas = {ca for ca, *_ in wanted.values()}
    assert {file for file in content(context) if file.endswith(".crt")} == {f"{name}.crt" for name in {*wanted, *cas}}


def test_no_certificate_of_etcds_ca_is_good_for_anything_else(context: Context) -> None:
    for name in ("admin", "kubelet", "apiserver-kubelet-client"):
        with pytest.raises((InvalidSignature, ValueError)):
            certificate(context, name).verify_directly_issued_by(certificate(context, "etcd-ca"))
    with pytest.raises((InvalidSignature, ValueError)):
        certificate(context, "apiserver-etcd-client").verify_directly_issued_by(certificate(context, "ca"))


def test_tokens_are_checked_with_the_key_that_belongs_to_the_one_they_are_signed_with(context: Context) -> None:
    private = serialization.load_pem_private_key((context.pki / "sa.key").read_bytes(), None)
    assert private.public_key() == serialization.load_pem_public_key((context.pki / "sa.pub").read_bytes())


@pytest.mark.parametrize("name", ["ca", "etcd-ca"])
def test_a_ca_is_one_and_can_have_no_others_below_it(context: Context, name: str) -> None:
    constraints = certificate(context, name).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_they_are_valid_already_for_a_clock_that_is_behind_and_for_a_year(context: Context) -> None:
    now = datetime.now(UTC)
    for one in all_certificates(context):
        assert certificate(context, one.name).not_valid_before_utc < now - timedelta(minutes=50)
        assert certificate(context, one.name).not_valid_after_utc > now + timedelta(days=364)
    # Whoever trusts a CA has a copy of it.
    assert certificate(context, "ca").not_valid_after_utc > now + timedelta(days=3600)
    assert PKI.holds(context).why == f"valid until {certificate(context, 'admin').not_valid_after_utc:%F}"


def test_two_certificates_have_different_serial_numbers(context: Context) -> None:
    every = all_certificates(context)
    assert len({certificate(context, one.name).serial_number for one in every}) == len(every)


def shake_hands(context: Context, server_name: str, *, flags: int = 0) -> str:
    """Do TLS between API server and administrator, without a network; return the administrator's common name."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(context.pki / "ca.crt"))
    server.load_cert_chain(context.pki / "apiserver.crt", context.pki / "apiserver.key")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(context.pki / "ca.crt"))
    client.load_cert_chain(context.pki / "admin.crt", context.pki / "admin.key")
    for side in (client, server):
        side.verify_flags |= flags
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(back, there, server_hostname=server_name),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(10):
        for end in sides:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            if end.server_side:
                subject: Any = (end.getpeercert() or {})["subject"]
                return str(dict(part[0] for part in subject)["commonName"])
    raise AssertionError("the handshake did not come to its end")


def test_server_and_administrator_accept_each_other_under_every_name(context: Context) -> None:
    for name in pki.server_names(context):
        assert shake_hands(context, name) == "admin"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(context, "kubernetes.example")


def test_they_pass_the_strict_checks_that_python_3_13_makes_by_default(context: Context) -> None:
    assert shake_hands(context, "kubernetes", flags=ssl.VERIFY_X509_STRICT) == "admin"


# When they are remade


def remade(context: Context) -> set[str]:
    """Renew the certificates that need it; return their names. Then none needs it."""
    before = content(context)
    PKI.make(context, Silent())
    assert PKI.holds(context)
    assert shake_hands(context, "kubernetes") == "admin"
    return changed(before, context)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    result = PKI.holds(a_context(tmp_path))
    assert not result
    assert result.why == "ca.crt does not exist; and 14 more"


def test_what_is_made_holds_and_making_it_again_changes_nothing(context: Context) -> None:
    assert PKI.holds(context)
    assert remade(context) == set()


def test_another_name_renews_the_certificates_that_contain_it(context: Context) -> None:
    other = replace(context, settings=replace(context.settings, service_range="172.20.0.0/20"))
    result = PKI.holds(other)
    assert not result
    assert result.why == "apiserver.crt must have other names"
    assert remade(other) == {"apiserver.crt"}
    assert "172.20.0.1" in names(other, "apiserver")


def test_another_node_name_concerns_the_kubelet(tmp_path: Path) -> None:
    context = a_context(tmp_path, machine="one")
    PKI.make(context, Silent())
    renamed = replace(context.settings, machine="two")
    other = replace(context, settings=renamed, nodes=[replace(context.node, name="two")])
    assert remade(other) == {"apiserver.crt", "kubelet.crt", "kubelet-server.crt"}


def test_security_none_and_back_creates_nothing_again(tmp_path: Path) -> None:
    plain = a_context(tmp_path, security="none")
    PKI.make(plain, Silent())
    assert {*content(plain)} == {
        *("ca.crt", "ca.key", "apiserver.crt", "apiserver.key", "admin.crt", "admin.key", "sa.pub", "sa.key"),
        *("front-proxy-ca.crt", "front-proxy-ca.key", "front-proxy-client.crt", "front-proxy-client.key"),
        "made.json",
    }
    secure = replace(plain, settings=replace(plain.settings, security="rbac"))
    assert not PKI.holds(secure)
    before = content(plain)
    assert remade(secure) & {*before} == set()
    assert PKI.holds(plain)


@contextmanager
def the_clock_shows(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> Iterator[None]:
    with monkeypatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() + ahead.total_seconds())
        yield


def test_they_are_remade_well_before_their_end(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    end = certificate(context, "apiserver").not_valid_after_utc - datetime.now(UTC)
    with the_clock_shows(monkeypatch, end - RENEW_BEFORE - timedelta(hours=1)):
        assert PKI.holds(context)
    with the_clock_shows(monkeypatch, end - RENEW_BEFORE + timedelta(hours=1)):
        assert re.match(r"apiserver\.crt expires on 20\d\d-\d\d-\d\d; and 10 more$", PKI.holds(context).why)
        assert not PKI.holds(context)
    with the_clock_shows(monkeypatch, end + timedelta(hours=1)):
        assert re.match(r"apiserver\.crt expired on 20", PKI.holds(context).why)
        before = content(context)
        PKI.make(context, Silent())
        assert PKI.holds(context)
    # The same keys and CAs, and what tokens are signed with: a program with a copy of those need not be restarted.
    names = {one.name for one in all_certificates(context) if not one.is_ca}
    assert changed(before, context) == {f"{name}.crt" for name in names}


def test_just_the_one_that_nears_its_end_is_renewed(context: Context) -> None:
    made = json.loads((context.pki / "made.json").read_text())
    made["kube-scheduler"]["end"] = time.time() + 3600
    (context.pki / "made.json").write_text(json.dumps(made))
    assert PKI.holds(context).why.startswith("kube-scheduler.crt expires on ")
    assert remade(context) == {"kube-scheduler.crt"}


def test_certificates_from_a_clock_that_was_ahead_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = a_context(tmp_path)
    with the_clock_shows(monkeypatch, timedelta(hours=2)):
        PKI.make(context, Silent())
        assert PKI.holds(context)
    result = PKI.holds(context)
    assert re.match(r"ca\.crt is valid from .* on, and the clock says .* \(UTC\); and 13 more$", result.why)
    assert not result
    # Keys stay, and so does what was signed with them.
    assert all(name.endswith(".crt") for name in remade(context))
    assert certificate(context, "ca").not_valid_before_utc < datetime.now(UTC)


def test_a_clock_that_is_up_to_an_hour_behind_does_no_harm(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with the_clock_shows(monkeypatch, -timedelta(minutes=59)):
        assert PKI.holds(context)
    with the_clock_shows(monkeypatch, -timedelta(minutes=61)):
        assert not PKI.holds(context)


ALL_FILES = [
    *("ca.crt", "ca.key", "apiserver.crt", "apiserver.key", "admin.crt", "admin.key", "sa.pub", "sa.key"),
    *("kubelet.crt", "kubelet-server.key", "etcd-ca.crt", "etcd-ca.key", "etcd.crt", "apiserver-etcd-client.crt"),
]


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_changed_file_is_noticed_and_mended(context: Context, name: str) -> None:
    (context.pki / name).write_bytes(b"rubbish")
    result = PKI.holds(context)
    assert not result
    assert "or its key has been replaced" in result.why
    assert name in remade(context)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_noticed_and_mended(context: Context, name: str) -> None:
    (context.pki / name).unlink()
    assert PKI.holds(context).why.startswith(f"{name} does not exist")
    assert name in remade(context)


def test_a_new_ca_concerns_all_that_it_signs_and_nothing_else(context: Context) -> None:
    (context.pki / "etcd-ca.key").unlink()
    assert remade(context) == {"etcd-ca.crt", "etcd-ca.key", "etcd.crt", "apiserver-etcd-client.crt"}
    certificate(context, "etcd").verify_directly_issued_by(certificate(context, "etcd-ca"))


def test_the_time_of_a_key_that_is_kept_stays(context: Context) -> None:
    """By it a token is known to be of another key: see service_account.py."""
    key = context.pki / "sa.key"
    os.utime(key, (1, 1))
    (context.pki / "sa.pub").unlink()
    PKI.make(context, Silent())
    assert key.stat().st_mtime == 1


def test_a_key_of_another_kind_is_not_kept(context: Context) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (context.pki / "apiserver.key").write_bytes(pem)
    assert remade(context) == {"apiserver.crt", "apiserver.key"}


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"ca": 7}', '{"ca": {"print": null}}'])
def test_rubbish_for_a_record_is_a_no(context: Context, text: str) -> None:
    (context.pki / "made.json").write_text(text)
    assert UpToDate(PKI, context)() is False
    PKI.make(context, Silent())
    assert PKI.holds(context)


def test_a_making_that_was_ended_half_way_is_begun_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    written: list[str] = []
    real = certificates._write

    def write(path: Path, text: bytes) -> None:
        if len(written) == 5:
            raise Killed
        written.append(path.name)
        real(path, text)

    (context.pki / "made.json").unlink()
    monkeypatch.setattr(certificates, "_write", write)
    with pytest.raises(Killed):
        PKI.make(context, Silent())
    assert not PKI.holds(context)
    monkeypatch.setattr(certificates, "_write", real)
    remade(context)


def test_taking_it_back_removes_what_was_made_and_nothing_else(context: Context) -> None:
    (context.pki / "mine.txt").touch()
    assert PKI.undo is not None
    PKI.undo(replace(context, settings=replace(context.settings, security="none")))  # made with the other, too
    assert [path.name for path in context.pki.iterdir()] == ["mine.txt"]
    PKI.undo(context)
