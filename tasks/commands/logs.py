"""`doit logs NAME [-f]`: the log of a component."""

from __future__ import annotations

import shutil
import subprocess
import sys

from ..core.context import Context
from ..core.errors import DmucError
from .base import Command, reporting_errors


class Logs(Command):
    """`doit logs NAME [-f]`: show the log of a component."""

    doc_purpose = "show the log of a component"
    doc_usage = "NAME"
    doc_description = "Without a name: list the logs."
    cmd_options = (
        {
            "name": "follow",
            "short": "f",
            "long": "follow",
            "type": bool,
            "default": False,
            "help": "print new lines, too",
        },
    )

    def _execute(self, pos_args: list[str], follow: bool = False) -> int:
        names = [word for word in pos_args if word not in {"-f", "--follow"}]  # also behind the name
        return reporting_errors(self.show)(self.cluster.context, follow or names != pos_args, names)

    def show(self, context: Context, follow: bool, names: list[str]) -> int:
        """Print the log; with `follow`, until interrupted. Raise DmucError when there is no such log."""
        there = sorted(path.stem for path in context.logs.glob("*.log"))
        if len(names) != 1 or names[0] not in there:
            text = f"there is no log called {names[0]!r}" if len(names) == 1 else "the name of one log is needed"
            raise DmucError("showing a log", text, f"Logs: {', '.join(there) or 'none yet'}.")
        if not follow:
            with (context.logs / f"{names[0]}.log").open(encoding="utf-8", errors="replace") as log:
                shutil.copyfileobj(log, sys.stdout)
            return 0
        try:
            return subprocess.run(["tail", "-n", "20", "-F", context.logs / f"{names[0]}.log"], check=False).returncode
        except KeyboardInterrupt:
            return 0
