"""What every task is given: the settings, the release, the machine, and where things are."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import DmucError
from .facts import HostFacts
from .files import read_json, write_atomic
from .machine import SYSTEM_PATH, Host, Machine
from .node import Node
from .ports import API, Port
from .release import Release, of
from .run import Run
from .settings import Settings

_deciding = threading.Lock()
_FIND = "Run: scripts/doit binaries"


@dataclass(frozen=True)
class Context:
    """One cluster. All its state is under `state`; nothing of it is anywhere else, but for the cache."""

    settings: Settings
    release: Release
    nodes: Sequence[Node]  # the first one has the control plane
    state: Path
    run: Run = field(default_factory=Run, compare=False)
    facts: HostFacts = field(default_factory=HostFacts)
    _here: int = 0  # the place of `node` among the nodes

    @property
    def node(self) -> Node:
        """The node that a component which gets this context runs on: the first one unless `on` says otherwise."""
        return self.nodes[self._here]

    def on(self, name: str) -> Context:
        """Return the same cluster as seen by what runs on the node `name`; on the first one when `name` is empty."""
        here = next((i for i, node in enumerate(self.nodes) if node.name == name), 0)
        return replace(self, _here=here)

    def beside_the_machine(self) -> Context:
        """Return the same cluster as seen by what runs on the host itself, beside the node's machine."""
        here = replace(self.node, machine=Host(stop=self.run.stop))
        return replace(self, nodes=[here if node is self.node else node for node in self.nodes])

    @property
    def machine(self) -> Machine:
        """The machine of the node."""
        return self.node.machine

    @property
    def bin(self) -> Path:
        """Links to the programs that were chosen: the first directory in every PATH inside the machine."""
        return self.state / "bin"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        """One log file per daemon."""
        return self.node.state / "logs"

    @property
    def pidfiles(self) -> Path:
        """One file per running process."""
        return self.node.state / "run"

    @property
    def home(self) -> Path:
        """The home directory inside the machine: `~/.kube/config` is here, not in the user's own."""
        return self.node.state / "home"

    @property
    def programs_file(self) -> Path:
        """What the programs are, where they came from, and their versions."""
        return self.state / "programs.json"

    def decided(self, question: str) -> str | None:
        """Give what was decided for this cluster by `decide`; None when it was not."""
        found: str | None = read_json(self._decisions).get(question)
        return found

    def of_node(self, question: str) -> str:
        """Return the question as it is asked about this node, for `decided` and `decide`."""
        return question if self.node is self.nodes[0] else f"{question} of {self.node.name}"

    def decide(self, question: str, result: str) -> None:
        """Remember, until clean, what was found out once and must not change under a running cluster."""
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
        """Give the number of `port` on this cluster: its standard one or, where clusters are beside each other, the
        free one that was chosen for it; 0, where nobody ever answers, before the first start.
        """
        if not self.settings.shares_host:
            return port.standard
        return int(self.decided(port.decision) or 0)

    def program(self, name: str) -> Path:
        """Give the path of the program `name`. Raises DmucError when it has not been found yet."""
        try:
            return Path(read_json(self.programs_file)[name]["path"])
        except (KeyError, TypeError):
            raise DmucError(f"looking for the program {name}", "It has not been found yet.", _FIND) from None

    def release_of(self, program: str) -> Release:
        """The row of the table for one program, by the version that it says: it may be another than the cluster's."""
        version = read_json(self.programs_file).get(program, {}).get("version")
        return of(version) if version else self.release

    def knows(self, program: str, flag: str) -> bool | None:
        """Whether the program's own --help names this flag ("--config"); None where it was not asked."""
        flags = read_json(self.programs_file).get(program, {}).get("flags")
        return flag in flags if flags else None

    def inside(self, *command: str) -> list[str]:
        """Give the command line that runs `command` on the machine, at home there, as somebody who has logged in."""
        variables = {**self.environment(), "TERM": os.environ.get("TERM", "dumb")}
        words = [*(f"{name}={value}" for name, value in variables.items()), *command]
        line: list[str] = self.machine.command("env", "-i", "-C", str(self.home), *words).formulate()
        return line

    def environment(self) -> dict[str, str]:
        """The whole environment of whatever runs inside the machine: nothing leaks in from the user's shell."""
        return {"PATH": f"{self.bin}:{SYSTEM_PATH}", "HOME": str(self.home), "LANG": "C.UTF-8"}
