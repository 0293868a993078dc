"""How a long piece of work says where it is; whoever starts it decides how that is shown."""

from __future__ import annotations

import threading
from typing import Protocol


class Progress(Protocol):
    """What a task's action is given to speak through. All calls are cheap and may come from any thread."""

    @property
    def stop(self) -> threading.Event:
        """The run's stop signal: when it is set, the work must end, by raising Interrupted."""

    def note(self, text: str) -> None:
        """Say in one short line what is being done or waited for now; replaces the line before."""

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Show that `done` of `total` (None: not known) units are done."""

    def part(self, name: str) -> Progress:
        """Give what a piece of the work, done beside others, speaks through: it has a line of its own."""


class Silent:
    """A Progress that shows nothing. `stop` is the stop signal to use; by default it has one that is never set."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()

    def note(self, text: str) -> None:
        """Take the line and show nothing."""

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Take the figures and show nothing."""

    def part(self, name: str) -> Silent:
        """Give itself: nothing is shown of a part either."""
        return self
