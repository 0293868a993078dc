"""What scripts/bench and scripts/ablate have in common: they leave nothing, however they end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.core.errors import DmucError

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what ends us, once we have cleaned up


@contextmanager
def nothing_left(clean: Callable[[], None]) -> Iterator[None]:
    """Begin with nothing and leave nothing, whatever happens."""
    clean()
    try:
        yield
    finally:
        ignored = [(number, signal.signal(number, signal.SIG_IGN)) for number in _ENDS]
        clean()
        for number, handler in ignored:
            signal.signal(number, handler)


def to_the_end(act: Callable[[], None]) -> int:
    """Do it, and say how it has ended; gives the exit status, 0 when it went through."""
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
