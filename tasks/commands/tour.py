"""`doit tour`: from step to step, in the state where the tour was left."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..choices import engine
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.files import read_json, write_atomic
from ..core.lock import only_one
from ..core.settings import Settings, remember, remembered
from ..tour.play import Stage, Unexpected
from ..tour.steps import CHAPTERS, Chapter, Step, chosen, facts, load
from .base import Command, told


class Tour(Command):
    """`doit tour`."""

    doc_purpose = "the walk-through, step by step: see what is broken, understand why, mend it"
    doc_usage = ""
    doc_description = """Enter goes on, q leaves; coming back goes on from there. Settings choose:
service_account=no-mount takes only that way past the missing token, scheduling=manual starts no scheduler."""
    cmd_options = (
        {"name": "yes", "short": "y", "long": "yes", "type": bool, "default": False, "help": "do not wait for Enter"},
        {"name": "only_list", "short": "", "long": "list", "type": bool, "default": False, "help": "list the steps"},
        {"name": "first", "short": "", "long": "from", "type": str, "default": "", "help": "tell from this STEP on"},
        {"name": "last", "short": "", "long": "to", "type": str, "default": "", "help": "stop after this STEP"},
        {
            "name": "chapters",
            "short": "",
            "long": "chapters",
            "type": str,
            "default": str(CHAPTERS),
            "help": "a DIRECTORY of chapters of your own",
        },
    )

    def _execute(  # type: ignore[override]
        self, pos_args: list[str], yes: bool, only_list: bool, first: str, last: str, chapters: str
    ) -> int:
        def act() -> int:
            if pos_args:
                raise DmucError("reading the command line", f"`tour` does not know {' '.join(pos_args)!r}.", "")
            directory = Path(chapters)
            if only_list:
                return _list(Position.of(self.cluster, directory))
            if directory == CHAPTERS:
                _refuse_without_docker(self.cluster.context)
            with only_one(self.cluster.context, "tour"):
                return _walk(Position.of(self.cluster, directory), yes, first, last)

        try:
            return told(act)()
        except KeyboardInterrupt:
            print(f"\n{_LEFT}", file=sys.stderr)
            return 130


_LEFT = "The cluster stays as it is. scripts/doit tour goes on from here, scripts/doit clean takes it away."


@dataclass
class Position:
    """Where the tour is on this machine. It is kept in tour.json, until clean."""

    cluster: Cluster
    chapters: Sequence[Chapter]
    choices: dict[str, str]  # settings that the user has chosen otherwise than they are by default
    done: list[str]  # the names of the steps
    running: list[str]  # the daemons, after the last of them

    @classmethod
    def of(cls, cluster: Cluster, directory: Path) -> Position:
        """Read it; of a machine on which no tour is under way, give its beginning."""
        context, chapters = cluster.context, load(directory)
        kept = read_json(context.state / "tour.json")
        if not kept:
            kept = {"choices": _choices(chapters, context.settings), "done": [], "running": []}
        return cls(cluster, chosen(chapters, facts(context), kept["choices"]), **kept)

    @property
    def steps(self) -> list[Step]:
        """All steps, in their order."""
        return [step for chapter in self.chapters for step in chapter.step]

    def numbered(self) -> Iterator[tuple[int, Chapter, Step]]:
        """Give each step with its number and its chapter."""
        pairs = ((chapter, step) for chapter in self.chapters for step in chapter.step)
        for number, (chapter, step) in enumerate(pairs, 1):
            yield number, chapter, step

    def step(self, name: str) -> Step:
        """Give the step of this name. Raises DmucError when there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise DmucError(
            f"looking for the step {name!r}", "The tour has no such step.", "See them: scripts/doit tour --list"
        )

    def save(self) -> None:
        """Keep it."""
        self.running = [*self.cluster.running()]
        state = self.cluster.context.state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {"choices": self.choices, "done": self.done, "running": self.running}
        write_atomic(state / "tour.json", json.dumps(kept, indent=1))

    def check(self) -> None:
        """Raise DmucError when the machine is not as the tour has left it."""
        name, now = self.cluster.context.settings.machine, [*self.cluster.running()]
        used = any(daemon.log(self.cluster.context).exists() for daemon in self.cluster.daemons)
        if now == self.running and (self.done or not used):
            return
        if not self.done:
            raise DmucError(
                f"beginning the tour on {name}",
                f"The tour begins with nothing, and there is a cluster; running: {', '.join(now) or 'nothing of it'}.",
                f"Take the tour on another machine (scripts/doit tour machine=NAME), or end {name}: scripts/doit clean",
            )
        gone, new = ([x for x in a if x not in b] for a, b in ((self.running, now), (now, self.running)))
        seen = [f"{', '.join(gone)} ran when it was left, and no longer run." if gone else ""]
        seen.append(f"{', '.join(new)} run, and did not when it was left." if new else "")
        do = [f"Start them again: scripts/doit {' '.join(_task(self.cluster, x) for x in gone)}" if gone else ""]
        do.append(f"Take them back: scripts/doit clean {' '.join(_task(self.cluster, x) for x in new)}" if new else "")
        raise DmucError(
            f"going on with the tour on {name} after the step {self.done[-1]}",
            " ".join(filter(None, seen)),
            "\n".join([*filter(None, do), "Or begin anew: scripts/doit clean"]),
        )


def _task(cluster: Cluster, label: str) -> str:
    return next(d.name for d in cluster.daemons if d.label == label)


def _choices(chapters: Sequence[Chapter], settings: Settings) -> dict[str, str]:
    """Give the settings that a step asks for, where the user has chosen otherwise than they are by default."""
    names = {step.choice.partition("=")[0] for chapter in chapters for step in chapter.step if step.choice}
    mine = {f.name: getattr(settings, f.name) for f in fields(Settings) if f.name in names}
    return {name: value for name, value in mine.items() if value != getattr(Settings, name)}


def _list(position: Position) -> int:
    for number, chapter in enumerate(position.chapters, 1):
        print(f"{number}. {chapter.title}")
        for step in chapter.step:
            print(f"  {'✓' if step.name in position.done else ' '} {step.name:<24} {step.title}")
    return 0


def _walk(position: Position, yes: bool, first: str, last: str) -> int:
    """Go from where the tour is to the step `last`; those before `first` are done without a word."""
    from rich.console import Console

    names = [step.name for step in position.steps]
    left = [name for name in names if name not in position.done]
    begin, end = (position.step(name).name if name else "" for name in (first, last))
    if not left:
        print("The tour has come to its end on this machine. Anew: scripts/doit clean, then scripts/doit tour")
        return 0
    _refuse(position, left, begin, end, yes)
    _settle(position)
    console = Console(highlight=False, soft_wrap=True)
    quiet = False

    def say(text: str, style: str) -> None:
        if not quiet:
            console.print(text, style=style, markup=False)

    stage = Stage(position.cluster, [f"{name}={value}" for name, value in position.cluster.arguments.items()], say)
    for number, chapter, step in position.numbered():
        if step.name not in left:
            continue
        quiet = bool(begin) and names.index(step.name) < names.index(begin)
        if quiet:
            console.print(f"{number}/{len(names)} {step.name}: done without a word", style="dim", markup=False)
        if step is chapter.step[0]:
            say(f"━━ {chapter.title} ━━\n", "bold cyan")
        say(f"{number}/{len(names)} {step.title} [{step.name}]\n", "bold cyan")
        try:
            stage.play(step, None if yes or quiet else _await_enter)
        except Unexpected as error:
            print(f"✗ {error}", file=sys.stderr)
            return 1
        except _LeftError:
            break
        position.cluster = stage.cluster
        position.done.append(step.name)
        position.save()
        if step.name == end:
            break
    else:
        return 0
    print(_LEFT)
    return 0


def _refuse(position: Position, left: Sequence[str], begin: str, end: str, yes: bool) -> None:
    """Raise DmucError when these wishes, or the world, do not let the tour go on."""
    for name, option in ((begin, "--from"), (end, "--to")):
        if name and name not in left:
            raise DmucError(
                f"{option} {name}",
                "The tour has come further than that already, and a cluster does not go backwards.",
                f"Begin anew: scripts/doit clean, then scripts/doit tour {option} {name}",
            )
    if begin and end and left.index(begin) > left.index(end):
        raise DmucError(f"--from {begin} --to {end}", "That is the other way round.", "See: scripts/doit tour --list")
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise DmucError("taking the tour", "It waits for Enter, and there is no terminal.", "Add: --yes")
    if position.cluster.context.settings.on_host and position.chapters[0].settings:
        raise DmucError("taking the tour", "It takes a machine of its own.", "Leave machine=host out.")
    if shutil.which("curl") is None:
        raise DmucError("taking the tour", "It types curl, and there is none here.", "Install it: apt-get install curl")
    position.check()


def _refuse_without_docker(context: Context) -> None:
    if engine(context) != "docker":
        asked = context.release.dockershim and "engine=containerd is asked for"
        raise DmucError(
            "taking the tour",
            "It is the walk-through, and that has Docker; "
            f"{asked or f'Kubernetes {context.settings.kubernetes} no longer speaks to it'}.",
            "Take it with a release up to 1.23 (scripts/doit tour kubernetes=1.20), and leave engine= out. "
            "All that it comes to, with yours: scripts/doit",
        )


def _settle(position: Position) -> None:
    """Have the cluster made with the tour's own settings, which count until clean."""
    context = position.cluster.context
    if not position.done:
        position.save()
        remember(context.state, {**position.choices, **position.chapters[0].settings})
    settings = replace(context.settings, **remembered(context.state))  # type: ignore[arg-type]
    position.cluster = replace(position.cluster, context=replace(context, settings=settings))


class _LeftError(Exception):
    """The person leaves."""


def _await_enter() -> None:
    try:
        answer = input("[Enter: go on, q: leave] ")
    except EOFError:
        answer = "q"
    if answer.strip().lower() in {"q", "quit", "exit"}:
        raise _LeftError
    print()
