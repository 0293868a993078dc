"""Shared code of scripts/bench and scripts/ablate, which leave nothing behind, however they end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.core.errors import DmucError

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that end the script, after it has cleaned up


@contextmanager
def nothing_left(clean: Callable[[], None]) -> Iterator[None]:
    """Clean up before and after the body, whatever happens."""
    clean()
    try:
        yield
    finally:
        ignored = [(number, signal.signal(number, signal.SIG_IGN)) for number in _ENDS]
        clean()
        for number, handler in ignored:
            signal.signal(number, handler)


def to_the_end(act: Callable[[], None]) -> int:
    """Call `act` and print how it ended; return the exit status, 0 on success."""
    for number in _ENDS:
        signal.signal(number, signal.default_int_handler)
    try:
        act()
    except DmucError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; nothing is left", file=sys.stderr)
        return 130
    return 0
