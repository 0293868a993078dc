"""`doit status`: every component of the cluster, and its objects, in one table."""

from __future__ import annotations

import time
from typing import Any

from doit.exceptions import InvalidCommand

from .. import binaries
from ..core import api
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.probe import ask_api
from ..core.result import Result
from . import pods as pods_in_words
from .base import Command


class Status(Command):
    """`doit status`."""

    doc_purpose = "show every component: PID, since when, version, ready or why not; Nodes, Pods and Services"
    doc_usage = ""
    doc_description = None

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print it; return 0 when everything that runs is ready and nothing is missing, else 1."""
        if arguments:
            raise InvalidCommand("`status` takes no arguments.")
        return show(cluster)


def show(cluster: Cluster) -> int:
    """Print every component (PID, since when, version, ready or why not) and the cluster's objects.

    Return 0 when all components are ready, else 1.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    context = cluster.context
    console = Console(width=None if Console().is_terminal else 160)
    is_up = context.machine.is_up()
    console.print(f"machine {context.machine.name}: {escape('on, ' + context.node.address if is_up else is_up.why)}")
    if context.why_release:
        console.print(escape(f"Kubernetes {context.settings.kubernetes}: {context.why_release}"))
    versions = binaries.versions(context)
    table = Table(box=None, pad_edge=False)
    for heading in ("COMPONENT", "PID", "SINCE", "VERSION", "STATE"):
        table.add_column(heading, no_wrap=heading != "STATE")
    all_ready = is_up.yes
    for task, daemon, there in cluster.placed():
        if daemon.disabled_because(there) or (context.settings.shares_host and daemon.needs_root):
            continue  # not part of this cluster
        record = daemon.process(there)
        alive = record is not None and there.machine.processes.is_alive(record)
        result = daemon.is_ready(there)
        all_ready = all_ready and result.yes
        table.add_row(
            task,
            str(record.pid) if record and alive else "-",
            _ago(time.time() - record.since) if record and alive else "-",
            versions.get(daemon.program_name(there), "-"),
            "[green]ready[/]" if result else f"[red]not ready[/]: {escape(result.why)}",
        )
    console.print(table)
    for line in binaries.doubts(context):
        console.print(f"[yellow]! {escape(line)}[/]")
    objects = _objects(context) if is_up else []
    if objects:
        table = Table(box=None, pad_edge=False)
        for heading in ("KIND", "NAME", "STATE"):
            table.add_column(heading)
        for row in objects:
            table.add_row(*map(escape, row))
        console.print()
        console.print(table)
    return 0 if all_ready else 1


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _objects(context: Context) -> list[tuple[str, str, str]]:
    """Return the cluster's Nodes, Pods and Services, each with its kind, its name and how it is."""
    found: list[tuple[str, str, str]] = []

    def nodes(result: Any) -> Result:
        for node in result["items"]:
            ready = {c["type"]: c["status"] for c in node["status"].get("conditions", [])}.get("Ready")
            found.append(("node", node["metadata"]["name"], "Ready" if ready == "True" else "not Ready"))
        return Result(True, "")

    def pods(result: Any) -> Result:
        for pod in result["items"]:
            where = " ".join(filter(None, (pod["spec"].get("nodeName"), pod["status"].get("podIP"))))
            found.append(("pod", api.full_name(pod), f"{pods_in_words.status(pod)} {where}".strip()))
        return Result(True, "")

    def services(result: Any) -> Result:
        for service in result["items"]:
            ports = ",".join(str(port["port"]) for port in service["spec"].get("ports", []))
            found.append(("service", api.full_name(service), f"{service['spec'].get('clusterIP', '')}:{ports}"))
        return Result(True, "")

    for path, judge in (("nodes", nodes), ("pods", pods), ("services", services)):
        if not ask_api(context, f"/api/v1/{path}", judge):
            break  # it does not answer: asking again only takes time
    return found
