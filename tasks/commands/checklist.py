"""A checklist: facts, what dmuc does about each, and what the user must do; printed on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ..core.hints import pasteable

WIDTH = 110  # of a line, where the terminal does not say another
_COLUMN = 14  # the names


class Verdict(Enum):
    """What a fact means for the cluster."""

    FINE = "✓"
    ADAPTED = "→"  # not as a program expects it, and dmuc adapts to it
    DOUBTFUL = "!"  # may cause a failure
    IMPOSSIBLE = "✗"


_STYLES = {Verdict.FINE: "green", Verdict.ADAPTED: "cyan", Verdict.DOUBTFUL: "yellow", Verdict.IMPOSSIBLE: "bold red"}


@dataclass(frozen=True)
class Check:
    """A fact of the checklist."""

    name: str
    found: str  # the fact, and how it was found out
    does: str = ""  # what dmuc does about it, and why
    state: Verdict = Verdict.FINE
    do: str = ""  # what the user must do


def show(found: Sequence[Check]) -> None:
    """Print the rows, and a line that sums them up."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = (min(console.width, WIDTH) if console.is_terminal else WIDTH) - _COLUMN - 3
    for row in found:
        head = Text.assemble((row.state.value, _STYLES[row.state]), f" {row.name:<{_COLUMN}} ")
        for text, style in ((row.found, ""), (row.does, "dim"), (pasteable(row.do), "bold")):
            for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
                console.print(head, Text(line, style), sep="")
                head = Text(" " * (_COLUMN + 3))
    missing = [row.name for row in found if row.state is Verdict.IMPOSSIBLE]
    end = (
        f"The cluster cannot run before these are fixed ({Verdict.IMPOSSIBLE.value}): {', '.join(missing)}."
        if missing
        else "Nothing is in the way."
    )
    console.print(Text(f"\n{end}", "bold red" if missing else "green"))
