"""Flags: the arguments of a daemon's command line, those of dmuc and those of the user (`etcd_flags=` and so on).

The user's flags come last. What that means is up to the program: the last value of a flag wins, values of a list are
added to each other, and of a map such as --feature-gates the last value of each key wins.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .context import Context
from .errors import DmucError, Interrupted
from .machine import Host, run
from .settings import Settings, flags_setting

Purpose = Literal["", "security", "isolation", "speed", "use"]
# What the parsers of flags say (Go's package flag, pflag, urfave/cli) about a flag that they refuse.
_REFUSED = re.compile(
    r"^.*(unknown (shorthand )?flag\b|flag provided but not defined|flag needs an argument|bad flag syntax"
    r"|invalid (argument|value|boolean value) .* (for|flag)\b).*$",
    re.MULTILINE,
)
_GATE = re.compile(r"unrecognized feature gate: (\w+)")
_GATES = re.compile(r"\b(\w+)=true\|false")  # the feature gates in the text of --help
_LISTED = re.compile(r"^\s+(?:-\w, )?(--?[a-zA-Z0-9][\w.-]*)", re.MULTILINE)  # the flags in the text of --help


def _name(flag: str) -> str:
    """Return the name of a flag, without dashes and value. Kubernetes takes `_` for `-`."""
    return flag.lstrip("-").partition("=")[0].replace("_", "-")


def _help(context: Context, *command: str) -> str:
    """Return what the program prints for this command line with --help at its end, which starts nothing.

    A flag at the end of the command line that lacks its value takes the first --help for it.
    """
    try:
        return run(Host(stop=context.run.stop), "sh", "-c", '"$@" --help --help 2>&1 || :', "sh", *command)
    except Interrupted:
        raise
    except DmucError:  # a wrapper that does not pass on --help
        return ""


@dataclass(frozen=True)
class Flag:
    """One command-line argument, and the reason for it."""

    text: str
    why: str
    kept_for: Purpose = ""  # why it is kept, although the page is reached without it (see scripts/ablate)


def files_of(flags: Sequence[Flag]) -> list[Path]:
    """Return the files that the flags name by an absolute path; a directory ends with a slash."""
    values = (flag.text.partition("=")[2] for flag in flags)
    return [Path(value) for value in values if value.startswith("/") and not value.endswith("/")]


def users_flags(settings: Settings, program: str, ours: Sequence[Flag]) -> list[Flag]:
    """Return the flags that the user has added to those of dmuc (`ours`); the reason says where they are set."""
    setting, found = flags_setting(program), []
    for word in settings.flags.get(program, ()):
        before = [flag.text for flag in ours if word.startswith("-") and _name(flag.text) == _name(word)]
        also = f"; after dmuc's {' '.join(before)}" if before else ""
        found.append(Flag(word, f"Yours: {setting}= ({settings.sources.get(setting, '')}){also}."))
    return found


def refuse(context: Context, program: str, command: Sequence[str], then: str) -> None:
    """Raise DmucError when the program does not accept the user's flags at the end of its command line.

    The program itself reads the command line, with --help behind it: so it starts nothing, but complains about an
    unknown flag or a wrong value, and accepts flags that its help does not list, such as deprecated ones. `then` is
    added to what was seen.
    """
    words = context.settings.flags[program]
    found = _REFUSED.search(_help(context, *command))
    refused = found[0].strip() if found else ""
    if '"--help"' in refused:  # taken for the value that the last flag lacks
        refused = f"flag needs an argument: {words[-1]}"
    if not refused and (words[-1].count("=") or not words[-1].startswith("-")):
        return
    text = _help(context, *command[: -len(words)])
    if not refused and re.search(rf"^\s+(?:-\w, )?--?{re.escape(_name(words[-1]))} [a-zA-Z<]", text, re.MULTILINE):
        refused = f"flag needs an argument: {words[-1]}"
    if not refused:
        return
    listed = {_name(flag): flag for flag in _LISTED.findall(text)} | {gate: gate for gate in _GATES.findall(text)}
    unknown = [_name(word) for word in words if word.startswith("-") and _name(word) not in listed]
    near = [
        listed[name] for word in unknown + _GATE.findall(refused) for name in difflib.get_close_matches(word, listed, 1)
    ]
    setting = flags_setting(program)
    raise DmucError(
        f"checking {setting}={shlex.join(words)} ({context.settings.sources.get(setting, '')})",
        "\n".join(filter(None, [f"{command[0]}: {refused}", then])),
        f"Did you mean {' and '.join(near)}?" if near else f"All flags: {command[0]} --help",
    )
