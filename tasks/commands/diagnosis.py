"""A chain of questions, each answered by what the ones before it make possible; and from the answers the one cause.

What fails because something else fails is a consequence and no cause: a cause is a link that does not work although all
that it needs does. Of several the first in the chain counts: it is what is to be mended next.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from ..core.context import Context
from ..core.daemon import Daemon
from ..core.errors import DmucError
from ..core.goal import Goal, resolve
from ..core.process import Record
from .checklist import WIDTH

if TYPE_CHECKING:
    from rich.console import Console

YOUNG = 30.0  # seconds after its start in which a process that is not ready yet is on its way
# How programs that give up say so: klog, etcd, the Go runtime, cobra, dockerd, leader election.
_LAST_WORDS = re.compile(r"^F\d{4} | C \| |^panic: |^[Ee]rror: |^fatal|^failed to |leaderelection lost|level=fatal")


class State(Enum):
    """How a link is, as the mark that people see."""

    WORKS = "✓"
    BROKEN = "✗"
    WAITS = "…"  # only time is missing
    UNKNOWN = "?"  # there is nobody, or nothing, to ask


_STYLES = {State.WORKS: "green", State.BROKEN: "bold red", State.WAITS: "yellow", State.UNKNOWN: "dim"}


@dataclass(frozen=True)
class Finding:
    """What was found out about one link: how it is, by what that was seen, what to do (not specified: the link's)."""

    state: State
    evidence: str
    do: str = ""
    because: Sequence[str] = ()  # more links that explain it, beside those that the link needs


def works(evidence: str) -> Finding:
    """Give the finding that all is well."""
    return Finding(State.WORKS, evidence)


def broken(evidence: str, do: str = "", because: Sequence[str] = ()) -> Finding:
    """Give the finding that it does not work."""
    return Finding(State.BROKEN, evidence, do, because)


def waits(evidence: str, do: str = "", because: Sequence[str] = ()) -> Finding:
    """Give the finding that it does not work yet, and that only time is missing."""
    return Finding(State.WAITS, evidence, do, because)


def unknown(evidence: str) -> Finding:
    """Give the finding that it cannot be told."""
    return Finding(State.UNKNOWN, evidence)


@dataclass(frozen=True)
class Link:
    """One link of the chain: the question, and what it hangs on."""

    name: str
    check: Callable[[], Finding]  # in milliseconds, or at most the two seconds of a probe
    do: str  # what mends it: one command
    needs: Sequence[str] = ()  # links that explain why this one does not work, when they do not
    asks: Sequence[str] = ()  # links without which there is nothing to ask here
    means: str = ""  # what is lost while it does not work
    part: bool = False  # a component of the cluster, not one of its objects
    quiet: bool = False  # not worth a line as long as it works

    def find(self) -> Finding:
        """Check it; never raises what the world can do to us."""
        try:
            return self.check()
        except (DmucError, OSError) as error:
            return broken(str(error))


def goal(goal: Goal, context: Context, means: str = "", *, quiet: bool = False) -> Link:
    """Give the link for a goal."""

    def check() -> Finding:
        answer = goal.holds(context)
        return (works if answer else broken)(answer.why)

    do = f"scripts/doit {goal.name}"
    return Link(goal.name, check, do, _needs(goal, context), means=means, part=True, quiet=quiet)


def daemon(daemon: Daemon, context: Context, means: str = "") -> Link:
    """Give the link for a daemon: does it run as wanted, and is it ready? One that has just started is on its way."""

    def check() -> Finding:
        running = daemon.running(context)
        if not running:
            return broken("; ".join(filter(None, (running.why, last_words(daemon, context)))))
        ready, record = daemon.is_ready(context), Record.load(daemon.record(context))
        if ready:
            return works(f"{running.why}: {ready.why}")
        if record and record.alive() and time.time() - record.since < YOUNG:
            return waits(f"started {time.time() - record.since:.0f} s ago; {ready.why}")
        return broken(f"{running.why}: {ready.why}")

    do = f"scripts/doit {daemon.name}"
    return Link(daemon.name, check, do, _needs(daemon, context), means=means, part=True)


def _needs(part: Goal | Daemon, context: Context) -> Sequence[str]:
    return resolve(part.needs, context)


def last_words(daemon: Daemon, context: Context) -> str:
    """Give the line of its log in which the daemon, at its last start, says why it gave up; empty when it does not."""
    try:
        text = daemon.log(context).read_text("utf-8", "replace")
    except OSError:
        return ""
    last = text.rpartition("\n--- ")[2].split("\ngoroutine ")[0].splitlines()[-40:]
    found = [line for line in last if _LAST_WORDS.search(line)]
    # klog's time, thread and place in the source are for whoever reads the whole log.
    return f"its log ends: {re.sub(r'^F[0-9: .]+ [^ ]+] ', '', found[-1])}" if found else ""


class Diagnosis:
    """All findings. Those that ask nobody else are made side by side: several that hang cost no more than one."""

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
                self._found[link.name] = unknown(f"cannot be told without {before[0]}")
        return self._found[link.name]

    def __getitem__(self, name: str) -> Finding:
        """The finding about the link `name`: what does not work, or waits, for another's sake, is as that other is."""
        finding, root = self._found[name], self._found[self.root(name)]
        both = {State.BROKEN, State.WAITS}
        return replace(finding, state=root.state) if {finding.state, root.state} == both else finding

    def root(self, name: str) -> str:
        """Give the link that is the reason why `name` does not work: itself, when all that it hangs on works."""
        link = self.links[name]
        for other in (*self._found[name].because, *link.needs, *link.asks):
            if other in self.links and self._found[other].state is not State.WORKS:
                return self.root(other)
        return name

    @property
    def cause(self) -> Link | None:
        """What is to be mended, or else waited for, next; None when everything works."""
        for state in (State.BROKEN, State.WAITS, State.UNKNOWN):
            for name, link in self.links.items():
                if self._found[name].state is state and self.root(name) == name:
                    return link
        return None

    def do(self, link: Link) -> str:
        """Give the command that mends it."""
        return self._found[link.name].do or link.do


def show(diagnosis: Diagnosis, wanted: Callable[[Link], bool] = lambda link: True) -> int:
    """Print it: a line for each link that is `wanted` or does not work, then the cause, and what to do.

    Gives 0 when everything works, else 1.
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
        elif (wanted(link) and not link.quiet) or finding.state is not State.WORKS:
            because = "" if finding.state is State.WORKS or root == name else f"(because of {root}) "
            yield finding.state, name, because + _one_line(finding.evidence)
    for evidence, names in unasked.items():
        if names:
            yield State.UNKNOWN, f"{', '.join(names)}:", _one_line(evidence)


def _show_cause(console: Console, diagnosis: Diagnosis, cause: Link) -> None:
    from rich.text import Text

    finding = diagnosis[cause.name]
    verb = "waiting for" if finding.state is State.WAITS else "cause"
    evidence = _one_line(finding.evidence)
    text = Text.assemble((f"{verb}: {cause.name}", _STYLES[finding.state]), f": {evidence[: 3 * WIDTH]}")
    console.print(text)
    if cause.means:
        console.print(Text(f"without it: {cause.means}"))
    console.print(Text.assemble("next: ", (diagnosis.do(cause), "bold")), soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
