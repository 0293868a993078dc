"""Cluster DNS: asked for or not, with the program or without, and what its answers are taken for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tasks import api_client, binaries, dns, kubeconfig, kubelet, pki
from tasks.choices import dns_enabled
from tasks.core import settings
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.machine import Host
from tasks.core.progress import Silent
from tasks.programs.catalog import wanted
from tests.unit.support import NASTY, a_context, a_program, on_machine

NAME = "kubernetes.default.svc.cluster.local"
# What CoreDNS 1.13.1 answered, after the question.
ANSWER = bytes.fromhex("c00c00010001000000050004 0a3300 01")
YES, NO = (0x8580, 1), (0x8183, 0)  # codes and number of answers; 3 is NXDOMAIN


@dataclass(frozen=True)
class Fake(Host):
    """A machine on which each address is a port of the loopback."""

    port: int = 0

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        assert (host, port, kind) == ("10.96.0.10", 53, socket.SOCK_DGRAM), "only the ClusterIP is asked, by UDP"
        return super().connect("127.0.0.1", self.port, 0.3, kind)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    (tmp_path / "path").mkdir()
    monkeypatch.setattr(binaries, "_on_path", lambda name: None)
    return a_context(tmp_path, machine="fake", obtain="debian")


def with_program(context: Context) -> Context:
    path = a_program(context.state / "mine" / "coredns", '[ "$*" = -version ] && echo CoreDNS-1.13.1')
    return replace(context, settings=replace(context.settings, programs={"coredns": str(path)}))


# Asked for


def test_without_the_program_it_says_what_to_do(context: Context) -> None:
    with pytest.raises(DmucError, match="coredns_bin=PATH") as error:
        dns.WANTED.make(context, Silent())
    assert "has no Debian package" in str(error.value) and "Nothing else needs CoreDNS" in str(error.value)
    assert not dns_enabled(context) and "coredns" not in wanted(context)


def test_on_the_host_it_is_refused(context: Context) -> None:
    there = with_program(replace(context, settings=replace(context.settings, machine="host")))
    with pytest.raises(DmucError, match="machine=NAME"):
        dns.WANTED.make(there, Silent())
    assert not dns_enabled(there)


def test_a_program_that_was_named_is_found_again_by_who_does_not_name_it(context: Context) -> None:
    dns.WANTED.make(with_program(context), Silent())
    assert dns_enabled(context) and dns.WANTED.holds(context)
    assert settings.remembered(context.state) == {"coredns_bin": str(context.state / "mine" / "coredns")}
    assert "coredns" in wanted(context)


def test_it_has_not_been_asked_for(context: Context) -> None:
    assert dns.DNS.holds(context).why == "CoreDNS is not requested"
    assert dns.COREDNS.disabled_because(context)


def test_after_undo_it_is_not_wanted_any_more(context: Context) -> None:
    dns.WANTED.make(with_program(context), Silent())
    assert dns.DNS.undo is not None
    dns.DNS.undo(context)
    assert not dns_enabled(context) and "coredns" not in wanted(context)


def test_with_rbac_it_has_its_own_identity(context: Context) -> None:
    def names() -> set[str]:
        return {file for file in pki.files(context) if "coredns" in file}

    assert names() == set()
    dns.WANTED.make(with_program(context), Silent())
    assert names() == {"coredns.crt", "coredns.key"}
    assert context.state / "kubeconfigs" / "coredns" in kubeconfig.files(context)


# What is started


@pytest.mark.parametrize(("kubernetes", "lacks"), [("1.20", True), ("1.21", False), ("1.36", False)])
def test_without_endpoint_slices_it_does_without_endpoints(tmp_path: Path, kubernetes: str, lacks: bool) -> None:
    context = a_context(tmp_path, machine="fake", kubernetes=kubernetes)
    (corefile,) = dns.COREDNS.writes(context).values()
    assert ("noendpoints" in corefile) is lacks
    assert "bind 10.95.0.2" in corefile


@pytest.mark.parametrize("security", ["rbac", "none"])
def test_it_finds_its_kubeconfig_wherever_the_checkout_is(tmp_path: Path, security: str) -> None:
    context = a_context(tmp_path / NASTY, machine="fake", security=security)
    (corefile,) = dns.COREDNS.writes(context).values()
    assert NASTY not in corefile
    (line,) = [line.split() for line in corefile.splitlines() if "kubeconfig" in line]
    file = line[1].replace("{$HOME}", context.environment()["HOME"])  # as CoreDNS does, in words that it has split
    assert Path(os.path.normpath(file)) == api_client.kubeconfig(context, "coredns")


def test_kubelets_tell_of_it_once_it_is_there(context: Context) -> None:
    def told() -> list[str]:
        return [flag.text for flag in kubelet.flags(context) if flag.text.startswith("--cluster-")]

    dns.WANTED.make(with_program(context), Silent())
    assert told() == []
    context.pidfiles.mkdir()
    (context.pidfiles / "coredns.ran").touch()  # as its start leaves it
    assert told() == ["--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local"]
    assert dns.DNS.undo is not None
    context.logs.mkdir()
    dns.COREDNS.log(context).touch()
    dns.DNS.undo(context)
    assert told() == []


# What it answers


@contextmanager
def a_server(codes: int, results: int) -> Iterator[int]:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)

        def result() -> None:
            question, client = server.recvfrom(512)
            assert question[12:] == b"".join(bytes([len(part)]) + part.encode() for part in NAME.split(".")) + bytes(
                [0, 0, 1, 0, 1]
            )
            head = question[:2] + codes.to_bytes(2) + question[4:6] + results.to_bytes(2) + bytes(4)
            server.sendto(head + question[12:] + ANSWER * results, client)

        thread = threading.Thread(target=result)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("reply", "yes", "why"),
    [
        (YES, True, f"{NAME} is 10.51.0.1, says 10.96.0.10"),
        (NO, False, f"10.96.0.10:53 does not know the name {NAME} (code 3)"),
        ((0x8182, 0), False, f"10.96.0.10:53 does not know the name {NAME} (code 2)"),
    ],
)
def test_an_answer_is_read(context: Context, reply: tuple[int, int], yes: bool, why: str) -> None:
    with a_server(*reply) as port:
        result = dns.look_up(on_machine(context, Fake(port=port)), NAME)
    assert (result.yes, result.why) == (yes, why)


def test_no_answer_is_said(context: Context) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        result = dns.look_up(on_machine(context, Fake(port=silent.getsockname()[1])), NAME)
    assert not result and result.why == "10.96.0.10:53 does not answer: timed out"
