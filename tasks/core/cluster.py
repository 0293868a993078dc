"""The cluster as a whole, on which the commands work."""

from __future__ import annotations

import contextlib
import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .context import Context
from .daemon import Daemon
from .errors import DmucError
from .goal import STARTED, resolve
from .graph import Part, join
from .process import Record

Step = tuple[str, Callable[[], None]]  # the name of a step, and its action


@dataclass(frozen=True)
class Cluster:
    """A cluster: its context and its parts, in the order of the walk-through."""

    context: Context
    parts: Sequence[Part]
    arguments: Mapping[str, str] = field(default_factory=dict)  # the settings on the command line
    behind_dashes: Sequence[str] = ()  # the words of the command line after `--`

    @property
    def daemons(self) -> list[Daemon]:
        """The daemons among the parts, in the order of the walk-through."""
        return [part for part in self.parts if isinstance(part, Daemon)]

    def impossible(self) -> set[str]:
        """Return the names of the parts that this cluster can never have: those that need root and a machine of their
        own, and what needs these.
        """
        if not self.context.settings.shares_host:
            return set()
        goals = join(self.parts, self.context)
        never = {
            name for daemon in self.daemons if daemon.needs_root for name in (daemon.name, f"{daemon.name}{STARTED}")
        }
        grows = True
        while grows:
            more = {goal.name for goal in goals if never.intersection(resolve(goal.needs, self.context))} - never
            never |= more
            grows = bool(more)
        return {name.removesuffix(STARTED) for name in never}

    def placed(self) -> list[tuple[str, Daemon, Context]]:
        """Return each daemon on each of its nodes: the task's name, the daemon, and the context of that node."""
        nodes = [node.name for node in self.context.nodes]
        several = len(nodes) > 1
        return [
            (
                f"{daemon.name}:{node}" if several and daemon.nodes == "each" else daemon.name,
                daemon,
                self.context.on(node),
            )
            for daemon in self.daemons
            for node in (nodes if daemon.nodes == "each" else nodes[:1])
        ]

    def daemons_called(self, tried: str, names: Sequence[str]) -> list[tuple[str, Daemon, Context]]:
        """Return the daemons with these names, of a task or a program, on all their nodes; see `placed`.

        Raise DmucError, with `tried`, when there is no such daemon, or no name.
        """
        import difflib

        called: dict[str, list[tuple[str, Daemon, Context]]] = {}
        for one in self.placed():
            task, daemon, there = one
            for name in {task, daemon.name, daemon.program_name(there)}:
                called.setdefault(name, []).append(one)
        tasks = ", ".join(daemon.name for daemon in self.daemons)
        for name in names:
            if name not in called:
                near = difflib.get_close_matches(name, called, 1)
                said = f"Did you mean {near[0]}?" if near else f"Components: {tasks}."
                raise DmucError(tried, f"{name!r} is not a component that runs as a process.", said)
        if not names:
            raise DmucError(tried, "The name of a component is needed.", f"Components: {tasks}.")
        return [one for one in self.placed() if any(one in called[name] for name in names)]

    def refuse_impossible(self, names: Collection[str]) -> None:
        """Raise DmucError when one of these tasks can never run on the host, before any other task starts."""
        for daemon in self.daemons if self.context.settings.on_host else ():
            if daemon.name in names and not daemon.disabled_because(self.context):
                daemon.refuse_where_it_cannot_be(self.context)

    def running(self) -> dict[str, Record]:
        """Return the running daemons: the task's name -> the process."""
        records = {task: (daemon.process(there), there) for task, daemon, there in self.placed()}
        return {task: r for task, (r, there) in records.items() if r and there.machine.processes.is_alive(r)}

    def choose_ports(self) -> None:
        """Choose the port of every daemon that listens, before a daemon is started that must know the port."""
        for daemon in self.daemons:
            taken = {self.context.port(port) for other in self.daemons for port in other.ports}
            daemon.choose_ports(self.context, taken)

    def power_off(self) -> None:
        """End every process of the cluster; keep the stored data. Needs no daemon's help, and can be repeated.

        Raise DmucError when some processes do not end.
        """
        _run_all("powering off", self._power_off())

    def _power_off(self) -> list[Step]:
        machines = [(node.machine.name, node.machine.power_off) for node in reversed(self.context.nodes)]
        # Then the daemons that run on the host itself.
        return [*machines, *((task, partial(daemon.stop, there)) for task, daemon, there in reversed(self.placed()))]

    def undo(self, names: Collection[str], done: Callable[[str], None]) -> None:
        """Undo the goals with these names, the last first; call `done` with the name of each.

        Raise DmucError when something is left, after all others have been undone.
        """
        _run_all("undoing the tasks", [step for step in self.undos() if step[0] in names], done)

    def undos(self) -> list[Step]:
        """Return the steps that undo the goals, the last goal first."""
        goals = reversed(join(self.parts, self.context))
        return [(goal.name, partial(goal.undo, self.context.on(goal.node))) for goal in goals if goal.undo is not None]

    def remove(self) -> None:
        """Power off the cluster and remove all its state. Can be interrupted anywhere and repeated.

        Raise DmucError when something is left, after all else was removed; the state then stays, as it names the rest.
        """
        undos = [] if all(node.machine.disposable for node in self.context.nodes) else self.undos()
        _run_all("removing the cluster", [*undos, *self._power_off()])
        state = self.context.state
        if state.exists():
            shutil.rmtree(state.resolve())  # the user may have put a link to another disk in its place
        if state.is_symlink():
            state.unlink()
        with contextlib.suppress(OSError):  # the state of another machine is there, too
            state.parent.rmdir()


def _run_all(tried: str, steps: Sequence[Step], done: Callable[[str], None] = lambda name: None) -> None:
    """Run every step, even after failures. Raise one DmucError with all errors."""
    failed: dict[str, str] = {}  # error text -> the first step that raised it: two steps may stop the same process
    for name, step in steps:
        try:
            step()
        except (DmucError, OSError) as error:
            failed.setdefault(str(error), name)
        except Exception as error:  # a bug in dmuc, and no reason to leave out the other steps
            failed.setdefault(f"{type(error).__name__}: {error}", name)
        else:
            done(name)
    if failed:
        raise DmucError(
            f"{tried}: {', '.join(failed.values())} failed, all else is done",
            "\n".join(textwrap.indent(f"{name}: {text}", "  ").lstrip() for text, name in failed.items()),
            "What is left stays known: run the same again, and it goes on from here.",
        )
