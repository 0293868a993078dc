"""`doit info NAME`: doit's own command, which also prints why a task is not up to date, and a daemon's flags."""

from __future__ import annotations

from typing import Any

from doit.cmd_base import check_tasks_exist
from doit.cmd_info import Info as DoitInfo

from ..core.goal import STARTED
from .base import EndsQuietly, OnCluster


class Info(EndsQuietly, OnCluster, DoitInfo):  # type: ignore[misc]
    """The command `doit info`."""

    doc_purpose = "show why a task would run"

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        check_tasks_exist({task.name for task in self.task_list}, pos_args)
        status = int(DoitInfo._execute(self, pos_args, hide_status))
        for task, daemon, there in self.cluster.placed():
            if task in {name.removesuffix(STARTED) for name in pos_args}:
                print(f"\nflags of {daemon.program_name(there)}:")
                for flag in daemon.all_flags(there):
                    print(f" {flag.text}\n     {flag.why}")
        return status

    @staticmethod
    def get_reasons(reasons: Any) -> str:
        """Return as text why a task is not up to date."""
        checks = [
            f" * {check.result.why}" for check, _, _ in reasons.pop("uptodate_false", []) if hasattr(check, "result")
        ]
        rest = DoitInfo.get_reasons(reasons | {"uptodate_false": [], "has_no_dependencies": False})
        return "\n".join(filter(None, [*checks, rest]))
