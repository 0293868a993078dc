"""Progress: how a task reports what it is doing. The caller of the task decides how that is shown."""

from __future__ import annotations

import threading
from typing import Protocol


class Progress(Protocol):
    """The interface through which a task reports. All calls are cheap, and may come from any thread."""

    @property
    def stop(self) -> threading.Event:
        """The run's stop signal: when it is set, the task must end, by raising Interrupted."""

    def note(self, text: str) -> None:
        """Report in one short line what the task is doing or waiting for; this replaces the previous line."""

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Report that `done` of `total` (None: unknown) units are done."""

    def part(self, name: str) -> Progress:
        """Return a Progress for one of several parallel parts of the task, which has a line of its own."""


class Silent:
    """A Progress that shows nothing. `stop` is its stop signal; by default one that is never set."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()

    def note(self, text: str) -> None:
        """Ignore the line."""

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        """Ignore the figures."""

    def part(self, name: str) -> Silent:
        """Return this object: parts are not shown either."""
        return self
