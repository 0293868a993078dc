"""The signals that end a program in good order: Ctrl-C, `kill`, and a terminal or ssh session that goes away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def raise_on_end() -> None:
    """Have each of them raise KeyboardInterrupt in the main thread; what the caller ignores (nohup) stays ignored."""
    for number in ENDS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def held_off(say: str = "") -> Iterator[None]:
    """Let none of them break off the body; print the line `say` when the first one comes."""
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
