"""doit's database, such that nothing depends on it: whether a task is up to date is asked of the world every time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from doit.dependency import DatabaseException, JsonDB

from .files import write_atomic


class Database(JsonDB):  # type: ignore[misc]
    """A JSON file that is written whole or not at all, and read as empty where it is not one.

    doit's own is left truncated by a full disk or a kill, and then no command works any more, `clean` included.
    """

    desc = "JSON file, written atomically"

    def _load(self) -> Any:
        try:
            return super()._load()
        except DatabaseException:
            return {}

    def dump(self) -> None:
        """Save it; without room on the disk, or after clean, there is nothing to save."""
        with contextlib.suppress(OSError):
            write_atomic(Path(self.name), self.codec.encode(self._db))
