"""doit's database. Nothing depends on it, because every run checks whether a task is up to date."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from doit.dependency import DatabaseException, JsonDB

from .files import write_atomic


class Database(JsonDB):  # type: ignore[misc]
    """A JSON file that is written atomically, and read as empty when it is not valid.

    A full disk or a kill leaves doit's own file truncated, and then no command works any more, `clean` included.
    """

    desc = "JSON file, written atomically"

    def _load(self) -> Any:
        try:
            found = super()._load()
        except (DatabaseException, OSError):
            return {}
        valid = isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values())
        return found if valid else {}

    def dump(self) -> None:
        """Write the database; do nothing when the disk is full, or after clean has removed the directory."""
        with contextlib.suppress(OSError):
            write_atomic(Path(self.name), self.codec.encode(self._db))
