"""The one kind of error that users see: what was tried, what happened, what to do about it."""

from __future__ import annotations

from .hints import pasteable


class DmucError(Exception):
    """An error with a message that a user can act on.

    The message has three parts, each of one or more lines: `tried` (what dmuc was doing), `seen` (what happened: an
    exit code, the last lines of a log) and `do` (what to do now; may be empty). `str()` joins them.
    """

    def __init__(self, tried: str, seen: str = "", do: str = "") -> None:
        self.tried, self.seen, self.do = tried, seen, do
        super().__init__(pasteable("\n".join(part for part in (tried, seen, do) if part)))


class Interrupted(DmucError):
    """The run is ending (another task has failed, or Ctrl-C), which interrupted this task: it has not failed itself."""
