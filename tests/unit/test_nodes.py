"""A cluster of two nodes, although no setting makes one yet: its graph, and what runs on each node."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doit.control import TaskControl
from doit.loader import load_tasks

import dodo
from tasks import pki
from tasks.cluster import load
from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.graph import add_order, join, tasks
from tasks.core.namespaces import Namespaces
from tasks.core.node import Node
from tasks.machine import DISK, KERNEL, MODULES
from tasks.programs import catalog
from tests.unit.support import CHECKOUT, a_host

GOLDEN = CHECKOUT / "tests" / "golden" / "two-nodes.txt"
UPDATE = "UPDATE_GOLDEN"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Two machines of their own, dmuc1 and dmuc2, with containerd and Kubernetes 1.36."""
    words = ["kubernetes=1.36", f"cache={tmp_path}/cache"]
    one = load(tmp_path, {}, words, dodo.PARTS, facts=a_host())
    state = one.context.state / "nodes" / "dmuc2"
    ranges = ("10.95.0.4/30", "10.96.0.0/16", "10.244.1.0/24")
    machine = Namespaces("dmuc2", state, *ranges, DISK, KERNEL, MODULES)
    two = Node("dmuc2", machine, "10.95.0.6", "10.244.1.0/24", state, prefix="nodes/dmuc2/")
    context = replace(one.context, nodes=[*one.context.nodes, two])
    state.mkdir(parents=True)
    programs = {name: {"path": f"/programs/{name}", "version": "v1.36.3"} for name in catalog.PROGRAMS}
    context.programs_file.write_text(json.dumps(programs))
    return replace(one, context=context)


def text(cluster: Cluster) -> str:
    """The tasks with what they need, and the command lines and files of what there is on each node."""
    return "\n".join([*_graph(cluster), *_daemons(cluster)]).replace(str(cluster.context.state), "STATE") + "\n"


def _graph(cluster: Cluster) -> Iterator[str]:
    for goal in join(cluster.parts, cluster.context):
        yield goal.name
        yield from (f"    needs {name}" for name in goal.needs)  # type: ignore[union-attr]
        yield from (f"    after {name}" for name in goal.after)  # type: ignore[union-attr]


def _daemons(cluster: Cluster) -> Iterator[str]:
    for task, daemon, there in cluster.placed():
        if daemon.nodes == "each":
            yield from ("", f"=== {task}", *daemon.command(there))
            for path, content in daemon.writes(there).items():
                yield from ("", f"--- {path}", content.rstrip())


def test_the_graph_and_the_command_lines_are_the_golden_ones(cluster: Cluster) -> None:
    now = text(cluster).replace(f"{cluster.context.settings.cache}", "CACHE")
    if os.environ.get(UPDATE):
        GOLDEN.write_text(now)
    golden = GOLDEN.read_text() if GOLDEN.exists() else ""
    changes = "\n".join(difflib.unified_diff(golden.splitlines(), now.splitlines(), GOLDEN.name, "now", "", "", 3, ""))
    assert golden == now, f"{changes}\nIf that is as it should be: {UPDATE}=1"


def in_doit(cluster: Cluster) -> dict[str, Any]:
    return dict(TaskControl(load_tasks({"task_all": lambda: tasks(cluster.parts, cluster.context)})).tasks)


def test_doit_has_a_sub_task_for_each_node_and_the_plain_name_means_all(cluster: Cluster) -> None:
    found = in_doit(cluster)
    assert set(found["kubelet"].task_dep) == {"kubelet:dmuc1", "kubelet:dmuc2"}
    assert "container_engine:dmuc2" in found["kubelet:dmuc2"].task_dep
    assert "container_engine:dmuc1" not in found["kubelet:dmuc2"].task_dep
    assert {"kubelet:dmuc1", "kubelet:dmuc2"} <= add_order(in_doit(cluster), ["service_reachable"])
    one = add_order(in_doit(cluster), ["kubelet:dmuc1"])
    assert "machine:dmuc2" not in one and "kubelet:dmuc2" not in one


def test_each_node_has_an_identity_of_its_own(cluster: Cluster) -> None:
    names = {one.name: one.common_name for one in pki.everything(cluster.context) if "kubelet" in one.name}  # type: ignore[union-attr]
    assert names["kubelet"] == "system:node:dmuc1"
    assert names["nodes/dmuc2/kubelet"] == names["nodes/dmuc2/kubelet-server"] == "system:node:dmuc2"


def test_what_is_on_a_node_has_its_files_there(cluster: Cluster) -> None:
    def files(context: Context) -> set[Path]:
        return {path for daemon in cluster.daemons if daemon.nodes == "each" for path in daemon.writes(context)}

    one, two = (cluster.context.on(name) for name in ("dmuc1", "dmuc2"))
    assert files(one) and not files(one) & files(two)
    assert all(path.is_relative_to(two.node.state) for path in files(two))
    assert {daemon.record(two).parent for daemon in cluster.daemons} == {two.node.state / "run"}
