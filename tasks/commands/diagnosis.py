"""The diagnosis behind `doit why`: a chain of checks (links), and from their results the one cause to fix next.

A link that fails because another link fails is a consequence. A cause is a link that fails although all links that it
needs work. Of several causes, the first in the chain counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from ..core.context import Context
from ..core.daemon import Daemon, error_line
from ..core.errors import DmucError
from ..core.goal import Goal, resolve
from ..core.hints import pasteable
from ..core.run import Cause
from .checklist import WIDTH

if TYPE_CHECKING:
    from rich.console import Console

YOUNG = 30.0  # seconds after its start in which a process may not be ready yet
_WIDTH = 110


class State(Enum):
    """The state of a link; the value is the mark that is printed."""

    WORKS = "✓"
    BROKEN = "✗"
    WAITS = "…"  # will work in a while
    UNKNOWN = "?"  # cannot be checked
    LIMIT = "!"  # works as it can here; the evidence says what must not be expected


_STYLES = {
    State.WORKS: "green",
    State.BROKEN: "bold red",
    State.WAITS: "yellow",
    State.UNKNOWN: "dim",
    State.LIMIT: "yellow",
}


@dataclass(frozen=True)
class Finding:
    """The result of checking one link: its state, the evidence, and the command to run."""

    state: State
    evidence: str
    do: str = ""  # not specified: the link's own command
    because: Sequence[str] = ()  # more links that can be the cause, beside those that the link needs
    stays: bool = False  # it cannot change by itself: a user must act, and `doit` does not wait for it


def works(evidence: str) -> Finding:
    """Return the finding that the link works."""
    return Finding(State.WORKS, evidence)


def broken(evidence: str, do: str = "", because: Sequence[str] = (), *, stays: bool = False) -> Finding:
    """Return the finding that the link does not work; `stays`: until a user acts."""
    return Finding(State.BROKEN, evidence, do, because, stays)


def waits(evidence: str, do: str = "", because: Sequence[str] = ()) -> Finding:
    """Return the finding that the link does not work yet, and probably will in a while."""
    return Finding(State.WAITS, evidence, do, because)


def unknown(evidence: str) -> Finding:
    """Return the finding that the link cannot be checked."""
    return Finding(State.UNKNOWN, evidence)


@dataclass(frozen=True)
class Link:
    """One link of the chain: a check, and the links that it depends on."""

    name: str
    check: Callable[[], Finding]  # takes milliseconds, or at most the two seconds of a probe
    do: str  # the command that fixes it
    needs: Sequence[str] = ()  # links that are the cause when they do not work either
    asks: Sequence[str] = ()  # links without which this one cannot be checked
    means: str = ""  # the consequence while it does not work
    part: bool = False  # a component of the cluster, not one of its objects
    quiet: bool = False  # not printed as long as it works

    def find(self) -> Finding:
        """Return the result of the check; DmucError and OSError become a finding."""
        try:
            return self.check()
        except (DmucError, OSError) as error:
            return broken(str(error))


def goal(goal: Goal, context: Context, means: str = "", *, quiet: bool = False) -> Link:
    """Return the link for a goal."""

    def check() -> Finding:
        result = goal.holds(context)
        return (works if result else broken)(result.why)

    do = f"scripts/doit {goal.name}"
    return Link(goal.name, check, do, _needs(goal, context), means=means, part=True, quiet=quiet)


def daemon(daemon: Daemon, context: Context, means: str = "") -> Link:
    """Return the link for a daemon: whether it runs as wanted, and is ready; one that has just started may not be."""

    def check() -> Finding:
        running = daemon.running(context)
        if not running:
            return broken("; ".join(filter(None, (running.why, last_words(daemon, context)))), stays=True)
        ready, record = daemon.is_ready(context), daemon.process(context)
        if ready:
            return works(f"{running.why}: {ready.why}")
        if record and context.machine.processes.is_alive(record) and time.time() - record.since < YOUNG:
            return waits(f"started {time.time() - record.since:.0f} s ago; {ready.why}")
        return broken(f"{running.why}: {ready.why}")

    do = f"scripts/doit {daemon.name}"
    return Link(daemon.name, check, do, _needs(daemon, context), means=means, part=True)


def _needs(part: Goal | Daemon, context: Context) -> Sequence[str]:
    return resolve(part.needs, context)


def last_words(daemon: Daemon, context: Context) -> str:
    """Return the line of the daemon's log that says why it ended after its last start; empty when there is none."""
    try:
        text = daemon.log(context).read_text("utf-8", "replace")
    except OSError:
        return ""
    line = error_line(text.rpartition("\n--- ")[2])
    return f"its log says: {line}" if line else ""


class Diagnosis:
    """All findings. Independent checks run at the same time, so that several slow ones take no longer than one."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = {link.name: link for link in links}
        at_once = [link for link in links if not link.asks]
        with ThreadPoolExecutor(max_workers=max(1, len(at_once))) as pool:
            found = pool.map(lambda link: link.find(), at_once)
            self._found: dict[str, Finding] = dict(zip((link.name for link in at_once), found, strict=True))
        for link in links:
            self._find(link)

    def _find(self, link: Link) -> Finding:
        if link.name not in self._found:
            asked = ((name, self._find(self.links[name])) for name in link.asks if name in self.links)
            before = next((pair for pair in asked if pair[1].state is not State.WORKS), None)
            if before is None:
                self._found[link.name] = link.find()
            elif before[1].state is State.UNKNOWN:
                self._found[link.name] = before[1]
            else:
                self._found[link.name] = unknown(f"cannot be checked without {before[0]}")
        return self._found[link.name]

    def __getitem__(self, name: str) -> Finding:
        """Return the finding about the link `name`; a consequence has the state of its cause (broken or waiting)."""
        finding, root = self._found[name], self._found[self.root(name)]
        both = {State.BROKEN, State.WAITS}
        return replace(finding, state=root.state) if {finding.state, root.state} == both else finding

    def root(self, name: str) -> str:
        """Return the link that is the cause why `name` does not work: `name` itself, when all that it needs works."""
        link = self.links[name]
        for other in (*self._found[name].because, *link.needs, *link.asks):
            if other in self.links and self._found[other].state is not State.WORKS:
                return self.root(other)
        return name

    @property
    def cause(self) -> Link | None:
        """The link to fix, or else to wait for, next; None when everything works."""
        for state in (State.BROKEN, State.WAITS, State.UNKNOWN):
            for name, link in self.links.items():
                if self._found[name].state is state and self.root(name) == name:
                    return link
        return None

    def do(self, link: Link) -> str:
        """Return the command that fixes the link."""
        return self._found[link.name].do or link.do

    def why(self, name: str) -> Cause | None:
        """Return the cause why the link `name` does not work, as `show` prints it; None when the link works."""
        if name not in self.links or self[name].state is State.WORKS:
            return None
        link = self.links[self.root(name)]
        return Cause(self.words(link), self.do(link), self._found[link.name].stays)

    def words(self, link: Link) -> str:
        """Return in one line which link is the cause, and the evidence."""
        finding = self[link.name]
        verb = "waiting for" if finding.state is State.WAITS else "cause"
        return f"{verb}: {link.name}: {_one_line(finding.evidence)[: 3 * WIDTH]}"


def show(diagnosis: Diagnosis, wanted: Callable[[Link], bool] = lambda link: True) -> int:
    """Print a line for each link that is `wanted` or does not work, then the cause, and the command to run.

    Return 0 when everything works, else 1.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    for state, name, evidence in _lines(diagnosis, wanted):
        line = Text.assemble((state.value, _STYLES[state]), f" {name:<18} {evidence}")
        if state is State.UNKNOWN and len(line) > console.width:  # the names of many
            console.print(Text.assemble((state.value, _STYLES[state]), f" {name}"))
            line = Text(f"  {evidence}")
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print()
    cause = diagnosis.cause
    if cause is None:
        console.print(Text("Everything works.", style="green"))
        return 0
    _show_cause(console, diagnosis, cause)
    return 1


def _lines(diagnosis: Diagnosis, wanted: Callable[[Link], bool]) -> Iterator[tuple[State, str, str]]:
    unasked: dict[str, list[str]] = {}
    for name, link in diagnosis.links.items():
        finding, root = diagnosis[name], diagnosis.root(name)
        if finding.state is State.UNKNOWN:
            unasked.setdefault(finding.evidence, []).extend([] if link.quiet else [name])
        elif finding.state is State.WORKS and not finding.evidence:
            continue  # there is nothing of the kind
        elif (wanted(link) and not link.quiet) or finding.state is not State.WORKS:
            because = "" if finding.state is State.WORKS or root == name else f"(because of {root}) "
            yield finding.state, name, because + _one_line(finding.evidence)
    for evidence, names in unasked.items():
        if names:
            yield State.UNKNOWN, f"{', '.join(names)}:", _one_line(evidence)


def _show_cause(console: Console, diagnosis: Diagnosis, cause: Link) -> None:
    from rich.text import Text

    finding = diagnosis[cause.name]
    text = Text(diagnosis.words(cause))
    text.stylize(_STYLES[finding.state], 0, text.plain.index(": ", text.plain.index(": ") + 2))
    console.print(text)
    if cause.means:
        console.print(Text(f"without it: {cause.means}"))
    console.print(Text.assemble("next: ", (pasteable(diagnosis.do(cause)), "bold")), soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
