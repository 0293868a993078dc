"""`doit [run] NAME ...`: doit's own command, which locks the machine, adds the order, and ends cleanly on Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import Any

from doit.cmd_base import check_tasks_exist
from doit.cmd_run import Run as DoitRun

from .. import binaries, newest
from ..core import caller, signals
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.graph import add_order
from ..core.hints import pasteable
from ..core.lock import only_one
from ..core.settings import remember_given
from . import why
from .base import OnCluster, reporting_errors


def _remember(context: Context) -> None:
    """Store settings and release for later runs. Print what has changed, and the release where dmuc has chosen it."""
    with contextlib.suppress(OSError):  # a full disk: the first task says so
        for line in remember_given(context.state, context.settings):
            print(line, flush=True)
    minor = context.settings.kubernetes
    if context.decided(newest.DECISION) != minor:
        if not context.why_release.startswith("kubernetes="):
            print(newest.said(minor, context.why_release), flush=True)
        with contextlib.suppress(OSError):  # a full disk: the first task says so
            context.decide(newest.REASON, context.why_release)
            context.decide(newest.DECISION, minor)


def _refuse_flags(cluster: Cluster) -> None:
    """Raise DmucError when a program does not accept the user's flags, before any process is stopped.

    A program that is not known yet is asked when it is about to start.
    """
    known = binaries.known(cluster.context)
    for _, daemon, there in cluster.placed():
        if daemon.program_name(there) in known and not daemon.disabled_because(there) and not daemon.running(there):
            daemon.refuse_users_flags(there)


class Run(OnCluster, DoitRun):  # type: ignore[misc]
    """The command `doit run`."""

    def before_selection(self) -> None:
        """Do what comes before the tasks are selected."""

    def before_tasks(self) -> None:
        """Do what comes before the tasks, while no other run can change the cluster."""

    def execute(self, params: Any, args: list[str]) -> int:
        """Run the tasks; return doit's exit status, 130 when interrupted."""
        try:
            return int(super().execute(params, args))
        except KeyboardInterrupt:
            self.cluster.context.run.board.end()
            said = "interrupted: what is running keeps running; scripts/doit continues from here"
            print(f"\n{pasteable(said)}", file=sys.stderr)
            return 130

    @functools.wraps(DoitRun._execute)
    def _execute(self, *args: Any, **kwargs: Any) -> int:
        cluster, run = self.cluster, self.cluster.context.run

        def carry_out() -> int:
            self.before_selection()
            tasks = {task.name: task for task in self.task_list}
            check_tasks_exist(tasks, self.sel_tasks, skip_wildcard=True)
            run.selected = add_order(tasks, self.sel_tasks)
            run.cause = functools.partial(why.cause, cluster)
            with only_one(cluster.context):
                cluster.refuse_impossible(run.selected)
                if few := caller.too_few_files():
                    raise DmucError("checking the limits of this process", few, f"ulimit -n {caller.FEWEST_FILES}")
                cluster.context.state.mkdir(mode=0o700, parents=True, exist_ok=True)
                caller.let_in(cluster.context.state, os.environ)
                _refuse_flags(cluster)
                _remember(cluster.context)
                cluster.choose_ports()
                self.before_tasks()
                run.timeline.needs = {name: tasks[name].task_dep for name in run.selected}
                try:
                    return int(DoitRun._execute(self, *args, **kwargs))
                except KeyboardInterrupt:
                    # Each task stops the process that it has just started; until then the machine stays locked.
                    with signals.ignored("ending: each task stops what it has just started"):
                        run.end(deadline=30)
                    raise
                finally:
                    with contextlib.suppress(OSError):  # a full disk: the run itself has said so
                        run.timeline.store(cluster.context.state)

        return reporting_errors(carry_out)()
