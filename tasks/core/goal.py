"""A cluster is a graph of things that must be true. A goal is one of them; from it doit's task is made.

A goal's `holds` asks in milliseconds whether it is true already: that is doit's up-to-date check. When it is not,
`make` makes it true and returns only then. `undo` takes it back. A goal `needs` others, always; it comes `after` some
only when they are part of the same run (like systemd's After=): an order that saves time, not a dependency.
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
from .probe import Answer
from .progress import Progress

STARTED = ":started"  # ends the name of a daemon's first step
Nodes = Literal["none", "first", "each"]
# Names of other goals; a function where they depend on the settings.
Names = Sequence[str] | Callable[[Context], Sequence[str]]


def resolve(names: Names, context: Context) -> Sequence[str]:
    """Give the names as they are for this cluster."""
    return names(context) if callable(names) else names


@dataclass(frozen=True)
class Goal:
    """One thing that must be true."""

    name: str
    doc: str  # the line in `doit list`
    holds: Callable[[Context], Answer]
    make: Callable[[Context, Progress], None]
    undo: Callable[[Context], None] | None = None
    needs: Names = ()
    after: Names = ()
    needs_started: bool = False  # needs only the `started` step of the daemons among these
    hidden: bool = False  # a means to an end, which `doit list` leaves out
    nodes: Nodes = "none"  # on which nodes of the cluster it is; none: it is about the cluster as a whole
    node: str = ""  # the one node that it is on, once the goals are joined (graph.py)

    def goals(self) -> Sequence[Goal]:
        """Itself: what has steps of its own gives several (see daemon.py)."""
        return (self,)


class UpToDate:
    """doit's `uptodate` callable: asks the goal, and remembers what the answer was for `doit info`."""

    def __init__(self, goal: Goal, context: Context) -> None:
        self.goal, self.context = goal, context
        self.answer = Answer(False, "not asked yet")

    def __call__(self) -> bool:
        """Ask the goal; never raises."""
        try:
            self.answer = self.goal.holds(self.context)
        except Exception as error:  # doit would end the whole run with a traceback
            self.answer = Answer(False, _summary(error))
        self.context.run.board.why(self.goal.name, self.answer.why)
        return self.answer.yes


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
                context.run.stop.set()  # the other tasks have nothing to wait for any more
                if not isinstance(error, DmucError):
                    _keep_traceback(context)
                return TaskFailed(_told(goal, context, error))
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


def _told(goal: Goal, context: Context, error: Exception) -> str:
    if isinstance(error, DmucError):
        return str(error)
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    do = f"Free some space on the disk with {context.state}." if full else "See: scripts/doit logs dmuc"
    return str(DmucError(f"trying to {goal.doc}", _summary(error), do))


def _summary(error: Exception) -> str:
    if isinstance(error, DmucError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # the world's fault, and said in words
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


_traceback_lock = threading.Lock()


def _keep_traceback(context: Context) -> None:
    """An error nobody foresaw: people see one line, the rest is kept for whoever mends it."""
    with _traceback_lock, contextlib.suppress(OSError):
        context.logs.mkdir(parents=True, exist_ok=True)
        with (context.logs / "dmuc.log").open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
