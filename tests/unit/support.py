"""What several of these tests stand on: a context of its own, waiting for a condition, a web server on the loopback."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dodo
from tasks.cluster import load
from tasks.core import release
from tasks.core.context import Context
from tasks.core.facts import HostFacts
from tasks.core.machine import Host, Machine
from tasks.core.node import Node
from tasks.core.progress import Silent
from tasks.core.settings import Settings

CHECKOUT = Path(__file__).parents[2]
# The name of a directory that is none in no language that does not quote it. DEL and the emoji are for TOML and YAML.
NASTY = 'it\'s a "chéck\\out" #1 $HOME `id` {x} \\' + "\U0001f600 \x7f&;*"


class Told(Silent):
    """A Progress that remembers what was said, and can act on it."""

    def __init__(self, heard: Callable[[str], None] = lambda text: None) -> None:
        super().__init__()
        self.heard = heard
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.heard(text)


def ending_the_run(when: Callable[[str], bool]) -> Told:
    """A Progress whose run is ended at the first note for which `when` holds."""
    told = Told(lambda text: told.stop.set() if when(text) else None)
    return told


def a_host(**given: Any) -> HostFacts:
    """A host of which these facts are given (functions where a fact takes arguments); the others are fine."""
    fine: dict[str, Any] = {
        "lacking_capabilities": [],
        "has_swap": False,
        "has_cgroup_v1": True,
        "cgroup_version": "v1",
        "cgroup_controllers": {*["blkio", "cpu", "cpuacct", "cpuset", "devices", "io", "memory", "pids"]},
        "undelegated_controllers": [],
        "has_module": lambda name, option: True,
        "has_filesystem": lambda name: True,
        "has_ipvs": False,
        "iptables": ("nft", "1.8.9"),
        "available_memory": 8000,
        "free_disk": lambda path: 50_000,
    }
    values = fine | given
    facts = {name: staticmethod(value) if callable(value) else value for name, value in values.items()}
    host: HostFacts = type("Given", (HostFacts,), facts)()
    return host


def a_context(root: Path, on: Machine | None = None, host: HostFacts | None = None, **settings: Any) -> Context:
    """A cluster with all that it has under `root`, on the host unless another machine is given."""
    own: dict[str, Any] = {"machine": "host", "cache": root / "cache", "kubernetes": "1.20"}
    chosen = Settings(**own | settings)
    state = root / "var" / chosen.machine
    state.mkdir(parents=True, exist_ok=True)
    name = "host" if chosen.on_host else chosen.machine
    node = Node(name, on or Host(), chosen.address, chosen.pod_range, state)
    return Context(chosen, release.find(chosen.kubernetes), [node], state, facts=host or HostFacts())


def on_machine(context: Context, machine: Machine) -> Context:
    """The same cluster with its node on another machine."""
    return replace(context, nodes=[replace(context.node, machine=machine)])


def set_programs(context: Context, programs: Mapping[str, str | Path]) -> None:
    """Have the programs be found at these paths."""
    context.programs_file.write_text(json.dumps({name: {"path": str(path)} for name, path in programs.items()}))


def a_program(path: Path, script: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def eventually(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until the condition holds; fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def load_dodo(directory: Path, host: HostFacts | None = None) -> SimpleNamespace:
    """The real parts, and the cluster that they come to with `directory` for its checkout and nothing of ours set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DMUC_")}
    cluster = load(directory, environment, ["kubernetes=1.20"], dodo.PARTS, facts=host)
    return SimpleNamespace(PARTS=dodo.PARTS, DMUC=cluster, dodo=dodo)


class Site(http.server.ThreadingHTTPServer):
    """A web server on the loopback: what it answers to which path is in `pages`, as status and body."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int] | str = ("127.0.0.1", 0)) -> None:
        if isinstance(address, str):
            self.address_family = socket.AF_UNIX
        super().__init__(address, _Handler)  # type: ignore[arg-type]
        self.pages: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks up the name of the address.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", 0
        if self.address_family != socket.AF_UNIX:
            self.server_port = int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(with_body=True)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.pages.get(self.path, (404, b"404 page not found"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Have it serve for as long as the body runs."""
    thread = threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
        thread.join()
