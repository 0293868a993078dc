"""The one kind of error that people see: what was tried, what was seen, what to do about it."""

from __future__ import annotations


class DmucError(Exception):
    """Something did not work, said so that a person can act on it.

    Takes three pieces of text, each of one or more lines: `tried` (what dmuc was doing), `seen` (what happened:
    an exit code, the last lines of a log) and `do` (what to do now; may be empty). `str()` joins them.
    """

    def __init__(self, tried: str, seen: str = "", do: str = "") -> None:
        self.tried, self.seen, self.do = tried, seen, do
        super().__init__("\n".join(part for part in (tried, seen, do) if part))


class Interrupted(DmucError):
    """The run is being ended (another task failed, or Ctrl-C): not this task's own fault."""
