"""`doit down`: power the machine off and keep its data."""

from __future__ import annotations

from doit.exceptions import InvalidCommand

from ..core.cluster import Cluster
from ..core.lock import only_one
from .base import Command


class Down(Command):
    """`doit down`: power off the machine and keep its data."""

    doc_purpose = "power off the machine and keep its data"
    doc_usage = ""
    doc_description = "The next `scripts/doit` restarts the same cluster, with all its objects."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Power off the machine; return 0."""
        if arguments:
            raise InvalidCommand("`down` takes no arguments. To stop one part: scripts/doit clean NAME")
        with only_one(cluster.context):
            cluster.power_off()
        return 0
