"""`doit why`: what works, what does not, by what that is seen, and the one task that brings it further.

The walk-through's chain, from the machine to the page, as questions. The components' are their tasks' own; those about
a Deployment are in followed.py.
"""

from __future__ import annotations

from dataclasses import replace

from doit.exceptions import InvalidCommand

from ..choices import wants_dns
from ..core.cluster import Cluster
from ..core.daemon import Daemon
from ..core.goal import Goal
from ..dns import DNS
from ..pki import PKI
from . import diagnosis
from .base import Command
from .deployment_chain import Followed
from .diagnosis import Diagnosis, Link

# The order of the walk-through. What is no task is a question about the Deployment that is followed.
CHAIN = (
    *("machine", "binaries", "pki", "etcd", "apiserver", "kubectl_proxy", "objects", "deployment"),
    "controller_manager",
    *(
        "replicaset",
        "pod",
        "service_account",
        "container_engine",
        "images",
        "registry",
        "pull_through",
        "kubelet",
        "node",
        "scheduler",
    ),
    *("scheduled", "container", "ready", "service", "endpoints", "kube_proxy", "rules", "page"),
    *("coredns", "dns", "others"),
)
_MEANS = {
    "machine": "nothing runs on it; its data is kept",
    "etcd": "no object can be read or changed; what runs goes on running",
    "apiserver": "nobody learns of anything new, and nobody can ask; what runs goes on running",
    "kubectl_proxy": "nobody in the machine gets to the API server through localhost:8080",
    "controller_manager": "nothing follows a change: no Pod is made, or made anew; what runs goes on running",
    "container_engine": "no container is started or ended, and the node becomes NotReady",
    "registry": "no image can be pulled; containers that run go on running",
    "pull_through": "no new image comes from outside; containers that run go on running",
    "kubelet": "nobody looks after the containers, and after 40 s the API calls its node and Pods not ready",
    "scheduler": "no new Pod gets a node; those that have one are not touched",
    "coredns": "no Service is found by its name; by its address it is",
    "kube_proxy": "the rules stay as they are: no new Service, and no new Pod of one, is reached",
}


class Why(Command):
    """`doit why [NAME]`."""

    doc_purpose = "say what works, what does not, why, and what to do next"
    doc_usage = "[[NAMESPACE/]NAME]"
    doc_description = "With the name of a Deployment: follow that one from object to packet."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print it; gives 0 when everything works, else 1. Raises DmucError when there is no such Deployment."""
        if len(arguments) > 1:
            raise InvalidCommand("`why` takes one Deployment's name, or nothing.")
        followed = Followed(cluster.context, arguments[0] if arguments else "")
        found = Diagnosis(chain(cluster, followed))
        followed.refuse_unknown()
        return diagnosis.show(found, (lambda link: not link.part) if arguments else (lambda link: True))


def chain(cluster: Cluster, followed: Followed) -> list[Link]:
    """Give the links, in the order of CHAIN, as they are for this cluster."""
    context, links = cluster.context, followed.links()
    for part in cluster.parts:
        if isinstance(part, Daemon) and not part.unwanted(context):
            links[part.name] = diagnosis.daemon(part, context, _MEANS.get(part.name, ""))
        elif part is PKI and not context.pki.exists():
            continue  # whoever is the first to need it makes it
        elif part is DNS and not wants_dns(context):
            continue
        elif isinstance(part, Goal) and part.name not in links:
            quiet = part.name in {"binaries", "pki"}
            links[part.name] = diagnosis.goal(part, context, _MEANS.get(part.name, ""), quiet=quiet)
    # It has the images pulled, and starts the registry for that: where both are missing, it is the next.
    links["images"] = replace(links["images"], needs=("container_engine",))
    return [links[name] for name in CHAIN if name in links]
