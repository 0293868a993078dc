"""The context that every task gets: the settings, the release, the nodes, and the paths of the cluster's files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import DmucError
from .facts import HostFacts
from .files import read_json, write_atomic
from .machine import SYSTEM_PATH, Host, Machine
from .node import Node
from .ports import API, Port
from .release import Release, is_readable, of
from .run import Run
from .settings import Settings

_deciding = threading.Lock()
PROGRAMS_FILE = "programs.json"
_FIND = "Run: scripts/doit binaries"


@dataclass(frozen=True)
class Context:
    """One cluster. All its files are under `state`, except for the cache."""

    settings: Settings
    release: Release
    nodes: Sequence[Node]  # the first one has the control plane
    state: Path
    run: Run = field(default_factory=Run, compare=False)
    facts: HostFacts = field(default_factory=HostFacts)
    why_release: str = ""  # why it is this release; empty: it is not decided yet
    _here: int = 0  # the index of `node` in `nodes`

    @property
    def node(self) -> Node:
        """The node on which a component with this context runs: the first node, unless `on` has chosen another."""
        return self.nodes[self._here]

    def on(self, name: str) -> Context:
        """Return the context for what runs on the node `name`; on the first node when `name` is empty."""
        here = next((i for i, node in enumerate(self.nodes) if node.name == name), 0)
        return replace(self, _here=here)

    def beside_the_machine(self) -> Context:
        """Return the context for what runs on the host itself, beside the node's machine."""
        here = replace(self.node, machine=Host(stop=self.run.stop))
        return replace(self, nodes=[here if node is self.node else node for node in self.nodes])

    @property
    def machine(self) -> Machine:
        """The machine of the node."""
        return self.node.machine

    @property
    def bin(self) -> Path:
        """The directory of links to the chosen programs: the first directory in every PATH inside the machine."""
        return self.state / "bin"

    @property
    def pki(self) -> Path:
        """The directory of keys and certificates."""
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        """The directory with one log file per daemon of the node."""
        return self.node.state / "logs"

    @property
    def pidfiles(self) -> Path:
        """The directory with one pidfile per process of the node."""
        return self.node.state / "run"

    @property
    def home(self) -> Path:
        """The home directory inside the machine, with its own `~/.kube/config`."""
        return self.node.state / "home"

    @property
    def programs_file(self) -> Path:
        """The file that lists the programs, with the source and version of each."""
        return self.state / PROGRAMS_FILE

    def decided(self, question: str) -> str | None:
        """Return the decision that `decide` has stored for this cluster; None when there is none."""
        found: str | None = read_json(self._decisions).get(question)
        return found

    def of_node(self, question: str) -> str:
        """Return the name of a decision about this node, for `decided` and `decide`."""
        return question if self.node is self.nodes[0] else f"{question} of {self.node.name}"

    def decide(self, question: str, result: str) -> None:
        """Store a decision that must not change while the cluster exists; `clean` removes it."""
        with _deciding:
            decisions = read_json(self._decisions) | {question: result}
            write_atomic(self._decisions, json.dumps(decisions, indent=1))

    @property
    def _decisions(self) -> Path:
        return self.state / "decisions.json"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.settings.address}:{self.port(API)}"

    def port(self, port: Port) -> int:
        """Return the number of `port` on this cluster: the standard port or, where clusters share a host, the free port
        that was chosen for it. Before the first start that is 0, on which no server ever listens.
        """
        if not self.settings.shares_host:
            return port.standard
        return int(self.decided(port.decision) or 0)

    def program(self, name: str) -> Path:
        """Return the path of the program `name`. Raise DmucError when the program has not been found yet."""
        try:
            return Path(self._found(name)["path"])
        except (KeyError, TypeError):
            raise DmucError(f"looking for the program {name}", "It has not been found yet.", _FIND) from None

    def release_of(self, program: str) -> Release:
        """Return the release of a program, by the version that it prints: it may differ from the cluster's.

        A program that does not tell its release counts as one of the cluster's (release.doubts says so to the user).
        """
        version = self.version_of(program)
        return of(version) if is_readable(version) else self.release

    def version_of(self, program: str) -> str:
        """Return the version that the program prints; empty when that is not known."""
        return str(self._found(program).get("version", ""))

    def knows(self, program: str, flag: str) -> bool | None:
        """Return whether the program's --help lists this flag ("--config"); None when --help was not run."""
        flags = self._found(program).get("flags")
        return flag in flags if flags else None

    def _found(self, program: str) -> dict[str, Any]:
        """Return what is known of a program; nothing when the file of programs is missing or invalid."""
        found = read_json(self.programs_file).get(program)
        return found if isinstance(found, dict) else {}

    def inside(self, *command: str, directory: Path | None = None) -> list[str]:
        """Return the command line that runs `command` in the machine, in this directory or else at home."""
        variables = {**self.environment(), "TERM": os.environ.get("TERM", "dumb")}
        words = [*(f"{name}={value}" for name, value in variables.items()), *command]
        line: list[str] = self.machine.command("env", "-i", "-C", str(directory or self.home), "--", *words).formulate()
        return line

    def environment(self) -> dict[str, str]:
        """Return the whole environment of a process inside the machine: none of it comes from the user's shell."""
        return {"PATH": f"{self.bin}:{SYSTEM_PATH}", "HOME": str(self.home), "LANG": "C.UTF-8"}
