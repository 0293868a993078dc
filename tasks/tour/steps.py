"""The steps of the tour, read from the chapters beside this file: 1-….toml, 2-….toml, and so on; of current releases
from those in current/.

A chapter has a `title` and, in the first chapter, the `settings` of the tour's cluster. A `[[step]]` has texts for the
reader: `name`, `title`, `about` (what we are about to do, and why), `notice` (what to look at in the output) and
`means` (what the output means). Its commands, and their expected results, are `[[step.command]]` entries:

    doit or run   the arguments of `scripts/doit`; or a shell command, run on the machine
    set           settings that apply from here on
    fails         true: the exit status must not be 0
    shows, hides  regular expressions: each must, or must not, match the output
    within        seconds during which the command is repeated until the result is as expected; default: run it once
    until         a regular expression: the command does not end by itself, and is stopped when its output matches
    tail          the number of last lines to show

A step or command with `when` (or `unless`) is included only when that fact is true (or false): see `Facts`. A step
with `choice` ("setting=value") is left out when the user has chosen another value for that setting.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.context import Context
from ..core.errors import DmucError

CHAPTERS = Path(__file__).parent  # the walk-through, with Docker: up to Kubernetes 1.23
CURRENT = CHAPTERS / "current"  # the same story with containerd, certificates and RBAC: from 1.24 on


@dataclass(frozen=True)
class Command:
    """A command of a step, and its expected result."""

    doit: str = ""
    run: str = ""
    set: Mapping[str, str] = field(default_factory=dict)
    fails: bool = False
    shows: Sequence[str] = ()
    hides: Sequence[str] = ()
    within: float = 0.0  # seconds
    until: str = ""
    tail: int = 0
    when: str = ""
    unless: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError when the command is not well formed."""
        if bool(self.doit) == bool(self.run):
            raise ValueError("a command is either `doit` or `run`")
        for pattern in (*self.shows, *self.hides, self.until):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None

    @property
    def typed(self) -> str:
        """The command as the reader would type it."""
        return f"scripts/doit {self.doit}" if self.doit else self.run

    def expected(self) -> str:
        """Return the expected result in words."""
        parts = ["it fails" if self.fails else "it keeps running" if self.until else "it succeeds"]
        parts += [f"its output matches /{pattern}/" for pattern in (*self.shows, *filter(None, [self.until]))]
        parts += [f"its output does not match /{pattern}/" for pattern in self.hides]
        return ", ".join(parts) + (f", within {self.within:g} s" if self.within else "")


@dataclass(frozen=True)
class Step:
    """One step of the tour."""

    name: str
    title: str
    about: str
    notice: str = ""
    means: str = ""
    command: Sequence[Command] = ()
    when: str = ""
    unless: str = ""
    choice: str = ""


@dataclass(frozen=True)
class Chapter:
    """A chapter of the tour: steps that belong together."""

    title: str
    step: Sequence[Step]
    settings: Mapping[str, str] = field(default_factory=dict)


Facts = Mapping[str, bool]  # facts about the release and the host, by the names that `when` and `unless` use


def load(directory: Path = CHAPTERS) -> list[Chapter]:
    """Return the chapters in `directory`, in the order of their file names. Raise DmucError for an invalid chapter."""
    chapters = [_chapter(path) for path in sorted(directory.glob("*.toml"))]
    names = [step.name for chapter in chapters for step in chapter.step]
    twice = {name for name in names if names.count(name) > 1}
    if not names or twice:
        seen = f"Two steps are called {', '.join(sorted(twice))}." if twice else "There are no steps."
        raise DmucError(f"reading the tour in {directory}", seen, "Chapters are files *.toml; see tasks/tour/steps.py.")
    return chapters


def facts(context: Context) -> Facts:
    """Return every fact that a step of the tour can depend on, by name."""
    return {"swap": context.facts.has_swap, "insecure_port": context.release.insecure_port}


def chosen(chapters: Sequence[Chapter], facts: Facts, choices: Mapping[str, str]) -> list[Chapter]:
    """Return the chapters with the steps and commands for these `facts`.

    `choices` are the settings for which the user has chosen another value than the default.
    """

    def fits(one: Step | Command) -> bool:
        for name in filter(None, (one.when, one.unless)):
            if name not in facts:
                raise DmucError("reading the tour", f"There is no fact called {name!r}.", f"The facts: {[*facts]}.")
        setting, _, value = getattr(one, "choice", "").partition("=")
        other = choices.get(setting, value) != value
        return (not one.when or facts[one.when]) and not (one.unless and facts[one.unless]) and not other

    return [
        Chapter(
            chapter.title,
            [_with(step, [c for c in step.command if fits(c)]) for step in chapter.step if fits(step)],
            chapter.settings,
        )
        for chapter in chapters
    ]


def _with(step: Step, commands: Sequence[Command]) -> Step:
    values = {f.name: getattr(step, f.name) for f in fields(Step)}
    return Step(**values | {"command": commands})


def _chapter(path: Path) -> Chapter:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        content["step"] = [
            Step(**step | {"command": [Command(**command) for command in step.get("command", [])]})
            for step in content["step"]
        ]
        return Chapter(**content)
    except (OSError, tomllib.TOMLDecodeError, TypeError, KeyError, ValueError) as error:
        raise DmucError(
            f"reading the chapter {path}", f"{type(error).__name__}: {error}", "Correct the file."
        ) from None
