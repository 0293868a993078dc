"""A wait for an object watches the object: one request until it changes, instead of many."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tasks.core.context import Context
from tasks.core.errors import Interrupted
from tasks.core.probe import ask_api, wait
from tasks.core.progress import Silent
from tasks.core.result import Result
from tests.unit.support import Told, a_context
from tests.unit.test_api import Elsewhere, with_certificates

PATH = "/api/v1/nodes/dmuc1"


@dataclass
class Server:
    """An API server with one object, which a test changes."""

    number: int = 0  # port
    version: int = 0  # of the object; 0: there is none
    watches: bool = True
    asked: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def change(self) -> None:
        with self.changed:
            self.version += 1
            self.changed.notify_all()

    def thing(self) -> dict[str, Any]:
        return {"metadata": {"name": "dmuc1", "resourceVersion": str(self.version)}}

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        url = urlsplit(path)
        query = parse_qs(url.query)
        if not query:
            return (200, json.dumps(self.thing()).encode()) if self.version else (404, b"{}")
        if not self.watches:
            return 403, b"{}"
        assert url.path == "/api/v1/nodes" and query["fieldSelector"] == ["metadata.name=dmuc1"]
        seen = int(query.get("resourceVersion", ["0"])[0])
        with self.changed:
            self.changed.wait_for(lambda: self.version > seen, float(query["timeoutSeconds"][0]))
        event = json.dumps({"type": "MODIFIED", "object": self.thing()}) + "\n"
        return 200, event.encode() if self.version > seen else b""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    context, server = with_certificates(a_context(tmp_path)), Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = server.answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(context.pki / "apiserver.crt", context.pki / "apiserver.key")
        site.socket = tls.wrap_socket(site.socket, server_side=True)
        server.number = site.server_address[1]
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield server
        site.shutdown()


@pytest.fixture
def context(tmp_path: Path, server: Server) -> Context:
    machine = Elsewhere(site=type("Port", (), {"server_port": server.number}))  # type: ignore[arg-type]
    return a_context(tmp_path, machine)


def is_third(context: Context) -> Result:
    return ask_api(context, PATH, lambda found: Result(found["metadata"]["resourceVersion"] == "3", "not the third"))


def test_each_change_is_seen_at_once_and_costs_two_requests(context: Context, server: Server) -> None:
    def heard(text: str) -> None:
        threading.Timer(0.3, server.change).start()  # three times the longest pause between two questions

    assert wait(context, is_third, deadline=20, progress=Told(heard))
    watched = [path for path in server.asked if "watch=1" in path]
    assert [path.partition("resourceVersion=")[2] for path in watched] == ["", "1", "2"]
    assert len(server.asked) == 7


def test_without_a_change_the_object_is_asked_for_again_after_a_second(context: Context, server: Server) -> None:
    server.version = 1
    assert not wait(context, is_third, deadline=1.5, progress=Silent())
    assert 2 <= server.asked.count(PATH) <= 5


def test_where_it_cannot_be_watched_it_is_asked_for_again_and_again(context: Context, server: Server) -> None:
    server.watches, server.version = False, 1
    progress = Told(lambda text: server.change() if len(server.asked) > 9 else None)
    assert wait(context, is_third, deadline=20, progress=progress)


def test_a_watch_ends_when_the_run_ends(context: Context, server: Server) -> None:
    progress = Told()
    threading.Timer(0.2, progress.stop.set).start()
    with pytest.raises(Interrupted):
        wait(context, is_third, deadline=20, progress=progress)
