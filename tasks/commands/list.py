"""`doit list`: doit's own command, without the intermediate steps."""

from __future__ import annotations

from typing import Any

from doit.cmd_list import List as DoitList

from .base import EndsQuietly, OnCluster


class List(EndsQuietly, OnCluster, DoitList):  # type: ignore[misc]
    """The command `doit list`; hidden tasks, and those that this cluster can never have, are listed only with --all."""

    doc_purpose = "list the tasks; with -s, whether they are up to date (U) or would run (R)"

    def _list_all(self, include_subtasks: bool) -> Any:
        tasks = super()._list_all(include_subtasks)
        never = self.cluster.impossible()
        return [t for t in tasks if include_subtasks or not ((t.meta or {}).get("hidden") or t.name in never)]
