"""`doit why`: what works, what does not, the evidence for it, and the next command.

The chain of the walk-through, from the machine to the page, as checks. For a component, the check is that of its task;
the checks about a Deployment are in deployment_chain.py.
"""

from __future__ import annotations

from dataclasses import replace

from doit.exceptions import InvalidCommand

from .. import deployment, service_proxy
from ..choices import dns_enabled
from ..core.cluster import Cluster
from ..core.daemon import Daemon
from ..core.goal import Goal
from ..core.run import Cause
from ..dns import DNS
from ..pki import PKI
from . import diagnosis, limits
from .base import Command
from .deployment_chain import DeploymentChain, is_kind
from .diagnosis import Diagnosis, Link

# The order of the walk-through. A name that is not a task is a link about the Deployment that is followed.
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
    *("scheduled", "container", "ready", "service", "endpoints", service_proxy.TASK, "rules", "page"),
    *("coredns", "dns", "others", "volumes", "network_policies"),
)
# The links about what takes a node.
_ON_A_NODE = {
    "node",
    "scheduled",
    "container",
    "ready",
    "endpoints",
    "rules",
    "page",
    "others",
    "registry",
    "pull_through",
}
_MEANS = {
    "machine": "no component runs; the data is kept",
    "etcd": "no object can be read or changed; running containers keep running",
    "apiserver": "no object can be read or changed, and no component sees changes; running containers keep running",
    "kubectl_proxy": "no client in the machine can reach the API server on localhost:8080",
    "controller_manager": "no change is acted on: no Pod is created or replaced; running containers keep running",
    "container_engine": "no container can be started or stopped, and the node becomes NotReady",
    "registry": "no image can be pulled; running containers keep running",
    "pull_through": "no image can be pulled from the upstream registry; running containers keep running",
    "kubelet": "no container is started or restarted, and after 40 s the node and its Pods become NotReady",
    "scheduler": "no new Pod gets a node; Pods that have a node are not affected",
    "coredns": "Services cannot be found by name, only by address",
    service_proxy.TASK: "the rules are not updated: new Services, and new Pods of a Service, cannot be reached",
}


class Why(Command):
    """`doit why [NAME]`."""

    doc_purpose = "show what works, what does not, why, and what to do next"
    doc_usage = "[[NAMESPACE/][deploy/ | pod/ | svc/]NAME]"
    doc_description = "With the name of a Deployment, Pod or Service: follow it from object to packet."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print the diagnosis; return 0 when everything works, else 1.

        Raise DmucError when there is no such object.
        """
        if len(arguments) > 1 and not (len(arguments) == 2 and is_kind(arguments[0])):  # as in: why pod NAME
            raise InvalidCommand("`why` takes the name of one Deployment, Pod or Service, or no argument.")
        followed = DeploymentChain(cluster.context, "/".join(arguments))
        found = Diagnosis(chain(cluster, followed))
        followed.refuse_unknown()
        return diagnosis.show(found, (lambda link: not link.part) if arguments else (lambda link: True))


def cause(cluster: Cluster, link: str) -> Cause | None:
    """Return the cause why this link does not work, for the Deployment web; None when it works."""
    return Diagnosis(chain(cluster, DeploymentChain(cluster.context, f"default/{deployment.NAME}"))).why(link)


def chain(cluster: Cluster, followed: DeploymentChain) -> list[Link]:
    """Return the links for this cluster, in the order of CHAIN."""
    context = cluster.context
    links = followed.links() | limits.links(context)
    for part in cluster.parts:
        if isinstance(part, Daemon) and not part.disabled_because(context):
            links[part.name] = diagnosis.daemon(part, context, _MEANS.get(part.name, ""))
        elif part is PKI and not context.pki.exists():
            continue  # created by the first task that needs it
        elif part is DNS and not dns_enabled(context):
            continue
        elif isinstance(part, Goal) and part.name not in links:
            quiet = part.name in {"binaries", "pki"}
            links[part.name] = diagnosis.goal(part, context, _MEANS.get(part.name, ""), quiet=quiet)
    # The task `images` starts the registry, too: when both are missing, `images` comes first.
    links["images"] = replace(links["images"], needs=("container_engine",))
    never = cluster.impossible()
    if never:  # without a node, no Pod of it runs
        never |= _ON_A_NODE
    return [links[name] for name in CHAIN if name in links and name not in never]
