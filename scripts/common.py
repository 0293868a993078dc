"""What scripts/bench and scripts/ablate have in common: they leave nothing, however they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.core import signals
from tasks.core.errors import DmucError

ROOT = Path(__file__).parents[1]  # the checkout


@contextmanager
def nothing_left(clean: Callable[[], None]) -> Iterator[None]:
    """Begin with nothing and leave nothing, whatever happens."""
    clean()
    try:
        yield
    finally:
        with signals.held_off():
            clean()


def to_the_end(act: Callable[[], None]) -> int:
    """Do it, and say how it has ended; gives the exit status, 0 when it went through."""
    signals.raise_on_end()
    try:
        act()
    except DmucError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; nothing is left", file=sys.stderr)
        return 130
    return 0
