"""Dessine-moi un cluster: the table of contents, in the order of the walk-through.

Each line is a part of the cluster, defined in the file of that name under tasks/; doit's task is made from that part.
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
)
from tasks.commands.loader import ClusterLoader
from tasks.core.graph import Part
from tasks.proxies import kube_proxy

PARTS: list[Part] = [
    *machine.PARTS,  # a machine of its own, where nothing runs yet
    *binaries.PARTS,  # the programs: found, downloaded or built
    *pki.PARTS,  # keys and certificates
    *etcd.PARTS,  # stores everything
    *apiserver.PARTS,  # everyone talks to it
    *insecure_port.PARTS,  # as in the walk-through: plain HTTP, if that is asked for
    *kubeconfig.PARTS,  # how they find it
    *controller_manager.PARTS,  # makes ReplicaSets of Deployments, Pods of ReplicaSets, ...
    *service_account.PARTS,  # without a token for it no Pod is made
    *deployment.PARTS,  # kubectl create deployment web --image=nginx
    *container_engine.PARTS,  # runs containers
    *images.PARTS,  # what they run
    *kubelet.PARTS,  # makes a node of the machine
    *scheduler.PARTS,  # gives Pods a node
    *service.PARTS,  # kubectl expose deployment web --port=80, and asking it
    *kube_proxy.PARTS,  # makes Services reachable
    *service.REACHABLE,  # Welcome to nginx!
    *dns.PARTS,  # beyond the walk-through: names for Services, if that is asked for
]


class Loader(ClusterLoader):
    """What doit loads (see pyproject.toml): the cluster that consists of these parts."""

    root = Path(__file__).parent
    parts = PARTS
