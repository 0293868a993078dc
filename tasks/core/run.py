"""This run of doit: what it takes in, whether it must end, what it has started, and what people see of it.

One Run belongs to one Context (see cluster.py, which makes both). Nothing here decides what a task does: the board only
shows. Outside of `doit run` the selection is empty, and nobody sets the stop signal.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .report import Board

if TYPE_CHECKING:
    import http.client

    from .machine import Spawned


@dataclass
class Run:
    """One run of doit. All of it may be used from every thread."""

    stop: threading.Event = field(default_factory=threading.Event)  # set: whatever waits must stop waiting
    selected: Collection[str] = ()  # the names of all tasks that this run takes in
    spawned: dict[int, Spawned] = field(default_factory=dict)  # by pid: only this run can know their exit codes
    # Connections for https that wait for the next question: by host, port and TLS context (http_client.py).
    connections: dict[tuple[Any, ...], list[http.client.HTTPConnection]] = field(default_factory=dict)
    _working: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.board = Board(self.stop)

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Count the task `name` as being carried out for as long as the body runs."""
        self._working.add(name)
        try:
            yield
        finally:
            self._working.discard(name)

    def end(self, deadline: float) -> None:
        """Set the stop signal; return when no task is being carried out any more, or after `deadline` seconds."""
        import tenacity

        self.stop.set()
        tenacity.Retrying(
            retry=tenacity.retry_if_result(bool),
            wait=tenacity.wait_fixed(0.02),
            stop=tenacity.stop_after_delay(deadline),
            retry_error_callback=lambda _: None,
        )(self._working.copy)
