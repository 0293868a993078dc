"""`doit tour`: play the tour, from the step at which the reader left it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..choices import engine, rbac_enabled
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.files import read_json, write_atomic
from ..core.hints import pasteable
from ..core.lock import only_one
from ..core.settings import Settings, remember_given
from ..tour.play import Stage, Unexpected
from ..tour.steps import CHAPTERS, CURRENT, Chapter, Step, chosen, facts, load
from .base import Command, reporting_errors


class Tour(Command):
    """`doit tour`: the walk-through, step by step."""

    doc_purpose = "the walk-through, step by step: see what is broken, understand why, fix it"
    doc_usage = ""
    doc_description = """Enter goes on to the next step, q leaves the tour; started again, the tour continues there.
Settings choose the way: service_account=no-mount shows only that way past the missing token, scheduling=manual
starts no scheduler."""
    cmd_options = (
        {"name": "yes", "short": "y", "long": "yes", "type": bool, "default": False, "help": "do not wait for Enter"},
        {"name": "only_list", "short": "", "long": "list", "type": bool, "default": False, "help": "list the steps"},
        {"name": "first", "short": "", "long": "from", "type": str, "default": "", "help": "show from this STEP on"},
        {"name": "last", "short": "", "long": "to", "type": str, "default": "", "help": "stop after this STEP"},
        {
            "name": "chapters",
            "short": "",
            "long": "chapters",
            "type": str,
            "default": "",
            "help": "a DIRECTORY of chapters of your own",
        },
    )

    def _execute(  # type: ignore[override]
        self, pos_args: list[str], yes: bool, only_list: bool, first: str, last: str, chapters: str
    ) -> int:
        def act() -> int:
            if pos_args:
                raise DmucError(
                    "reading the command line",
                    f"`tour` does not know {' '.join(pos_args)!r}.",
                    "See: scripts/doit help tour",
                )
            directory = Path(chapters) if chapters else _chapters(self.cluster.context)
            if only_list:
                return _list(Position.of(self.cluster, directory))
            with only_one(self.cluster.context, "tour"):
                return _walk(Position.of(self.cluster, directory), yes, first, last)

        try:
            return reporting_errors(act)()
        except KeyboardInterrupt:
            print(f"\n{_LEFT}", file=sys.stderr)
            return 130


_LEFT = "The cluster stays as it is. scripts/doit tour continues from here, scripts/doit clean removes it."


@dataclass
class Position:
    """How far the tour has come on this machine. It is stored in tour.json, until clean."""

    cluster: Cluster
    chapters: Sequence[Chapter]
    choices: dict[str, str]  # the settings for which the user has chosen another value than the default
    done: list[str]  # the names of the steps that are done
    running: list[str]  # the daemons that were running after the last of these steps

    @classmethod
    def of(cls, cluster: Cluster, directory: Path) -> Position:
        """Return the stored position; on a machine where the tour has not started, its beginning."""
        context, chapters = cluster.context, load(directory)
        kept = read_json(context.state / "tour.json")
        if not kept:
            kept = {"choices": _choices(chapters, context.settings), "done": [], "running": []}
        return cls(cluster, chosen(chapters, facts(context), kept["choices"]), **kept)

    @property
    def steps(self) -> list[Step]:
        """All steps, in order."""
        return [step for chapter in self.chapters for step in chapter.step]

    def numbered(self) -> Iterator[tuple[int, Chapter, Step]]:
        """Yield each step with its number and its chapter."""
        pairs = ((chapter, step) for chapter in self.chapters for step in chapter.step)
        for number, (chapter, step) in enumerate(pairs, 1):
            yield number, chapter, step

    def step(self, name: str) -> Step:
        """Return the step of this name. Raise DmucError when there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise DmucError(
            f"looking for the step {name!r}", "The tour has no such step.", "List the steps: scripts/doit tour --list"
        )

    def save(self) -> None:
        """Store the position."""
        self.running = [*self.cluster.running()]
        state = self.cluster.context.state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {"choices": self.choices, "done": self.done, "running": self.running}
        write_atomic(state / "tour.json", json.dumps(kept, indent=1))

    def check(self) -> None:
        """Raise DmucError when the machine is not in the state in which the reader left the tour."""
        name, now = self.cluster.context.settings.machine, [*self.cluster.running()]
        used = any(daemon.log(self.cluster.context).exists() for daemon in self.cluster.daemons)
        if now == self.running and (self.done or not used):
            return
        if not self.done:
            raise DmucError(
                f"starting the tour on {name}",
                f"The tour starts with an empty machine, and there is a cluster on {name}; running: "
                f"{', '.join(now) or 'no component'}.",
                "Remove the cluster: scripts/doit clean. Or play on another machine: scripts/doit tour machine=NAME",
            )
        gone, new = ([x for x in a if x not in b] for a, b in ((self.running, now), (now, self.running)))
        seen = [f"Stopped since you left the tour: {', '.join(gone)}." if gone else ""]
        seen.append(f"Started since you left the tour: {', '.join(new)}." if new else "")
        do = [f"Start again: scripts/doit {' '.join(_task(self.cluster, x) for x in gone)}" if gone else ""]
        do.append(f"Remove: scripts/doit clean {' '.join(_task(self.cluster, x) for x in new)}" if new else "")
        raise DmucError(
            f"continuing the tour on {name} after the step {self.done[-1]}",
            " ".join(filter(None, seen)),
            "\n".join([*filter(None, do), "Or start over: scripts/doit clean, then scripts/doit tour"]),
        )


def _task(cluster: Cluster, label: str) -> str:
    return next(d.name for d in cluster.daemons if d.name == label)


def _choices(chapters: Sequence[Chapter], settings: Settings) -> dict[str, str]:
    """Return the settings that steps depend on and for which the user has chosen another value than the default."""
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
    """Play the steps that are left, up to the step `last`; those before `first` are done without being shown."""
    from rich.console import Console

    names = [step.name for step in position.steps]
    left = [name for name in names if name not in position.done]
    begin, end = (position.step(name).name if name else "" for name in (first, last))
    if not left:
        print(
            pasteable("The tour is complete on this machine. To start over: scripts/doit clean, then scripts/doit tour")
        )
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
            console.print(f"{number}/{len(names)} {step.name}: done, not shown", style="dim", markup=False)
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
    print(pasteable(_LEFT))
    return 0


def _refuse(position: Position, left: Sequence[str], begin: str, end: str, yes: bool) -> None:
    """Raise DmucError when the tour cannot go on with these options, or on this host."""
    for name, option in ((begin, "--from"), (end, "--to")):
        if name and name not in left:
            raise DmucError(
                f"{option} {name}",
                "The tour is past this step already, and cannot go back.",
                f"Start over: scripts/doit clean, then scripts/doit tour {option} {name}",
            )
    if begin and end and left.index(begin) > left.index(end):
        seen, do = f"The step {end} comes before the step {begin}.", "List the steps: scripts/doit tour --list"
        raise DmucError(f"--from {begin} --to {end}", seen, do)
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise DmucError("starting the tour", "The tour waits for Enter, and there is no terminal.", "Add: --yes")
    if position.cluster.context.settings.on_host and position.chapters[0].settings:
        raise DmucError("starting the tour", "The tour needs a machine of its own.", "Leave out machine=host.")
    if shutil.which("curl") is None:
        raise DmucError("starting the tour", "The tour needs curl, which is not installed.", "apt-get install curl")
    position.check()


def _chapters(context: Context) -> Path:
    """Return the directory of the chapters for this release: the walk-through's up to 1.23, as long as it uses Docker.

    Raise DmucError when neither the walk-through nor the current chapters can be played with these settings.
    """
    release = context.release
    if release.dockershim and engine(context) == "docker":
        return CHAPTERS
    if not release.dockershim and rbac_enabled(context):
        return CURRENT
    asked = "engine=containerd" if release.dockershim else f"security={context.settings.security}, or insecure_port=on"
    raise DmucError(
        "starting the tour",
        f"With Kubernetes {release.minor} it needs {'Docker' if release.dockershim else 'RBAC'}, and {asked} was set.",
        "Leave that setting out; or start the cluster without the tour: scripts/doit",
    )


def _settle(position: Position) -> None:
    """Store the tour's own settings for this cluster; they apply until clean."""
    context = position.cluster.context
    if position.done:
        return
    position.save()
    own = {**position.choices, **position.chapters[0].settings}
    settings = replace(context.settings, **own, given={**context.settings.given, **own})  # type: ignore[arg-type]
    remember_given(context.state, settings)
    position.cluster = replace(position.cluster, context=replace(context, settings=settings))


class _LeftError(Exception):
    """The reader leaves the tour."""


def _await_enter() -> None:
    try:
        result = input("[Enter: continue, q: leave] ")
    except EOFError:
        result = "q"
    if result.strip().lower() in {"q", "quit", "exit"}:
        raise _LeftError
    print()
