"""The table of contents of dmuc: the parts of the cluster, in the order of the walk-through.

Each part is defined in the file of that name under tasks/, and becomes one or more tasks of doit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import (
    apiserver,
    binaries,
    choices,
    container_engine,
    controller_manager,
    deployment,
    dns,
    etcd,
    front_door,
    images,
    kubeconfig,
    kubelet,
    machine,
    pki,
    scheduler,
    service,
    service_account,
)
from tasks.commands import user
from tasks.core.cluster import Cluster
from tasks.core.errors import DmucError
from tasks.core.graph import Part, tasks
from tasks.core.report import Reporter
from tasks.core.settings import arguments
from tasks.programs import catalog
from tasks.proxies import kube_proxy

PARTS: list[Part] = [
    *machine.PARTS,  # a machine, on which no component runs yet
    *binaries.PARTS,  # the programs: found, downloaded or built
    *pki.PARTS,  # keys and certificates
    *etcd.PARTS,  # stores every object
    *apiserver.PARTS,  # all other components connect to it
    *front_door.PARTS,  # plain HTTP, as in the walk-through, if requested
    *kubeconfig.PARTS,  # the address of the API server, and client certificates
    *controller_manager.PARTS,  # creates ReplicaSets for Deployments, Pods for ReplicaSets, ...
    *service_account.PARTS,  # without its token no Pod is created
    *deployment.PARTS,  # kubectl create deployment web --image=nginx
    *container_engine.PARTS,  # runs containers
    *images.PARTS,  # the images of the containers
    *kubelet.PARTS,  # registers the machine as a node
    *scheduler.PARTS,  # assigns nodes to Pods
    *service.PARTS,  # kubectl expose deployment web --port=80
    *kube_proxy.PARTS,  # makes Services reachable
    *service.REACHABLE,  # Welcome to nginx!
    *dns.PARTS,  # not in the walk-through: names for Services, if requested
]


def _cluster() -> Cluster:
    names = {part.name.lstrip("_") for part in PARTS}
    context = machine.context(
        Path(__file__).parent, os.environ, arguments(sys.argv[1:], user.WORDS), programs=catalog.PROGRAMS, tasks=names
    )
    return Cluster(context, PARTS, versions=binaries.versions, objects=service.objects)


try:
    DMUC = _cluster()  # the commands of tasks/core/commands.py take it from here
except DmucError as error:
    sys.exit(f"✗ {error}")

DOIT_CONFIG = {
    "default_tasks": ["service_reachable", *(["dns"] if choices.wants_dns(DMUC.context) else [])],
    "backend": "robust",  # see tasks/core/database.py
    "dep_file": str(DMUC.context.state / "doit.json"),
    "reporter": Reporter,
    # A thread for every task: they mostly wait.
    "par_type": "thread",
    "num_process": 32,
}


def task_dmuc() -> Iterator[dict[str, Any]]:
    """Yield the whole task graph to doit."""
    yield from tasks(PARTS, DMUC.context)
