"""Goals: a cluster is a graph of conditions that must be true. A goal is one of them, and becomes one task of doit.

A goal's `holds` checks in milliseconds whether the condition is true already: doit's up-to-date check. If not, `make`
makes the condition true and returns only then. `undo` removes what `make` made. A goal always `needs` other goals; it
comes `after` some only when they are part of the same run (like systemd's After=): this order saves time, and is not a
dependency.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .context import Context
from .errors import DmucError, Interrupted
from .progress import Progress
from .result import Result

STARTED = ":started"  # ends the name of a daemon's first step
Nodes = Literal["none", "first", "each"]
# Names of other goals; a function if the names depend on the settings.
Names = Sequence[str] | Callable[[Context], Sequence[str]]


def resolve(names: Names, context: Context) -> Sequence[str]:
    """Return the names for this cluster."""
    return names(context) if callable(names) else names


@dataclass(frozen=True)
class Goal:
    """One condition that must be true."""

    name: str
    doc: str  # the line in `doit list`
    holds: Callable[[Context], Result]
    make: Callable[[Context, Progress], None]
    undo: Callable[[Context], None] | None = None
    needs: Names = ()
    after: Names = ()
    needs_started: bool = False  # of the daemons in `needs`, only their step `started` is needed
    hidden: bool = False  # an intermediate step, which `doit list` leaves out
    nodes: Nodes = "none"  # the nodes that have this goal; none: it concerns the cluster as a whole
    node: str = ""  # the name of its node, once the goals are joined (graph.py)

    def goals(self) -> Sequence[Goal]:
        """Return this goal alone; a daemon returns several (see daemon.py)."""
        return (self,)


class UpToDate:
    """doit's `uptodate` callable: checks the goal, and keeps the result for `doit info`."""

    def __init__(self, goal: Goal, context: Context) -> None:
        self.goal, self.context = goal, context
        self.result = Result(False, "not checked yet")

    def __call__(self) -> bool:
        """Return whether the goal holds; an exception counts as no."""
        try:
            self.result = self.goal.holds(self.context)
        except Exception as error:  # doit would end the whole run with a traceback
            self.result = Result(False, _summary(error))
        self.context.run.board.why(self.goal.name, self.result.why)
        if self.result:
            self.context.run.timeline.end(self.goal.name)
        return self.result.yes


def task(goal: Goal, cluster: Context) -> dict[str, Any]:
    """Return doit's dictionary for `goal`."""
    context = cluster.on(goal.node)

    def run() -> Any:
        from doit.exceptions import TaskFailed

        with context.run.working(goal.name):
            try:
                goal.make(context, context.run.board.progress(goal.name))
            except Interrupted:
                return TaskFailed("interrupted with the run", report=False)
            except Exception as error:
                context.run.stop.set()  # the other tasks must stop waiting
                if not isinstance(error, DmucError):
                    _keep_traceback(context)
                return TaskFailed(_message(goal, context, error))
        return None

    return {
        "basename": goal.name,
        "doc": goal.doc,
        "actions": [run],
        "uptodate": [UpToDate(goal, context)],
        "task_dep": list(resolve(goal.needs, context)),
        "io": {"capture": False},  # doit captures by replacing sys.stdout, which threads share
        "meta": {"after": list(resolve(goal.after, context)), "hidden": goal.hidden},
    }


def _message(goal: Goal, context: Context, error: Exception) -> str:
    if isinstance(error, DmucError):
        return str(error)
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    do = f"Free some space on the disk with {context.state}." if full else "See: scripts/doit logs dmuc"
    return str(DmucError(f"trying to {goal.doc}", _summary(error), do))


def _summary(error: Exception) -> str:
    if isinstance(error, DmucError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # an error of the system, with a text of its own
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


_traceback_lock = threading.Lock()


def _keep_traceback(context: Context) -> None:
    """Append the traceback of an unexpected error to the log `dmuc`; the user sees only one line of the error."""
    with _traceback_lock, contextlib.suppress(OSError):
        context.logs.mkdir(parents=True, exist_ok=True)
        with (context.logs / "dmuc.log").open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
