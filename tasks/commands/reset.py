"""`doit reset`: an empty cluster in place of this one: a fresh etcd, and all else as it is.

For tests that must not see the objects of those before them. Certificates, addresses, ports, settings and images stay,
so a kubeconfig, or a client that was made with one, works on.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from doit.exceptions import InvalidCommand

from ..container_engine import CONTAINER_ENGINE
from ..controller_manager import CONTROLLER_MANAGER
from ..core.errors import DmucError
from ..dns import COREDNS, DNS
from ..etcd import ETCD
from ..kubelet import KUBELET, SCHEDULABLE
from ..registry import PULL_THROUGH, REGISTRY
from ..service_account import SERVICE_ACCOUNT
from .run import Run

_STAY = {CONTAINER_ENGINE.name, REGISTRY.name, PULL_THROUGH.name}  # they know nothing of the objects
# Without these, an object that is created at once is refused, or its Pod is not scheduled.
_ALSO = {CONTROLLER_MANAGER.name: SERVICE_ACCOUNT.name, KUBELET.name: SCHEDULABLE.name, COREDNS.name: DNS.name}


class Reset(Run):
    """The command `doit reset`."""

    doc_purpose = "remove all objects at once: a fresh etcd; certificates, ports, settings and images stay"
    doc_usage = ""
    doc_description = (
        "What is running is restarted with an empty database, and nothing else is started. The Deployment and the "
        "Service of the walk-through are objects, too: the next `scripts/doit` creates them again."
    )

    def execute(self, params: object, args: list[str]) -> int:
        """Reset the cluster; return doit's exit status, 130 when interrupted."""
        if args:
            raise InvalidCommand("`reset` takes no arguments. To restart one component: scripts/doit restart NAME")
        return super().execute(params, [])

    def before_selection(self) -> None:
        """Select what is running. Raise DmucError when etcd is not."""
        running = self.cluster.running()
        if ETCD.name not in running:
            seen = f"etcd does not run on {self.cluster.context.machine.name}, so there is nothing to reset."
            raise DmucError("resetting the cluster", seen, "Run: scripts/doit")
        names = [task for task in running if task.partition(":")[0] not in _STAY]
        self.sel_tasks = [*names, *(also for name, also in _ALSO.items() if name in running)]

    def before_tasks(self) -> None:
        """Stop the clients of the API server, the API server, and etcd, whose data are removed."""
        running = self.cluster.running()
        clients = [
            (daemon, there)
            for task, daemon, there in self.cluster.placed()
            if task in running and daemon.name not in {*_STAY, ETCD.name}
        ]

        with ThreadPoolExecutor(max_workers=len(clients) + 1) as pool:
            list(pool.map(lambda one: one[0].stop(one[1]), clients))
        ETCD.undo(self.cluster.context)
        print("  all objects are removed", flush=True)
