"""The signals that end a program cleanly: Ctrl-C, `kill`, and the end of a terminal or ssh session."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def raise_on_end() -> None:
    """Make each of ENDS raise KeyboardInterrupt in the main thread; keep ignoring what the caller ignores (nohup).

    An ignored signal has a handler of its own by then (caller.py).
    """
    for number in ENDS:
        if number == signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def ignored(say: str = "") -> Iterator[None]:
    """Ignore the signals of ENDS while the body runs; print the line `say` when the first one arrives."""
    said: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if say and not said:
            said.append(number)
            print(say, flush=True)

    before = {number: signal.signal(number, hear) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
