"""`doit info NAME`: doit's own command, which also prints why a task is not up to date."""

from __future__ import annotations

from typing import Any

from doit.cmd_base import check_tasks_exist
from doit.cmd_info import Info as DoitInfo

from .base import EndsQuietly


class Info(EndsQuietly, DoitInfo):  # type: ignore[misc]
    """The command `doit info`."""

    doc_purpose = "show why a task would run"

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        check_tasks_exist({task.name for task in self.task_list}, pos_args)
        return int(DoitInfo._execute(self, pos_args, hide_status))

    @staticmethod
    def get_reasons(reasons: Any) -> str:
        """Return as text why a task is not up to date."""
        checks = [
            f" * {check.result.why}" for check, _, _ in reasons.pop("uptodate_false", []) if hasattr(check, "result")
        ]
        rest = DoitInfo.get_reasons(reasons | {"uptodate_false": [], "has_no_dependencies": False})
        return "\n".join(filter(None, [*checks, rest]))
