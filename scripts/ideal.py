"""The fastest start that is known, written by hand: dmuc's programs, flags, files and machine, without its checks.

Each program is started at the earliest useful moment, and each moment is awaited by a watch of the API (`?watch=1`) or,
where there is none, by asking every 10 ms. Before the clock starts the programs are known, the images are in the
registry's directory, and Python runs, whose start dmuc's own time includes.

    machine ─┬─ engine ── images ─────────────────┐
    keys ────┴─ etcd ── API server ─┬─ kubelet ───┼── node has no taint ─┐
                registry            └─ roles ─┬─ controller manager ── token ─┴─ Deployment, Service ── page
                                              ├─ scheduler
                                              └─ kube-proxy (when the node has its address)
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from tasks import (
    apiserver,
    container_engine,
    controller_manager,
    deployment,
    etcd,
    images,
    kubeconfig,
    kubelet,
    machine,
    pki,
    registry,
    scheduler,
    service,
    service_account,
)
from tasks.choices import rbac_enabled
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.http_client import tls_context
from tasks.core.ports import API
from tasks.core.probe import Http
from tasks.core.progress import Silent
from tasks.proxies import kube_proxy

_PAUSE = 0.01  # seconds between two questions where nothing can be watched
_DEADLINE = 120.0  # seconds for the whole start


def start(context: Context) -> tuple[float, dict[str, float]]:
    """Start the cluster of this context from nothing; return the seconds to the page, and when each moment came."""
    with ThreadPoolExecutor() as pool:
        moments = _Start(context, pool).run()
    return moments["page"], moments


class _Start:
    """One start: its clock, and what its threads have in common."""

    def __init__(self, context: Context, pool: ThreadPoolExecutor) -> None:
        self.context, self.pool = context, pool
        self.begin, self.moments = time.monotonic(), dict[str, float]()
        self.roles = Future[None]()

    def note(self, name: str) -> None:
        self.moments[name] = time.monotonic() - self.begin

    def until(self, name: str, check: Callable[[Context], object]) -> None:
        while not check(self.context):
            if time.monotonic() > self.begin + _DEADLINE:
                raise DmucError("the start by hand", f"{name}: not within {_DEADLINE:g} s")
            time.sleep(_PAUSE)
        self.note(name)

    def run(self) -> dict[str, float]:
        """Start everything; return when each moment came."""
        context = self.context
        keys = self.pool.submit(self.make_keys)
        machine.MACHINE.make(context, Silent())
        self.note("machine")
        context.node.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _launch(context, container_engine.CONTAINER_ENGINE)
        _launch(context, registry.REGISTRY)
        engine = self.pool.submit(self.pull_images)
        keys.result()
        _launch(context, etcd.ETCD)
        self.until("etcd", etcd.ETCD.started or etcd.ETCD.ready)
        _launch(context, apiserver.APISERVER)
        self.until("API server", apiserver.APISERVER.started or apiserver.APISERVER.ready)
        others = [self.pool.submit(self.await_token), self.pool.submit(self.await_node), engine]
        self.await_roles()
        for other in others:
            other.result()
        _post(context, deployment.PATH.rpartition("/")[0], deployment.MANIFEST)
        _post(context, service.PATH.rpartition("/")[0], service.MANIFEST)
        self.note("Deployment, Service")
        path = "/api/v1/namespaces/default/endpoints?fieldSelector=metadata.name%3Dweb"
        _watch(context, path, lambda one: any(subset.get("addresses") for subset in one.get("subsets", ())))
        self.note("endpoints")
        self.until("page", service.SERVICE_REACHABLE.holds)
        return self.moments

    def make_keys(self) -> None:
        pki.PKI.make(self.context, Silent())
        kubeconfig.KUBECONFIG.make(self.context, Silent())

    def pull_images(self) -> None:
        self.until("engine", container_engine.CONTAINER_ENGINE.ready)
        self.until("registry", registry.REGISTRY.ready)
        images.IMAGES.make(self.context, Silent())
        self.note("images")

    def await_roles(self) -> None:
        try:
            if rbac_enabled(self.context):
                self.until("roles", Http("{server}/readyz/poststarthook/rbac/bootstrap-roles"))
            self.roles.set_result(None)
        except DmucError as error:
            self.roles.set_exception(error)

    def await_node(self) -> None:
        context = self.context
        if context.release_of("kubelet").node_first:
            _post(context, "/api/v1/nodes", kubelet.manifest(context))
        _launch(context, kubelet.KUBELET)
        path = f"/api/v1/nodes?fieldSelector=metadata.name%3D{context.node.name}"
        _watch(context, path, lambda one: any(a["type"] == "InternalIP" for a in one["status"].get("addresses", ())))
        self.note("node has its address")
        self.roles.result()
        _launch(context, kube_proxy.DAEMON)
        _watch(context, path, _is_ready)
        self.note("node is ready, without taints")

    def await_token(self) -> None:
        self.roles.result()
        _launch(self.context, controller_manager.CONTROLLER_MANAGER)
        _launch(self.context, scheduler.SCHEDULER)
        self.until("controller manager", controller_manager.CONTROLLER_MANAGER.ready)
        self.until("token", service_account.SERVICE_ACCOUNT.holds)


def _is_ready(node: Any) -> bool:
    taints = [taint for taint in node["spec"].get("taints", ()) if taint["effect"] != "PreferNoSchedule"]
    return not taints and any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])


def _launch(context: Context, daemon: Daemon) -> None:
    """Start the daemon with dmuc's command line, files and environment; check and await nothing."""
    there = context.beside_the_machine() if daemon.on_host else context
    directories = (there.logs, there.pidfiles, there.home, daemon.directory(there), *daemon.keeps(there))
    for directory in directories:
        there.machine.path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    if daemon.prepare is not None and daemon is not kubelet.KUBELET:  # its Node is created above
        daemon.prepare(there)
    for path, text in daemon.writes(there).items():
        there.machine.path(path.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        there.machine.write(path, text, 0o700 if text.startswith("#!") else 0o600)
    command = daemon.command(there)
    spawned = there.machine.spawn(
        command, log=daemon.log(there), cwd=daemon.directory(there), environment=there.environment()
    )
    there.machine.processes.save(daemon.record(there), spawned.pid, command, {}, 0)


def _connection(context: Context, limit: float) -> HTTPConnection:
    stream = context.machine.connect(context.settings.address, context.port(API), limit)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = HTTPConnection(context.settings.address)
    connection.sock = tls_context(context.pki).wrap_socket(stream, server_hostname=context.settings.address)
    return connection


def _post(context: Context, path: str, manifest: dict[str, Any]) -> None:
    connection = _connection(context, _DEADLINE)
    connection.request("POST", path, json.dumps(manifest), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status >= 300:
        raise DmucError(f"POST {path}", f"{response.status} {text.decode()}")


def _events(connection: HTTPConnection, path: str) -> Iterator[Any]:
    connection.request("GET", path)
    response = connection.getresponse()
    while line := response.readline():
        yield json.loads(line)


def _watch(context: Context, path: str, holds: Callable[[Any], bool]) -> None:
    """Return when one of the objects that `path` lists fulfils `holds`."""
    connection = _connection(context, _DEADLINE)
    for event in _events(connection, f"{path}&watch=1"):  # begins with the objects that exist already
        if event["type"] in {"ADDED", "MODIFIED"} and holds(event["object"]):
            connection.close()
            return
    raise DmucError(f"watching {path}", "The API server ended the watch.")
