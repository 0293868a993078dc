"""`doit status`: every component of the cluster, and its objects, in one table."""

from __future__ import annotations

import time

from ..core import release
from ..core.cluster import Cluster
from ..core.process import Record


def show(cluster: Cluster) -> int:
    """Print every component (PID, since when, version, ready or why not) and the cluster's objects.

    Return 0 when all components are ready, else 1.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    context = cluster.context
    console = Console(width=None if Console().is_terminal else 160)
    down = context.machine.down()
    console.print(f"machine {context.machine.name}: {escape(down or 'on, ' + context.settings.address)}")
    versions = cluster.versions(context)
    table = Table(box=None, pad_edge=False)
    for heading in ("COMPONENT", "PID", "SINCE", "VERSION", "STATE"):
        table.add_column(heading, no_wrap=heading != "STATE")
    all_ready = down is None
    for daemon in cluster.daemons:
        if daemon.unwanted(context) or (context.settings.free_ports and daemon.needs_root):
            continue  # not part of this cluster
        record = Record.load(daemon.record(context))
        alive = record is not None and record.alive()
        answer = daemon.is_ready(context)
        all_ready = all_ready and answer.yes
        table.add_row(
            daemon.label,
            str(record.pid) if record and alive else "-",
            _ago(time.time() - record.since) if record and alive else "-",
            versions.get(daemon.program_name(context), "-"),
            "[green]ready[/]" if answer else f"[red]not ready[/]: {escape(answer.why)}",
        )
    console.print(table)
    for line in release.skew(versions):
        console.print(f"[yellow]! {escape(line)}[/]")
    objects = cluster.objects(context) if down is None else []
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
