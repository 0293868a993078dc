"""`doit clean`: power off and remove everything; with names, remove only what those tasks made."""

from __future__ import annotations

from doit.cmd_base import check_tasks_exist
from doit.cmd_clean import Clean as DoitClean
from doit.cmd_clean import opt_clean_dryrun

from ..core.lock import only_one
from .base import EndsQuietly, OnCluster, reporting_errors


class Clean(EndsQuietly, OnCluster, DoitClean):  # type: ignore[misc]
    """The command `doit clean`: undo the named tasks, last first; without names, remove the machine, in any state."""

    interrupted = "interrupted: what is left stays known; run the same again, and it goes on from here"
    cmd_options = (opt_clean_dryrun,)
    doc_purpose = "undo tasks, or remove the whole cluster"
    doc_description = "Without names: power off and remove everything except the cache. With names: undo these tasks."

    def _execute(self, dryrun: bool, pos_args: list[str]) -> int:
        cluster = self.cluster
        tasks = {task.name: task for task in self.task_list}
        names = self._expand(pos_args)
        check_tasks_exist(tasks, names)

        def clean() -> int:
            with only_one(cluster.context):
                if dryrun:
                    for name, _ in cluster.undos():
                        if name in names:
                            print(f"{name}: would be undone", flush=True)
                elif names:
                    cluster.undo(names, lambda name: print(f"{name}: undone", flush=True))
                else:
                    cluster.remove()
            return 0

        return reporting_errors(clean)()
