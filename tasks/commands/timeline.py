"""`doit timeline`: where the seconds of the last run went: each task, what it waited for, and the critical path."""

from __future__ import annotations

from collections.abc import Sequence

from doit.exceptions import InvalidCommand

from ..core.cluster import Cluster
from ..core.errors import DmucError
from ..core.timeline import Event, critical_path, last_need, stored
from .base import Command

_WIDTH = 40  # characters of the bars


class Timeline(Command):
    """`doit timeline`."""

    doc_purpose = "show where the seconds of the last run went: what each task waited for, and the critical path"
    doc_usage = ""
    doc_description = None

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print it; return 0. Raise DmucError when there is no record of a run."""
        if arguments:
            raise InvalidCommand("`timeline` takes no arguments.")
        events = stored(cluster.context.state)
        if not events:
            seen = f"No run has started anything on {cluster.context.machine.name} yet."
            raise DmucError("showing the timeline of the last run", seen, "Run: scripts/doit")
        draw(events)
        return 0


def draw(events: Sequence[Event]) -> None:
    """Print a bar for each task that did something; those of the critical path (▶) decided how long the run took."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    path, by_name = critical_path(events), {event.name: event for event in events}
    total = max(event.ended for event in events)
    table = Table(box=None, pad_edge=False)
    for heading in ("", "TASK", "WAITED FOR"):
        table.add_column(heading, no_wrap=True)
    for heading in ("BEGAN", "TOOK"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for event in events:
        need = last_need(event, by_name)
        critical = event in path
        if event.up_to_date and not critical:
            continue
        begin, end = (round(_WIDTH * seconds / total) for seconds in (event.begun, event.ended))
        style = "bold yellow" if critical else "dim"
        table.add_row(
            "▶" if critical else "",
            f"[{style}]{escape(event.name)}[/]",
            escape(need.name) if need else "",
            f"{event.begun:.2f} s",
            "up to date" if event.up_to_date else f"{event.ended - event.begun:.2f} s",
            f"[{style}]{' ' * begin}{'█' * max(1, end - begin)}[/]",
        )
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    before = sum(_gap(event, by_name) for event in path)
    console.print(
        f"\n▶ critical path: {total:.1f} s, of which {before:.1f} s passed before its tasks began, with nothing left "
        "that they needed (dmuc's own time)"
    )


def _gap(event: Event, events: dict[str, Event]) -> float:
    """Return the seconds between the end of what the task waited for and its begin; from the start, if for nothing."""
    need = last_need(event, events)
    return max(0.0, event.begun - (need.ended if need else 0.0))
