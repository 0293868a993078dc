"""The record of one run: when each task began and ended, and for which tasks it waited; and the critical path.

The run keeps it in memory and stores it at its end, if it did something (`doit timeline` draws it).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import read_json, write_atomic

FILE = "timeline.json"


@dataclass(frozen=True)
class Event:
    """One task of a run; times are seconds since the start of dmuc's process."""

    name: str
    needs: Sequence[str]  # the tasks that it waited for
    begun: float
    ended: float
    up_to_date: bool = False  # there was nothing to do


def age() -> float:
    """Return the seconds since this process was started (proc(5), starttime)."""
    started = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


class Timeline:
    """The events of the run that goes on. Every thread may call its methods."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._events: dict[str, Event] = {}
        self.needs: Mapping[str, Sequence[str]] = {}  # of each task in the run

    def begin(self, name: str) -> None:
        """Note that the task begins now."""
        self._begun[name] = age()

    def end(self, name: str) -> None:
        """Note that the task ends now; without `begin` before, it was up to date."""
        now, begun = age(), self._begun.get(name)
        event = Event(name, self.needs.get(name, ()), now if begun is None else begun, now, begun is None)
        self._events[name] = event

    def store(self, state: Path) -> None:
        """Write the events below `state`; nothing when every task was up to date."""
        if self._begun:
            events = [asdict(event) for event in self._events.values()]
            write_atomic(state / FILE, json.dumps({"tasks": events}, indent=0), 0o600)


def stored(state: Path) -> list[Event]:
    """Return the events of the last run that did something, in the order in which they began; none without a record."""
    found = read_json(state / FILE).get("tasks", [])
    try:
        return sorted((Event(**event) for event in found), key=lambda event: (event.begun, event.ended))
    except TypeError:  # written by another version of dmuc
        return []


def last_need(event: Event, events: Mapping[str, Event]) -> Event | None:
    """Return the task that this one waited for the longest: of those that it needs, the one that ended last."""
    needed = [events[name] for name in event.needs if name in events]
    return max(needed, key=lambda one: one.ended, default=None)


def critical_path(events: Sequence[Event]) -> list[Event]:
    """Return the tasks that decided how long the run took, the first one first.

    The last of them is the task that ended last; before each stands the task that it waited for the longest.
    """
    by_name = {event.name: event for event in events}
    path: list[Event] = []
    at = max(events, key=lambda event: event.ended, default=None)
    while at is not None and at not in path:
        path.insert(0, at)
        at = last_need(at, by_name)
    return path
