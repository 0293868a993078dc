"""Our own doit commands, and those of doit's that must know more. pyproject.toml names them to doit.

Whatever a command needs of the cluster it takes from the `DMUC` that dodo.py defines: a Cluster.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from doit.cmd_base import DoitCmdBase, check_tasks_exist
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_clean import opt_clean_dryrun
from doit.cmd_info import Info as DoitInfo
from doit.cmd_list import List as DoitList
from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand

from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.goal import end_all
from ..core.graph import add_order
from ..core.lock import only_one
from ..core.report import BOARD


def told(method: Callable[..., int]) -> Callable[..., int]:
    """Errors become one message and an exit status, never a traceback."""

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        try:
            return method(*args, **kwargs)
        except DmucError as error:
            print(f"✗ {error}", file=sys.stderr)
            return 3
        except OSError as error:
            print(f"✗ {error}", file=sys.stderr)
            return 3

    return wrapper


class _Civil:
    """Whoever reads what a command prints may stop reading (`doit info kubelet | head`), or end it with Ctrl-C."""

    def execute(self, params: Any, args: list[str]) -> int:
        """Run the command."""
        try:
            status = int(super().execute(params, args) or 0)  # type: ignore[misc]
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130


class Command(_Civil, DoitCmdBase):  # type: ignore[misc]
    """A command of ours: `act` is given the cluster and the arguments."""

    cmd_options: Sequence[dict[str, object]] = ()

    def _execute(self, pos_args: list[str]) -> int:
        return told(self.act)(self.cluster, pos_args)

    @property
    def cluster(self) -> Cluster:
        """What dodo.py has put together."""
        cluster: Cluster = self.loader.namespace["DMUC"]
        return cluster

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Do it, and give the exit status. Raises DmucError."""
        raise NotImplementedError


class Run(DoitRun):  # type: ignore[misc]
    """doit's `run`, alone on the machine, in the best order, ended in good order by Ctrl-C."""

    def execute(self, params: Any, args: list[str]) -> int:
        """Run; gives doit's exit status, 130 when interrupted."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return int(super().execute(params, args))
        except KeyboardInterrupt:
            end_all(deadline=30)  # whoever has just started something still takes it down
            BOARD.end()
            print("\ninterrupted: what runs goes on running; doit again goes on from here", file=sys.stderr)
            return 130

    @functools.wraps(DoitRun._execute)
    def _execute(self, *args: Any, **kwargs: Any) -> int:
        cluster: Cluster = self.loader.namespace["DMUC"]
        tasks = {task.name: task for task in self.task_list}
        check_tasks_exist(tasks, self.sel_tasks, skip_wildcard=True)
        BOARD.expected = add_order(tasks, self.sel_tasks)

        def run() -> int:
            with only_one(cluster.context.machine.name, cluster.context.lock):
                cluster.refuse_what_cannot_be(BOARD.expected)
                _make_state(cluster.context)
                cluster.choose_ports()
                return int(DoitRun._execute(self, *args, **kwargs))

        return told(run)()


def _make_state(context: Context) -> None:
    context.state.mkdir(mode=0o700, parents=True, exist_ok=True)


class Clean(_Civil, DoitClean):  # type: ignore[misc]
    """`doit clean`: with names it takes those back, last first; without any the whole machine, in any state."""

    cmd_options = (opt_clean_dryrun,)
    doc_description = "Without names: power off and remove everything but the cache. With names: take back just those."

    def _execute(self, dryrun: bool, pos_args: list[str]) -> int:
        cluster: Cluster = self.loader.namespace["DMUC"]
        tasks = {task.name: task for task in self.task_list}
        names = self._expand(pos_args)
        check_tasks_exist(tasks, names)

        def clean() -> int:
            with only_one(cluster.context.machine.name, cluster.context.lock):
                if dryrun:
                    for name, _ in cluster.undos():
                        if name in names:
                            print(f"{name}: would be taken back", flush=True)
                elif names:
                    cluster.undo(names, lambda name: print(f"{name}: taken back", flush=True))
                else:
                    cluster.remove()
            return 0

        return told(clean)()


class List(_Civil, DoitList):  # type: ignore[misc]
    """doit's `list`."""


class Info(_Civil, DoitInfo):  # type: ignore[misc]
    """doit's `info`, which says in words why something is not up to date."""

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        check_tasks_exist({task.name for task in self.task_list}, pos_args)
        return int(DoitInfo._execute(self, pos_args, hide_status))

    @staticmethod
    def get_reasons(reasons: Any) -> str:
        """Give the reasons as text."""
        ours = [
            f" * {check.answer.why}" for check, _, _ in reasons.pop("uptodate_false", []) if hasattr(check, "answer")
        ]
        rest = DoitInfo.get_reasons(reasons | {"uptodate_false": [], "has_no_dependencies": False})
        return "\n".join(filter(None, [*ours, rest]))


class Down(Command):
    """`doit down`."""

    doc_purpose = "power the machine off and keep its data"
    doc_usage = ""
    doc_description = "The next `doit` brings the same cluster back, with its objects."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Power off."""
        with only_one(cluster.context.machine.name, cluster.context.lock):
            cluster.power_off()
        return 0


class Shell(Command):
    """`doit shell [-- COMMAND]`."""

    doc_purpose = "open a shell in the machine, or run a command in it"
    doc_usage = "[-- COMMAND [ARGUMENT ...]]"
    doc_description = "Whatever the walk-through types can be typed there."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Become it: does not come back."""
        # Taken from the real command line: doit takes every NAME=VALUE out of what it hands on.
        rest = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else arguments
        context = cluster.context
        context.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = context.inside(*(rest or ["bash"]))
        os.execvp(command[0], command)  # from here on the terminal, Ctrl-C and the exit status are the command's


class Logs(Command):
    """`doit logs NAME [-f]`."""

    doc_purpose = "show the log of a component"
    doc_usage = "NAME"
    doc_description = "Without a name: which logs there are."
    cmd_options = (
        {"name": "follow", "short": "f", "long": "follow", "type": bool, "default": False, "help": "go on as it grows"},
    )

    def get_options(self) -> Any:
        """Give the options, -f for `--follow` among them: doit's own -f names another dodo file."""
        options = super().get_options()
        for option in options:
            if option.name == "dodoFile":
                option.short = ""
        return options

    def _execute(self, pos_args: list[str], follow: bool = False) -> int:
        names = [word for word in pos_args if word not in {"-f", "--follow"}]  # also behind the name
        return told(self.show)(self.cluster.context, follow or names != pos_args, names)

    def show(self, context: Context, follow: bool, names: list[str]) -> int:
        """Print the log; with `follow` until interrupted."""
        there = sorted(path.stem for path in context.logs.glob("*.log"))
        if len(names) != 1 or names[0] not in there:
            text = f"there is no log called {names[0]!r}" if len(names) == 1 else "one name is needed"
            raise DmucError("showing a log", text, f"There are: {', '.join(there) or 'none yet'}.")
        if not follow:
            with (context.logs / f"{names[0]}.log").open(errors="replace") as log:
                shutil.copyfileobj(log, sys.stdout)
            return 0
        try:
            return subprocess.run(["tail", "-n", "20", "-F", context.logs / f"{names[0]}.log"], check=False).returncode
        except KeyboardInterrupt:
            return 0


class Status(Command):
    """`doit status`."""

    doc_purpose = "show every component: pid, since when, version, ready or why not; Nodes, Pods and Services"
    doc_usage = ""
    doc_description = None

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print it; gives 0 when everything that runs is ready and nothing is missing, else 1."""
        from .status import show

        if arguments:
            raise InvalidCommand("`status` takes no arguments.")
        return show(cluster)
