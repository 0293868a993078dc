"""Questions get a yes or a no with its reason, in bounded time, from real servers on the loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tasks import pki
from tasks.core import http_client, probe
from tasks.core.certificates import Certificate, make
from tasks.core.context import Context
from tasks.core.errors import DmucError, Interrupted
from tasks.core.http_client import request
from tasks.core.machine import Host
from tasks.core.probe import All, Chosen, Http, Tcp, Unix, ask_api, simple, wait, wait_or_fail
from tasks.core.progress import Silent
from tasks.core.result import Result
from tests.unit.support import Site, Told, a_context, ending_the_run, free_port, on_machine, serving

LONG = 60.0  # a deadline that no test reaches


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return a_context(tmp_path)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


@contextmanager
def misbehaving(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a server that calls `behave` with its first connection; return the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


# Http


def test_a_page_is_a_yes(context: Context, site: Site) -> None:
    site.pages["/healthz"] = (200, b"ok")
    result = Http(f"{site.url}/healthz")(context)
    assert result
    assert result.why == f"{site.url}/healthz answers"
    assert site.asked == ["/healthz"]


@pytest.mark.parametrize("url", ["{}", "{}/"])
def test_a_url_without_a_path_asks_for_the_root(context: Context, site: Site, url: str) -> None:
    site.pages["/"] = (200, b"")
    assert Http(url.format(site.url))(context)


@pytest.mark.parametrize("status", [201, 204, 301, 401, 404, 500, 503])
def test_another_status_is_a_no_that_says_it(context: Context, site: Site, status: int) -> None:
    site.pages["/"] = (status, b"no" if status != 204 else b"")
    result = Http(f"{site.url}/")(context)
    assert not result
    assert result.why.startswith(f"{site.url}/: {status}")


def test_what_is_expected_must_be_in_the_body(context: Context, site: Site) -> None:
    site.pages["/"] = (200, b'{"health":"false"}')
    assert Http(f"{site.url}/", expect='"health":"(true|false)"')(context)
    result = Http(f"{site.url}/", expect='"health":"true"')(context)
    assert not result
    assert result.why == f'{site.url}/: 200 {{"health":"false"}}'


def test_of_a_list_of_checks_the_failing_ones_are_said(context: Context, site: Site) -> None:
    site.pages["/readyz"] = (
        500,
        b"[+]ping ok\n[+]log ok\n[-]etcd failed: reason withheld\n[+]a ok\n[-]b failed: reason withheld\n"
        b"healthz check failed\n",
    )
    result = Http(f"{site.url}/readyz")(context)
    assert result.why == f"{site.url}/readyz: 500 [-]etcd failed: reason withheld; [-]b failed: reason withheld"


def test_a_long_body_is_said_in_part(context: Context, site: Site) -> None:
    site.pages["/"] = (500, b"x" * 100_000)
    assert len(Http(f"{site.url}/")(context).why) < 300


def test_a_body_that_is_not_text_is_no_error(context: Context, site: Site) -> None:
    site.pages["/"] = (200, b"\xff\xfe")
    assert Http(f"{site.url}/")(context)


@pytest.mark.parametrize(("url", "port"), [("http://one.example", 80), ("https://one.example/x", 443)])
def test_a_url_without_a_port_means_that_of_its_scheme(context: Context, url: str, port: int) -> None:
    asked: list[tuple[str, int]] = []

    class Refusing(Host):
        def connect(self, host: str, port: int, *arguments: Any) -> socket.socket:
            asked.append((host, port))
            raise ConnectionRefusedError

    assert not Http(url, own_ca=False)(on_machine(context, Refusing()))
    assert asked == [("one.example", port)]


def test_a_refused_connection_is_said(context: Context) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    assert Http(url)(context) == Result(False, f"{url}: connection refused")


@pytest.mark.parametrize(
    "result",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal"],
    ids=["no", "other", "part"],
)
def test_what_is_no_proper_answer_is_a_no(context: Context, result: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(result)

    with misbehaving(behave) as port:
        got = Http(f"http://127.0.0.1:{port}/")(context)
    assert not got
    assert got.why.startswith(f"http://127.0.0.1:{port}/: ")
    assert got.why != f"http://127.0.0.1:{port}/: "


def listen_only(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def test_an_answer_that_does_not_come_is_not_waited_for(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "LIMIT", 0.2)
    for scheme in ("http", "https"):
        with misbehaving(listen_only) as port:
            begun = time.monotonic()
            result = Http(f"{scheme}://127.0.0.1:{port}/", own_ca=False)(context)
            assert time.monotonic() - begun < 5
        assert "timed out" in result.why


def test_an_answer_that_drips_is_not_waited_for(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "LIMIT", 0.2)
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with connection:
            for _ in range(40):  # 2 s
                if over.wait(0.05):
                    break
                try:
                    connection.sendall(b"x")
                except OSError:
                    break

    with misbehaving(drip) as port:
        begun = time.monotonic()
        Http(f"http://127.0.0.1:{port}/")(context)
        took = time.monotonic() - begun
        over.set()
    assert took < 1


def test_the_machines_address_is_put_in(context: Context, site: Site) -> None:
    site.pages["/"] = (200, b"")
    assert Http(f"http://{{address}}:{site.server_port}/")(context)


# Http, on a socket of a file


def test_a_unix_socket_is_asked(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with serving(Site("docker.sock")) as site:
        site.pages["/_ping"] = (200, b"OK")
        site.pages["/images/nginx:latest/json"] = (200, b"{}")
        assert Http("unix://docker.sock:/_ping", expect="OK")(context)
        assert Http("unix://docker.sock:/images/nginx:latest/json")(context)
        assert "404" in Http("unix://docker.sock:/images/other:1.0/json")(context).why


def test_a_unix_socket_that_is_not_there_is_said(context: Context, tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/docker.sock:/_ping"
    assert Http(url)(context) == Result(False, f"{url}: no such file or directory")


def test_a_unix_socket_without_a_listener_is_reported(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind("docker.sock")
    assert Http("unix://docker.sock:/_ping")(context).why.endswith(": connection refused")


def test_a_socket_that_accepts_is_a_yes(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Unix("engine.sock")(context) == Result(False, "unix://engine.sock: no such file or directory")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("engine.sock")
        assert Unix("engine.sock")(context) == Result(False, "unix://engine.sock: connection refused")
        listening.listen()
        assert Unix("engine.sock")(context)


def test_a_probe_that_is_chosen_is_that_probe(context: Context, site: Site) -> None:
    site.pages["/"] = (200, b"")
    yes, no = Tcp(site.server_port), Tcp(free_port())
    by_name = Chosen(lambda context: yes if context.settings.machine == "host" else no)
    assert by_name(context) == yes(context)
    assert simple(All([by_name, no]), context) == [yes, no]


# Http, with TLS


@pytest.fixture
def tls_site(context: Context) -> Iterator[Site]:
    """As the API server does: the server's certificate is of our CA, and so must the client's be."""
    pki.PKI.make(context, Silent())
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(context.pki / "ca.crt"))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(context.pki / "apiserver.crt", context.pki / "apiserver.key")
    site = Site()
    site.socket = tls.wrap_socket(site.socket, server_side=True)
    site.pages["/version"] = (200, b"{}")
    site.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    with serving(site):
        yield site


def test_server_and_client_show_certificates_of_our_ca(context: Context, tls_site: Site) -> None:
    assert Http(f"https://127.0.0.1:{tls_site.server_port}/version")(context)
    assert not Http(f"https://127.0.0.1:{tls_site.server_port}/version", own_ca=False)(context)  # shows none


def test_a_server_of_another_ca_is_not_believed(context: Context, tls_site: Site, tmp_path: Path) -> None:
    other = a_context(tmp_path / "other")
    pki.PKI.make(other, Silent())
    assert "certificate" in Http(f"https://127.0.0.1:{tls_site.server_port}/version")(other).why


def test_new_certificates_are_seen(context: Context, tls_site: Site) -> None:
    http = Http(f"https://127.0.0.1:{tls_site.server_port}/version")
    assert http(context)
    (context.pki / "ca.key").unlink()
    pki.PKI.make(context, Silent())
    assert "certificate" in http(context).why


def test_without_certificates_there_is_a_reason(context: Context, site: Site) -> None:
    result = Http(f"https://127.0.0.1:{site.server_port}/")(context)
    assert "no certificates yet" in result.why
    assert str(context.pki / "ca.crt") in result.why


# Others


def test_a_port_that_accepts_is_a_yes(context: Context, site: Site) -> None:
    assert Tcp(site.server_port)(context)
    port = free_port()
    assert Tcp(port)(context) == Result(False, f"127.0.0.1:{port}: connection refused")


def test_the_first_no_of_all_is_the_answer(context: Context) -> None:
    asked: list[str] = []

    def says(name: str, yes: bool) -> Callable[[Context], Result]:
        def ask(context: Context) -> Result:
            asked.append(name)
            return Result(yes, name)

        return ask

    assert All([says("a", True), says("b", False), says("c", False)])(context) == Result(False, "b")
    assert asked == ["a", "b"]
    assert All([says("a", True), says("b", True)])(context) == Result(True, "b")


def test_an_object_is_judged_only_when_it_is_there(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [(200, '{"kind": "Pod"}'), (404, "not found"), (403, "forbidden"), (200, "<html>")]
    monkeypatch.setattr(probe, "request", lambda context, url: given.pop(0))

    def pod(asked: Context) -> Result:
        return ask_api(asked, "/api/v1/pods/web", lambda seen: Result(seen["kind"] == "Pod", "a Pod"))

    assert pod(context) == Result(True, "a Pod")
    assert pod(context) == Result(False, "/api/v1/pods/web: there is no such object")
    assert pod(context) == Result(False, "/api/v1/pods/web: 403 forbidden")
    assert not pod(context)


def test_without_an_api_server_an_object_is_a_no(context: Context) -> None:
    result = ask_api(context, "/api/v1/pods/web", lambda seen: Result(True, ""))
    assert result.why.startswith("the API server does not answer: ")


def test_a_question_leaves_no_socket_open(context: Context, site: Site) -> None:
    site.pages["/"] = (200, b"ok")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        request(context, f"{site.url}/")
        Http(f"unix://{context.state}/none:/")(context)
        Http(f"http://127.0.0.1:{free_port()}/")(context)
    assert len(os.listdir("/proc/self/fd")) < before + 10  # noqa: PTH208


# Waiting


def after(number: int) -> Callable[[Context], Result]:
    """A probe that says yes when it has said no so many times."""
    said = iter(range(number))
    return lambda context: Result((left := next(said, None)) is None, f"asked {left}" if left is not None else "done")


def test_waiting_ends_with_the_first_yes(context: Context) -> None:
    told = Told()
    assert wait(context, after(2), deadline=LONG, progress=told) == Result(True, "done")
    assert told.notes == ["waiting: asked 0", "waiting: asked 1", "done"]


def test_a_yes_at_once_takes_no_time(context: Context) -> None:
    begun = time.monotonic()
    for _ in range(100):
        assert wait(context, after(0), deadline=LONG, progress=Silent())
    assert time.monotonic() - begun < 5


def test_waiting_ends_at_its_deadline_with_the_last_answer(context: Context) -> None:
    told = Told()
    begun = time.monotonic()
    result = wait(context, after(10**6), deadline=0.3, progress=told)
    assert 0.2 <= time.monotonic() - begun < 10
    assert not result
    assert told.notes[-1] == f"waiting: {result.why}"
    assert len(told.notes) > 1


def test_waiting_ends_at_once_when_it_never_will_be(context: Context) -> None:
    asked: list[str] = []

    def alive() -> bool:
        asked.append("alive?")
        return len(asked) < 3

    begun = time.monotonic()
    assert not wait(context, after(10**6), deadline=LONG, progress=Silent(), alive=alive)
    assert time.monotonic() - begun < LONG / 2
    assert len(asked) == 3


def test_waiting_ends_when_the_run_is_ended(context: Context) -> None:
    told = ending_the_run(lambda text: text == "waiting: asked 2")
    with pytest.raises(Interrupted, match="asked 2"):
        wait(context, after(10**6), deadline=LONG, progress=told)


def test_a_pause_between_two_questions_ends_when_the_run_is_ended(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_LEAST", LONG)
    monkeypatch.setattr(probe, "_MOST", LONG)
    asked = threading.Event()

    def stop() -> None:
        asked.wait()
        told.stop.set()

    told = Told(lambda text: asked.set())
    stopper = threading.Thread(target=stop)
    stopper.start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        wait(context, after(10**6), deadline=2 * LONG, progress=told)
    assert time.monotonic() - begun < LONG / 2
    stopper.join()


def test_a_yes_counts_even_when_the_run_is_ended(context: Context) -> None:
    progress = Silent()
    progress.stop.set()
    assert wait(context, after(0), deadline=LONG, progress=progress)


def test_a_no_at_the_deadline_is_an_error_with_what_was_seen(context: Context) -> None:
    with pytest.raises(DmucError) as error:
        wait_or_fail(context, after(10**6), deadline=0.1, progress=Silent(), tried="waiting for Godot")
    assert error.value.tried == "waiting for Godot: not within 0.1 s"
    assert error.value.seen.startswith("last answer: asked ")
    assert "deadline=SECONDS" in error.value.do


def test_the_next_question_over_tls_needs_no_new_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = a_context(tmp_path)
    context.pki.mkdir()
    make(
        context.pki,
        [
            Certificate("ca", "ca", "dmuc"),
            Certificate("admin", "ca", "admin", client=True),
            Certificate("server", "ca", "server", server=["127.0.0.1"]),
        ],
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(context.pki / "server.crt", context.pki / "server.key")
    accepted: list[ssl.SSLSocket] = []

    class Lasting(Site):
        def get_request(self) -> Any:
            stream, address = super().get_request()
            accepted.append(tls.wrap_socket(stream, server_side=True))
            return accepted[-1], address

        def end_connections(self) -> None:
            for stream in accepted:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)

    site = Lasting()
    monkeypatch.setattr(site.RequestHandlerClass, "protocol_version", "HTTP/1.1")
    site.pages["/"] = (200, b"one")
    url = f"https://127.0.0.1:{site.server_port}/"
    with serving(site):
        assert request(context, url) == (200, "one")
        assert request(context, url) == (200, "one")
        assert len(accepted) == 1
        site.end_connections()
        assert request(context, url) == (200, "one")  # the server has closed it: a new one is opened
        assert len(accepted) == 2
    site.end_connections()
    with pytest.raises(OSError, match="refused"):  # a connection that was kept does not make a dead server alive
        request(context, url)


def test_a_packet_that_gets_lost_delays_a_connection_by_less_than_a_second(context: Context, site: Site) -> None:
    limits: list[float] = []

    @dataclass(frozen=True)
    class Losing(Host):
        def connect(
            self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
        ) -> socket.socket:
            limits.append(timeout)
            if len(limits) < 3:
                raise TimeoutError("timed out")
            return super().connect(host, port, timeout, kind)

    there = on_machine(context, Losing())
    assert request(there, f"http://127.0.0.1:{site.server_port}/")[0] == 404
    assert limits == sorted(limits) and sum(limits) < 1


def test_the_attempts_to_connect_take_the_time_of_one_request_in_all(context: Context) -> None:
    limits: list[float] = []

    @dataclass(frozen=True)
    class Deaf(Host):
        def connect(
            self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
        ) -> socket.socket:
            limits.append(timeout)
            raise TimeoutError("timed out")

    assert not Http("http://10.0.0.1/")(on_machine(context, Deaf()))
    assert sum(limits) == pytest.approx(http_client.LIMIT)


def test_a_server_may_take_longer_to_answer_than_to_accept(context: Context) -> None:
    def slowly(connection: socket.socket) -> None:
        connection.recv(1000)
        time.sleep(5 * http_client._FIRST)  # the answer of a busy server
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nok")

    with misbehaving(slowly) as port:
        assert request(context, f"http://127.0.0.1:{port}/") == (200, "ok")


def test_on_a_slow_host_one_may_be_more_patient(context: Context) -> None:
    assert http_client.limit_of(context) == http_client.LIMIT
    patient = replace(context, settings=replace(context.settings, patience=5.0))
    assert http_client.limit_of(patient) == 5 * http_client.LIMIT
