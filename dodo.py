"""Dessine-moi un cluster: the table of contents, in the order of the walk-through.

Each line is a part of the cluster, defined in the file of that name under tasks/, and from each doit's task is made.
"""

from __future__ import annotations

import io
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
    *machine.PARTS,  # a machine of its own, where nothing runs yet
    *binaries.PARTS,  # the programs: found, downloaded or built
    *pki.PARTS,  # keys and certificates
    *etcd.PARTS,  # stores everything
    *apiserver.PARTS,  # everyone talks to it
    *front_door.PARTS,  # as on the slides: plain HTTP, if that is asked for
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


def _cluster() -> Cluster:
    names = {part.name.lstrip("_") for part in PARTS}
    context = machine.context(
        Path(__file__).parent, os.environ, arguments(sys.argv[1:], user.WORDS), programs=catalog.PROGRAMS, tasks=names
    )
    return Cluster(context, PARTS, versions=binaries.versions, objects=service.objects)


for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding lacks is printed as a question mark
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")

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
    """Give doit the whole graph."""
    yield from tasks(PARTS, DMUC.context)
