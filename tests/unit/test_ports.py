"""Ports: clusters beside each other on one host, on ports that are free."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.core import daemon as daemon_module
from tasks.core import ports
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.ports import Port
from tasks.core.probe import Tcp
from tasks.core.process import Record
from tasks.core.progress import Silent
from tests.unit.support import a_context

WEB, ADMIN = Port("web", 80), Port("admin", 81)
SERVER = Daemon("server", "serve", "server", lambda context: (), ready=Tcp(WEB), ports=(WEB, ADMIN))


def chosen(context: Context) -> tuple[int, int]:
    SERVER.choose_ports(context, {context.port(WEB), context.port(ADMIN)})
    return context.port(WEB), context.port(ADMIN)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return a_context(tmp_path, machine="host.one")


def test_a_machine_of_its_own_has_the_standard_ones(tmp_path: Path) -> None:
    context = a_context(tmp_path, machine="dmuc1")
    assert (*chosen(context), context.server) == (80, 81, "https://10.95.0.2:6443")
    assert not (context.state / "decisions.json").exists()


@pytest.mark.parametrize(("machine", "user", "free"), [
    ("host", 0, False), ("host", 1000, True), ("host.one", 0, True), ("host.one", 1000, True), ("dmuc1", 1000, False),
])  # fmt: skip
def test_whose_ports_are_free_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, user: int, free: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert a_context(tmp_path, machine=machine).settings.shares_host is free


def test_before_the_first_start_nothing_answers(context: Context) -> None:
    assert context.server == "https://127.0.0.1:0"
    assert not Tcp(WEB)(context)


def test_they_are_free_and_stay(context: Context) -> None:
    web, admin = chosen(context)
    assert len({web, admin}) == 2
    assert ports.is_free(web)
    assert ports.is_free(admin)
    assert chosen(context) == (web, admin)


def test_a_port_that_was_taken_meanwhile_is_given_up(context: Context) -> None:
    web, admin = chosen(context)
    with socket.create_server(("127.0.0.1", web)):
        now = chosen(context)
    assert now[0] != web
    assert now[1] == admin


def test_one_that_is_taken_on_every_address_is_not_free() -> None:
    with socket.create_server(("", 0)) as taken:
        assert not ports.is_free(taken.getsockname()[1])


def test_one_that_was_left_a_moment_ago_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as client:
            server.accept()[0].close()  # the server's end first: the kernel keeps the port for it, in TIME_WAIT
            assert client.recv(1) == b""
    assert ports.is_free(number)


def test_its_own_are_not_free_and_stay(context: Context) -> None:
    web, admin = chosen(context)
    context.pidfiles.mkdir()
    Record.of(os.getpid(), ["server"], {}).save(SERVER.record(context))
    with socket.create_server(("127.0.0.1", web)):
        assert chosen(context) == (web, admin)


def test_where_all_are_taken_that_is_said(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda number: False)
    with pytest.raises(DmucError, match="all are in use"):
        chosen(context)


def test_what_takes_the_whole_machine_is_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "is_root", lambda: True)
    with pytest.raises(DmucError, match="needs a machine of its own"):
        replace(SERVER, needs_root=True).start(context, Silent())
