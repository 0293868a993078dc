"""Keys and certificates are what the API server, its clients and its Pods need, and are remade when they must be."""

from __future__ import annotations

import json
import os
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tasks import pki
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


# What they are


def test_they_are_all_there_and_private(context: Context) -> None:
    assert {path.name for path in context.pki.iterdir()} == {*pki.FILES, "made.json"}
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
    alternatives = certificate(machine, "apiserver").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert set(alternatives.value.get_values_for_type(x509.DNSName)) == {
        *("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
        *("localhost", "dmuc7"),
    }
    assert set(alternatives.value.get_values_for_type(x509.IPAddress)) == {
        ip_address(text) for text in ("127.0.0.1", "192.168.5.2", "172.20.0.1")
    }


def test_the_administrator_may_do_everything(context: Context) -> None:
    subject = certificate(context, "admin").subject
    groups = [part.value for part in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    assert groups == ["system:masters"]


def test_each_is_for_one_side_only(context: Context) -> None:
    uses = {
        name: list(certificate(context, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        for name in ("apiserver", "admin")
    }
    assert uses == {"apiserver": [ExtendedKeyUsageOID.SERVER_AUTH], "admin": [ExtendedKeyUsageOID.CLIENT_AUTH]}


@pytest.mark.parametrize("name", ["ca", "apiserver", "admin"])
def test_a_key_belongs_to_its_certificate_which_the_ca_has_signed(context: Context, name: str) -> None:
    key = serialization.load_pem_private_key((context.pki / f"{name}.key").read_bytes(), None)
    assert key.public_key() == certificate(context, name).public_key()
    certificate(context, name).verify_directly_issued_by(certificate(context, "ca"))


def test_tokens_are_checked_with_the_key_that_belongs_to_the_one_they_are_signed_with(context: Context) -> None:
    private = serialization.load_pem_private_key((context.pki / "sa.key").read_bytes(), None)
    assert private.public_key() == serialization.load_pem_public_key((context.pki / "sa.pub").read_bytes())


def test_the_ca_is_one_and_can_have_no_others_below_it(context: Context) -> None:
    constraints = certificate(context, "ca").extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_they_are_valid_already_for_a_clock_that_is_behind_and_for_a_year(context: Context) -> None:
    now = datetime.now(UTC)
    for name in ("ca", "apiserver", "admin"):
        assert certificate(context, name).not_valid_before_utc < now - timedelta(minutes=50)
        assert certificate(context, name).not_valid_after_utc > now + timedelta(days=364)
    assert PKI.holds(context).why == f"valid until {certificate(context, 'ca').not_valid_after_utc:%F}"


def test_two_certificates_have_different_serial_numbers(context: Context) -> None:
    assert len({certificate(context, name).serial_number for name in ("ca", "apiserver", "admin")}) == 3


def shake_hands(context: Context, server_name: str, *, flags: int = 0) -> str:
    """TLS between API server and administrator, without a network; gives the administrator's common name."""
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


def test_nothing_there_is_said(tmp_path: Path) -> None:
    answer = PKI.holds(a_context(tmp_path))
    assert not answer
    assert answer.why == "keys and certificates are not all there"


def test_what_is_made_holds(context: Context) -> None:
    assert PKI.holds(context)


def test_another_name_gives_new_certificates_of_the_same_ca(context: Context) -> None:
    before = content(context)
    other = replace(context, settings=replace(context.settings, service_range="172.20.0.0/20"))
    answer = PKI.holds(other)
    assert not answer
    assert answer.why == "the API server has other names now"
    PKI.make(other, Silent())
    assert PKI.holds(other)
    # What a Pod was given (ca.crt, a token signed with sa.key) must go on to be good.
    assert not changed(before, other) & {"ca.key", "sa.key", "sa.pub", "apiserver.key", "admin.key"}
    old_ca = x509.load_pem_x509_certificate(before["ca.crt"])
    certificate(other, "apiserver").verify_directly_issued_by(old_ca)
    alternatives = certificate(other, "apiserver").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert ip_address("172.20.0.1") in alternatives.value.get_values_for_type(x509.IPAddress)


@contextmanager
def the_clock_shows(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> Iterator[None]:
    with monkeypatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() + ahead.total_seconds())
        yield


def test_they_are_remade_well_before_their_end(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    end = certificate(context, "apiserver").not_valid_after_utc - datetime.now(UTC)
    with the_clock_shows(monkeypatch, end - pki.RENEW_BEFORE - timedelta(hours=1)):
        assert PKI.holds(context)
    with the_clock_shows(monkeypatch, end - pki.RENEW_BEFORE + timedelta(hours=1)):
        assert PKI.holds(context).why.startswith("the certificates end on 20")
        assert not PKI.holds(context)


def test_what_is_remade_is_valid_longer_and_has_its_old_keys(context: Context) -> None:
    made = json.loads((context.pki / "made.json").read_text())
    (context.pki / "made.json").write_text(json.dumps(made | {"end": time.time() + 3600}))
    assert not PKI.holds(context)
    before = content(context)
    PKI.make(context, Silent())
    assert PKI.holds(context)
    assert not changed(before, context) & {"ca.key", "sa.key", "sa.pub", "apiserver.key", "admin.key"}


def test_a_clock_from_before_they_were_made_is_noticed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with the_clock_shows(monkeypatch, -timedelta(days=1)):
        assert not PKI.holds(context)


@pytest.mark.parametrize("name", pki.FILES)
def test_a_changed_file_is_noticed_and_mended(context: Context, name: str) -> None:
    (context.pki / name).write_bytes(b"rubbish")
    answer = PKI.holds(context)
    assert not answer
    assert answer.why == "a file is not the one that was made"
    PKI.make(context, Silent())
    assert PKI.holds(context)
    assert shake_hands(context, "kubernetes") == "admin"


@pytest.mark.parametrize("name", pki.FILES)
def test_a_missing_file_is_noticed_and_mended(context: Context, name: str) -> None:
    (context.pki / name).unlink()
    assert not PKI.holds(context)
    PKI.make(context, Silent())
    assert PKI.holds(context)
    assert shake_hands(context, "kubernetes") == "admin"


def test_the_time_of_a_key_that_is_kept_stays(context: Context) -> None:
    """By it a token is known to be of another key: see service_account.py."""
    key = context.pki / "sa.key"
    os.utime(key, (1, 1))
    (context.pki / "ca.key").unlink()
    PKI.make(context, Silent())
    assert key.stat().st_mtime == 1


def test_a_key_of_another_kind_is_not_kept(context: Context) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (context.pki / "apiserver.key").write_bytes(pem)
    PKI.make(context, Silent())
    assert PKI.holds(context)
    assert shake_hands(context, "kubernetes") == "admin"


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"files": {}}'])
def test_rubbish_for_a_record_is_a_no(context: Context, text: str) -> None:
    made = json.loads((context.pki / "made.json").read_text())
    (context.pki / "made.json").write_text(text.replace('{"files": {}}', json.dumps({"files": made["files"]})))
    assert UpToDate(PKI, context)() is False
    PKI.make(context, Silent())
    assert PKI.holds(context)


def test_a_making_that_was_ended_half_way_is_begun_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    written: list[str] = []
    real = pki._write

    def write(path: Path, text: bytes) -> None:
        if len(written) == 5:
            raise Killed
        written.append(path.name)
        real(path, text)

    monkeypatch.setattr(pki, "_write", write)
    with pytest.raises(Killed):
        PKI.make(context, Silent())
    assert not PKI.holds(context)
    monkeypatch.setattr(pki, "_write", real)
    PKI.make(context, Silent())
    assert PKI.holds(context)
    assert shake_hands(context, "kubernetes") == "admin"


def test_taking_it_back_removes_what_was_made_and_nothing_else(context: Context) -> None:
    (context.pki / "mine.txt").touch()
    assert PKI.undo is not None
    PKI.undo(context)
    assert [path.name for path in context.pki.iterdir()] == ["mine.txt"]
    PKI.undo(context)
