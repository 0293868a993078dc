"""`doit restart NAME ...`: stop components, and start them again; everything else goes on."""

from __future__ import annotations

from typing import Any

from .run import Run


class Restart(Run):
    """The command `doit restart`."""

    doc_purpose = "restart components, named by their tasks or programs; nothing else is stopped, and no data is lost"
    doc_usage = "NAME ..."
    doc_description = (
        "Stops the processes of these components, and starts them as `scripts/doit NAME` does. "
        "With NAME_flags='...' they get other flags."
    )

    _names: list[str]

    def execute(self, params: Any, args: list[str]) -> int:
        """Restart the components; return doit's exit status, 130 when interrupted."""
        self._names = args
        return super().execute(params, [])

    def before_selection(self) -> None:
        """Select the tasks of the components. Raise DmucError when a name is not that of a component."""
        self.sel_tasks = [task for task, _, _ in self._called()]

    def before_tasks(self) -> None:
        """Stop the processes, the last component first. Raise DmucError when some do not end."""
        for task, daemon, there in reversed(self._called()):
            daemon.stop(there)
            print(f"  {task}: stopped", flush=True)

    def _called(self) -> Any:
        return self.cluster.daemons_called("restarting components", self._names)
