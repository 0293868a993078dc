"""`doit shell [-- COMMAND]`: a shell in the machine, or one command there."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ..core import caller
from ..core.cluster import Cluster
from .base import Command


class Shell(Command):
    """`doit shell [-- COMMAND]`: open a shell in the machine, or run a command in it."""

    doc_purpose = "open a shell in the machine, or run a command in it"
    doc_usage = "[-- COMMAND [ARGUMENT ...]]"
    doc_description = "The commands of the walk-through work there as printed, in the caller's directory."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Replace this process (execvp): the terminal, Ctrl-C and the exit status are the command's from then on."""
        context = cluster.context
        context.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        where = caller.directory(os.environ)
        here: Path | None = where
        with contextlib.suppress(OSError):  # the machine is off, which is said below
            if not context.machine.path(where).is_dir():
                print(f"{where} is not on {context.machine.name}: this is the home directory.", file=sys.stderr)
                here = None
        # Not doit's `arguments` alone: doit takes every NAME=VALUE out of them.
        command = context.inside(*(cluster.behind_dashes or arguments or ["bash"]), directory=here)
        os.execvp(command[0], command)
