"""The container engines, behind one interface (see container_engine.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..core.iptables import Chains
from ..core.machine import Machine


@dataclass(frozen=True)
class Traces:
    """What an engine leaves on the machine when it ends, beside what it stores."""

    run: str  # the directory in /run that it works in
    bridge: str  # the link that its containers are on
    chains: Chains
    files: Callable[[Machine], Iterable[Any]] = lambda machine: ()  # paths in directories that others use, too
