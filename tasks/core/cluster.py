"""A cluster as a whole: what dodo.py puts together, and what the commands work on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from .context import Context
from .daemon import Daemon
from .graph import Part, join
from .process import Record


@dataclass(frozen=True)
class Cluster:
    """The context, the parts in the order of the walk-through, and how to tell what runs on it."""

    context: Context
    parts: Sequence[Part]
    arguments: Mapping[str, str] = field(default_factory=dict)  # the settings on the command line
    behind_dashes: Sequence[str] = ()  # the words of the command line after `--`

    @property
    def daemons(self) -> list[Daemon]:
        """The parts that are processes, in the order of the walk-through."""
        return [part for part in self.parts if isinstance(part, Daemon)]

    def refuse_what_cannot_be(self, names: Collection[str]) -> None:
        """Raise DmucError when one of these tasks can never be on the host, before the others take their time."""
        for daemon in self.daemons if self.context.settings.on_host else ():
            if daemon.name in names and not daemon.unwanted(self.context):
                daemon.refuse_where_it_cannot_be(self.context)

    def running(self) -> dict[str, Record]:
        """Give the daemons that run, by label."""
        records = {daemon.name: Record.load(daemon.record(self.context)) for daemon in self.daemons}
        return {label: record for label, record in records.items() if record and record.alive()}

    def choose_ports(self) -> None:
        """Have a port for everything that listens, before anything is started that must know it."""
        for daemon in self.daemons:
            taken = {self.context.port(port) for other in self.daemons for port in other.ports}
            daemon.choose_ports(self.context, taken)

    def power_off(self) -> None:
        """End every process of the cluster; what they stored stays. Never asks a daemon, and can be repeated."""
        self.context.machine.power_off()
        for daemon in reversed(self.daemons):  # those that were not in it
            daemon.stop(self.context)

    def remove(self) -> None:
        """Power off and remove all state. Can be interrupted anywhere and repeated."""
        if not self.context.machine.whole:
            for goal in reversed(join(self.parts, self.context)):
                if goal.undo is not None:
                    goal.undo(self.context)
        self.power_off()
        state = self.context.state
        if state.exists():
            shutil.rmtree(state)
        with contextlib.suppress(OSError):  # another machine's is there, too
            state.parent.rmdir()
