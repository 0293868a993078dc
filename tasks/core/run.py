"""The state of one run of doit: the selected tasks, the stop signal, the started processes, and the display.

One Run belongs to one Context (tasks/cluster.py makes both). The board only displays, and decides nothing. Outside of
`doit run` the selection is empty, and the stop signal is never set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .report import Board
from .timeline import Timeline

if TYPE_CHECKING:
    import http.client

    from .machine import Spawned


@dataclass(frozen=True)
class Cause:
    """Why a condition does not hold, as `doit why` says it. `stays`: it cannot change by itself, so waiting is vain."""

    text: str
    do: str
    stays: bool


@dataclass
class Run:
    """One run of doit. Every thread may use it."""

    stop: threading.Event = field(default_factory=threading.Event)  # the stop signal: when set, all waiting must end
    selected: Collection[str] = ()  # the names of all tasks in this run
    spawned: dict[int, Spawned] = field(default_factory=dict)  # by pid: only this run can know their exit codes
    # Open https connections, kept for the next request: by host, port and TLS context (http_client.py).
    connections: dict[tuple[Any, ...], list[http.client.HTTPConnection]] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    # Returns the cause why this link of `doit why` does not work; commands/run.py sets it.
    cause: Callable[[str], Cause | None] = field(default=lambda link: None)
    _working: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.board = Board(self.stop)

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Count the task `name` as running while the body runs."""
        self._working.add(name)
        self.timeline.begin(name)
        try:
            yield
        finally:
            self.timeline.end(name)
            self._working.discard(name)

    def end(self, deadline: float) -> None:
        """Set the stop signal; return when no task is running any more, or after `deadline` seconds."""
        import tenacity

        self.stop.set()
        tenacity.Retrying(
            retry=tenacity.retry_if_result(bool),
            wait=tenacity.wait_fixed(0.02),
            stop=tenacity.stop_after_delay(deadline),
            retry_error_callback=lambda _: None,
        )(self._working.copy)
