"""The loader that gives doit the tasks of the cluster, instead of a module of tasks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from doit.cmd_base import NamespaceTaskLoader

from ..cluster import doit_namespace, load
from ..core import caller, signals
from ..core.cluster import Cluster
from ..core.errors import DmucError
from ..core.graph import Part
from .user import WORDS

# The commands that only read, or remove: they do not decide anything.
_REMOVING = {"down", "clean"}
_READING = _REMOVING | {
    "list",
    "help",
    "info",
    "status",
    "why",
    "env",
    "logs",
    "shell",
    "command",
    "trace",
    "timeline",
    "user",
    "load",
    "image",
}


class ClusterLoader(NamespaceTaskLoader):  # type: ignore[misc]
    """doit's task loader; a subclass sets the parts of the cluster. Only this class reads the command line."""

    root: ClassVar[Path]  # the checkout
    parts: ClassVar[Sequence[Part]]
    cluster: Cluster

    def __init__(self) -> None:
        super().__init__()
        if "" in sys.argv[1:]:  # doit itself would end with a traceback, next
            tried, seen = "reading the command line", "One of its words is empty."
            do = "Leave the word out; for a command of `doit shell`, write it inside of the command: sh -c 'COMMAND'."
            sys.exit(f"✗ {DmucError(tried, seen, do)}")

    def setup(self, opt_values: Any) -> None:
        """Make the cluster; end the program with a message when the settings are wrong."""
        caller.reset()
        signals.raise_on_end()
        try:
            words = [word for word in sys.argv[1:] if "=" not in word and not word.startswith("-")]
            first = {*words[:1]}
            self.cluster = load(
                self.root,
                os.environ,
                sys.argv[1:],
                self.parts,
                own_words=WORDS,
                choosing=not first & _READING,
                removing=bool(first & _REMOVING),
            )
        except DmucError as error:
            sys.exit(f"✗ {error}")
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)
        self.namespace = doit_namespace(self.cluster)
