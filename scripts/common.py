"""Shared code of scripts/bench and scripts/ablate, which leave nothing behind, however they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dodo
from tasks.cluster import load
from tasks.core import caller, signals
from tasks.core.errors import DmucError

ROOT = Path(__file__).parents[1]  # the checkout


def of_one_release(settings: Sequence[str]) -> list[str]:
    """Return the settings with the release that dmuc would choose for a new cluster, if they name none."""
    cluster = load(ROOT, os.environ, [*settings, "machine=no-such-one"], dodo.PARTS, choosing=True)
    return [*settings, f"kubernetes={cluster.context.settings.kubernetes}"]


@contextmanager
def nothing_left(clean: Callable[[], None]) -> Iterator[None]:
    """Call `clean` before and after the body, even if the body fails or is interrupted."""
    clean()
    try:
        yield
    finally:
        with signals.ignored():
            clean()


def to_the_end(act: Callable[[], None]) -> int:
    """Call `act` and print how it ended; return the exit status, 0 on success."""
    caller.reset()
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
