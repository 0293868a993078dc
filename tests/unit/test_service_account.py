"""The ways past the missing token, in releases that keep it in a Secret and in those that give Pods their own."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks import apiserver, controller_manager, insecure_port, service_account
from tasks.core import api
from tasks.core.certificates import KeyPair, make
from tasks.core.context import Context
from tasks.core.progress import Silent
from tasks.core.result import Result
from tests.unit.support import a_context

CA = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"
SECRET = "/api/v1/namespaces/default/secrets/default-token-x"
MOUNTS: dict[str, Any] = {"metadata": {"name": "default"}}
MOUNTS_NOT = MOUNTS | {"automountServiceAccountToken": False}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The objects that there are, by their path."""
    objects: dict[str, Any] = {"/version": {}}

    def ask(context: Context, path: str, judge: Callable[[Any], Result]) -> Result:
        return judge(objects[path]) if path in objects else Result(False, f"{path}: there is no such object")

    monkeypatch.setattr(service_account, "ask_api", ask)
    return objects


def a_cluster(root: Path, release: str, way: str) -> Context:
    context = a_context(root, machine="one", kubernetes=release, service_account=way)
    context.pki.mkdir(exist_ok=True)
    (context.pki / "ca.crt").write_text("our CA\n")
    (context.pki / "sa.key").write_text("")
    return context


@pytest.mark.parametrize(
    ("objects", "holds", "why"),
    [
        ({}, False, "no such object"),
        ({service_account.ACCOUNT: MOUNTS}, False, "kube-root-ca.crt: there is no such object"),
        ({service_account.ACCOUNT: MOUNTS, CA: {"data": {"ca.crt": "our CA"}}}, True, "from the API server"),
        (
            {service_account.ACCOUNT: MOUNTS, CA: {"data": {"ca.crt": "of before"}}},
            False,
            "does not have the CA of this cluster",
        ),
        ({service_account.ACCOUNT: MOUNTS_NOT, CA: {"data": {"ca.crt": "our CA"}}}, False, "automount"),
    ],
)
def test_since_1_21_pods_wait_for_the_ca_and_for_no_secret(
    tmp_path: Path, made: dict[str, Any], objects: Mapping[str, Any], holds: bool, why: str
) -> None:
    made.update(objects)
    for release in ("1.21", "1.24", "1.36"):
        result = service_account.SERVICE_ACCOUNT.holds(a_cluster(tmp_path, release, "keys"))
        assert (result.yes, why in result.why) == (holds, True), result


def test_up_to_1_20_the_token_is_in_a_secret(tmp_path: Path, made: dict[str, Any]) -> None:
    made.update({service_account.ACCOUNT: MOUNTS, CA: {"data": {"ca.crt": "our CA"}}})
    for release in ("1.19", "1.20"):
        assert not service_account.SERVICE_ACCOUNT.holds(a_cluster(tmp_path, release, "keys"))
    made[service_account.ACCOUNT] = MOUNTS | {"secrets": [{"name": "default-token-x"}]}
    make(tmp_path / "other", [KeyPair("sa")])
    for release in ("1.19", "1.20"):
        context = a_cluster(tmp_path, release, "keys")
        make(context.pki, [KeyPair("sa")])
        made[SECRET] = a_secret(context.pki / "sa.pub")
        result = service_account.SERVICE_ACCOUNT.holds(context)
        assert result and "default-token-x" in result.why
        os.utime(context.pki / "sa.key")  # as `cp` and a restored backup do: it is still this key
        assert service_account.SERVICE_ACCOUNT.holds(context)
        for other in (a_secret(tmp_path / "other/sa.pub"), {"data": {"token": "bm8gdG9rZW4="}}):
            made[SECRET] = other
            result = service_account.SERVICE_ACCOUNT.holds(context)
            assert not result and "signed with another key" in result.why
        made[SECRET] = {}
        assert "no token yet" in service_account.SERVICE_ACCOUNT.holds(context).why
        del made[SECRET]


@pytest.mark.parametrize("secret", ["of another key", "without a token yet", "that cannot be read now"])
def test_only_a_token_of_another_key_is_deleted(
    tmp_path: Path, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    context = a_cluster(tmp_path, "1.20", "keys")
    make(context.pki, [KeyPair("sa")])
    make(tmp_path / "other", [KeyPair("sa")])
    made[service_account.ACCOUNT] = MOUNTS | {"secrets": [{"name": "default-token-x"}]}
    found = {"of another key": a_secret(tmp_path / "other/sa.pub"), "without a token yet": {"data": {}}}
    made.update({SECRET: found[secret]} if secret in found else {})
    deleted: list[str] = []
    monkeypatch.setattr(api, "delete", lambda _, path: deleted.append(path))
    monkeypatch.setattr(api, "send", lambda *_: None)
    monkeypatch.setattr(service_account, "wait_or_fail", lambda *_, **__: None)
    assert service_account.SERVICE_ACCOUNT.make is not None
    service_account.SERVICE_ACCOUNT.make(context, Silent())
    assert deleted == ([SECRET] if secret == "of another key" else [])


def a_secret(public_key: Path) -> dict[str, Any]:
    """A Secret as the controller manager makes it; of the token only the header tells the key."""
    header = json.dumps({"alg": "ES256", "kid": service_account.key_id(public_key.read_text())}).encode()
    token = f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.claims.signature"
    return {"data": {"token": base64.b64encode(token.encode()).decode()}}


def test_the_id_of_a_key_is_the_one_that_kubernetes_makes() -> None:
    """The key of a cluster, and what the header of a token said that its kube-controller-manager 1.20.2 had signed."""
    key = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3RJlHnwZeAfKPDyjtPJK8WeFxfdu
LcyLX19PeL7/lLvx08UnufoI7Jnh5ALq7nvrwI8ihe1qRk/g/fhfvwfsJA==
-----END PUBLIC KEY-----
"""
    assert service_account.key_id(key) == "AD11lX_O6TbXeeZykVf-l-ieZWGlill_E8IpoWBOYak"


@pytest.mark.parametrize("release", ["1.19", "1.20", "1.23", "1.36"])
def test_the_other_ways_are_the_same_in_every_release(tmp_path: Path, made: dict[str, Any], release: str) -> None:
    made[service_account.ACCOUNT] = MOUNTS
    assert not service_account.SERVICE_ACCOUNT.holds(a_cluster(tmp_path, release, "no-mount"))
    assert service_account.SERVICE_ACCOUNT.holds(a_cluster(tmp_path, release, "disabled"))
    made[service_account.ACCOUNT] = MOUNTS_NOT
    assert service_account.SERVICE_ACCOUNT.holds(a_cluster(tmp_path, release, "no-mount"))


@pytest.mark.parametrize(("release", "way", "signs"), [("1.20", "keys", True), ("1.21", "keys", False)])
def test_who_signs_the_tokens_has_the_key(tmp_path: Path, release: str, way: str, signs: bool) -> None:
    flags = [flag.text for flag in controller_manager.flags(a_cluster(tmp_path, release, way))]
    assert any("--service-account-private-key-file" in text for text in flags) is signs


# The door of the API server's own, up to 1.19


@pytest.mark.parametrize(
    ("release", "door", "why_none", "closes"),
    [
        ("1.19", "on", "the API server serves plain HTTP itself", False),
        ("1.19", "off", "insecure_port=off", True),
        ("1.20", "on", "", False),
        ("1.20", "off", "insecure_port=off", False),
    ],
)
def test_the_insecure_port_is_the_api_servers_own_where_it_has_one(
    tmp_path: Path, release: str, door: str, why_none: str, closes: bool
) -> None:
    context = a_context(tmp_path, machine="one", kubernetes=release, insecure_port=door)
    assert insecure_port.KUBECTL_PROXY.disabled_because(context) == why_none
    flags = [flag.text for flag in apiserver.flags(context)]
    assert ("--insecure-port=0" in flags) is closes


def test_up_to_1_19_the_api_server_is_given_no_key_to_sign_with(tmp_path: Path) -> None:
    for release, given in (("1.19", False), ("1.20", True)):
        flags = [flag.text for flag in apiserver.flags(a_context(tmp_path, machine="one", kubernetes=release))]
        for name in ("--service-account-signing-key-file", "--service-account-issuer"):
            assert any(text.startswith(name) for text in flags) is given
