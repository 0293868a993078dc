"""`doit list`: doit's own command."""

from __future__ import annotations

from doit.cmd_list import List as DoitList

from .base import EndsQuietly


class List(EndsQuietly, DoitList):  # type: ignore[misc]
    """doit's `list`."""
