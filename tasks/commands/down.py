"""`doit down`: power the machine off and keep its data."""

from __future__ import annotations

from ..core.cluster import Cluster
from ..core.lock import only_one
from .base import Command


class Down(Command):
    """`doit down`."""

    doc_purpose = "power the machine off and keep its data"
    doc_usage = ""
    doc_description = "The next `doit` brings the same cluster back, with its objects."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Power the machine off."""
        with only_one(cluster.context):
            cluster.power_off()
        return 0
