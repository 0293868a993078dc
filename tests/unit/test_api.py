"""The kubernetes package's requests: opened by the machine, whatever the caller's environment says."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tasks.core import api
from tasks.core.certificates import Certificate, make
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.machine import Host
from tests.unit.support import Site, a_context, serving

NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Elsewhere(Host):
    """A machine that opens each connection to the site, whatever address is asked for."""

    site: Site | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        self.asked.append((host, port))
        if self.site is None:
            raise OSError("dmuc1 is off")
        return super().connect("127.0.0.1", self.site.server_port, timeout, kind)


def with_certificates(context: Context) -> Context:
    context.pki.mkdir(parents=True, exist_ok=True)
    make(
        context.pki,
        [
            Certificate("ca", "ca", "dmuc"),
            Certificate("admin", "ca", "admin", "system:masters", client=True),
            Certificate("apiserver", "ca", "kube-apiserver", server=["127.0.0.1", context.settings.address]),
        ],
    )
    return context


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An API server of one page, with TLS."""
    context = with_certificates(a_context(tmp_path))
    site = Site()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(context.pki / "apiserver.crt", context.pki / "apiserver.key")
    tls.load_verify_locations(context.pki / "ca.crt")
    tls.verify_mode = ssl.CERT_REQUIRED
    site.socket = tls.wrap_socket(site.socket, server_side=True)
    with serving(site):
        yield site


def test_changes_are_sent_by_the_machine_and_by_no_proxy(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
        monkeypatch.setenv(name.upper(), NOWHERE)
    monkeypatch.delenv("no_proxy", raising=False)
    machine = Elsewhere(site=site)
    context = a_context(tmp_path, machine)
    site.pages["/api/v1/namespaces"] = (201, json.dumps({"kind": "Namespace"}).encode())
    api.create(context, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ada"}})
    assert site.asked == ["/api/v1/namespaces"]
    assert set(machine.asked) == {(context.settings.address, 6443)}


def test_nothing_is_sent_from_outside_when_the_machine_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = with_certificates(a_context(tmp_path, Elsewhere()))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened from outside"))
    with pytest.raises(DmucError) as error:
        api.send(context, "PATCH", "/api/v1/nodes/dmuc1", {})
    assert error.value.tried == "PATCH /api/v1/nodes/dmuc1"
    assert "dmuc1 is off" in error.value.seen
