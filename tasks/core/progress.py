"""How a long piece of work says where it is; whoever starts it decides how that is shown."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a task's action is given to speak through. Both calls are cheap and may come from any thread."""

    def note(self, text: str) -> None:
        """Say in one short line what is being done or waited for now; replaces the line before."""

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Show that `done` of `total` (None: not known) units are done."""


class Silent:
    """A Progress that shows nothing, for callers that have nobody to tell."""

    def note(self, text: str) -> None:
        """Take the line and show nothing."""

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Take the figures and show nothing."""
