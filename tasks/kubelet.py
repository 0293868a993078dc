"""The kubelet: makes a node of the machine. It runs the Pods that the API server says are on its node.

Without a kubeconfig it starts, but stands alone; on the slide it is `kubelet --kubeconfig ~/.kube/config`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import dns, etcd, front_door, kubeconfig, upgrade
from .choices import engine, secure
from .core import api, iptables
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.goal import Goal
from .core.graph import Part
from .core.iptables import Chains
from .core.probe import All, Answer, Http, ask_api, wait_or_fail
from .core.process import Record
from .core.progress import Progress
from .core.release import CONTAINERD_SOCKET
from .facts import has_cgroup_v1, has_swap


def node_name(context: Context) -> str:
    """The node's name: the machine's host name, in small letters."""
    return socket.gethostname().lower() if context.settings.on_host else context.settings.machine


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    why = "Where the API server is; without it the kubelet stands alone."
    flags = [Flag(f"--kubeconfig={kubeconfig.for_component(context, 'kubelet')}", why)]
    if not context.settings.uses_front_door:
        flags += [
            Flag(
                f"--client-ca-file={context.pki / 'ca.crt'}",
                "Who may ask it to run a command in a Pod: our CA's clients.",
                "use",
            ),
            Flag("--anonymous-auth=false", "And nobody else: by default every user of the host may.", "security"),
            Flag("--read-only-port=0", "Its second port tells everybody about every Pod.", "security"),
            Flag(
                "--eviction-hard=memory.available<100Mi",
                "By default it evicts every Pod when the disk is nine tenths full, and this disk is the host's.",
                "isolation",
            ),
        ]
    if secure(context):
        flags += [
            Flag(
                "--authorization-mode=Webhook",
                "And of them only whom the API server, asked by the kubelet, allows it.",
                "security",
            ),
            Flag(
                f"--tls-cert-file={context.pki / 'kubelet-server.crt'}",
                "Who it is for the API server; by default it makes a certificate that nobody can check.",
                "use",
            ),
            Flag(f"--tls-private-key-file={context.pki / 'kubelet-server.key'}", "The key to that certificate.", "use"),
        ]
    if has_swap():
        flags.append(Flag("--fail-swap-on=false", "The host has swap, and by default the kubelet refuses to run then."))
    if dns.COREDNS.has_run(context):
        flags.append(Flag(f"--cluster-dns={dns.address(context)}", "Whom Pods ask for names; CoreDNS is there."))
        flags.append(Flag(f"--cluster-domain={dns.DOMAIN}", "So `web` is web.default.svc.cluster.local, too."))
    row = context.release_of("kubelet")
    if row.fail_cgroup_v1 and has_cgroup_v1():
        why = "The host has cgroup v1, and by default the kubelet refuses to run then."
        flags.append(Flag("--fail-cgroupv1=false", why))
    if engine(context) == "containerd" and row.runtime_flag:
        flags.append(Flag("--container-runtime=remote", "The engine is another program than the kubelet's own Docker."))
    if engine(context) == "containerd" and row.endpoint != CONTAINERD_SOCKET:
        flags.append(Flag(f"--container-runtime-endpoint=unix://{CONTAINERD_SOCKET}", "Where the engine is."))
    return flags


def _make_node(context: Context) -> None:
    """Make the Node object before the kubelet does, where that saves its first 10 s; see the table of releases.

    https://kubernetes.io/docs/concepts/architecture/nodes/#manual-node-administration
    """
    if context.release_of("kubelet").node_first and not ask_api(context, _path(context), lambda node: Answer(True, "")):
        api.create(context, _manifest(context))


def _manifest(context: Context) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node_name(context), "labels": {"kubernetes.io/hostname": node_name(context)}},
        "status": {"capacity": {"pods": "110"}},  # kubelet 1.20 cannot take over a Node without any
    }


def _path(context: Context) -> str:
    return f"/api/v1/nodes/{node_name(context)}"


def _has_registered(context: Context) -> Answer:
    def judge(node: Any) -> Answer:
        addresses = {a["type"]: a["address"] for a in node["status"].get("addresses", [])}
        address = addresses.get("InternalIP")
        return Answer(
            bool(address), f"node {node_name(context)} has the address {address}" if address else "no address"
        )

    return ask_api(context, _path(context), judge)


def _node_is_ready(context: Context) -> Answer:
    record = Record.load(context.run / "kubelet.pid")
    begun = record.since if record else 0.0

    def judge(node: Any) -> Answer:
        for condition in node["status"].get("conditions", []):
            if condition["type"] == "Ready":
                seen = datetime.strptime(condition["lastHeartbeatTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
                if seen.timestamp() < int(begun):
                    return Answer(False, f"node {node_name(context)}: its state is from before this kubelet started")
                why = f"node {node_name(context)} is {'Ready' if condition['status'] == 'True' else 'not Ready'}"
                return Answer(condition["status"] == "True", f"{why}: {condition['message']}")
        return Answer(False, f"node {node_name(context)} has not said how it is")

    return ask_api(context, _path(context), judge)


def _keeps(context: Context) -> Sequence[Path]:
    places = [Path("/var/lib/kubelet"), Path("/var/lib/dockershim"), Path("/var/log/pods"), Path("/var/log/containers")]
    return places if context.settings.on_host else [context.state / "kubelet"]


def _take_back(context: Context) -> None:
    api.delete(context, _path(context))
    # kube-proxy's rules refer to some of them, but it is taken back before.
    if not context.machine.whole and KUBELET.has_run_since_boot(context):
        iptables.remove(context.machine, Chains("KUBE-.*"))


KUBELET = Daemon(
    name="kubelet",
    doc="start the kubelet, which makes a node of the machine",
    program="kubelet",
    flags=flags,
    needs=lambda context: (*front_door.needs(context), "kubeconfig", "container_engine"),
    after=lambda context: ("images", "__coredns", *upgrade.first(context, "controller_manager", "scheduler")),
    answers=_has_registered,
    ready=All([Http("http://127.0.0.1:10248/healthz"), _node_is_ready]),
    prepare=_make_node,
    reads=lambda context: [*files_of(flags(context)), etcd.identity(context)],
    take_back=_take_back,
    keeps=_keeps,
    needs_root=True,
    causes={
        "running with swap on is not supported": "The kubelet refuses to run with swap: --fail-swap-on=false.",
        "misconfiguration: kubelet cgroup driver": "Kubelet and engine must use the same cgroup driver.",
        "docker.sock. Is the docker daemon running": "The container engine does not answer.",
        "unknown service runtime.v1": "Kubelet and containerd have no version of CRI in common: up to 1.22 the kubelet "
        "has only v1alpha2, which containerd has up to 1.7; from 1.26 on only v1, which containerd has from 1.6 on.",
    },
)


def _is_schedulable(context: Context) -> Answer:
    def judge(node: Any) -> Answer:
        taints = [t["key"] for t in node["spec"].get("taints", []) if t["effect"] != "PreferNoSchedule"]
        name = node_name(context)
        return Answer(
            not taints, f"node {name} has the taint {', '.join(taints)}" if taints else f"node {name} takes Pods"
        )

    return ask_api(context, _path(context), judge)


def _await_schedulable(context: Context, progress: Progress) -> None:
    deadline = context.settings.deadline_of("kubelet")
    wait_or_fail(context, _is_schedulable, deadline=deadline, progress=progress, tried="waiting for a node for Pods")


# A new node has the taint not-ready until the controller manager has seen it Ready, and no Pod is scheduled before.
SCHEDULABLE = Goal(
    name="_schedulable",
    doc="the node takes Pods",
    holds=_is_schedulable,
    make=_await_schedulable,
    needs=("kubelet", "controller_manager"),
)

PARTS: list[Part] = [KUBELET, SCHEDULABLE]
