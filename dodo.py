"""The table of contents of dmuc: the parts of the cluster, in the order of the walk-through.

Each part is defined in the file of that name under tasks/, and becomes one or more tasks of doit.
"""

from __future__ import annotations

from pathlib import Path

from tasks import (
    apiserver,
    binaries,
    container_engine,
    controller_manager,
    deployment,
    dns,
    etcd,
    images,
    insecure_port,
    kubeconfig,
    kubelet,
    machine,
    pki,
    scheduler,
    service,
    service_account,
    service_proxy,
)
from tasks.commands.loader import ClusterLoader
from tasks.core.graph import Part

PARTS: list[Part] = [
    *machine.PARTS,  # a machine, on which no component runs yet
    *binaries.PARTS,  # the programs: found, downloaded or built
    *pki.PARTS,  # keys and certificates
    *etcd.PARTS,  # stores every object
    *apiserver.PARTS,  # all other components connect to it
    *insecure_port.PARTS,  # plain HTTP, as in the walk-through, if requested
    *kubeconfig.PARTS,  # the address of the API server, and client certificates
    *controller_manager.PARTS,  # creates ReplicaSets for Deployments, Pods for ReplicaSets, ...
    *service_account.PARTS,  # without its token no Pod is created
    *deployment.PARTS,  # kubectl create deployment web --image=nginx
    *container_engine.PARTS,  # runs containers
    *images.PARTS,  # the images of the containers
    *kubelet.PARTS,  # registers the machine as a node
    *scheduler.PARTS,  # assigns nodes to Pods
    *service.PARTS,  # kubectl expose deployment web --port=80
    *service_proxy.PARTS,  # makes Services reachable
    *service.REACHABLE,  # Welcome to nginx!
    *dns.PARTS,  # not in the walk-through: names for Services, if requested
]


class Loader(ClusterLoader):
    """What doit loads (see pyproject.toml): the cluster that consists of these parts."""

    root = Path(__file__).parent
    parts = PARTS
