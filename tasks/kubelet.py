"""The kubelet: registers the machine as a node, and runs the Pods that are bound to this node.

Without a kubeconfig it starts in standalone mode; the walk-through starts `kubelet --kubeconfig ~/.kube/config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import api_client, dns, upgrade
from .choices import rbac_enabled
from .core import api, iptables
from .core.context import Context
from .core.daemon import Daemon
from .core.flags import Flag
from .core.goal import Goal
from .core.graph import Part
from .core.iptables import Chains
from .core.probe import All, Http, ask_api, wait_or_fail
from .core.progress import Progress
from .core.result import Result
from .engines.chosen import engine
from .machine import DISK, MANIFESTS


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of the kubelet, with their reasons."""
    why = "Address of the API server; without a kubeconfig the kubelet runs in standalone mode."
    flags = [Flag(f"--kubeconfig={api_client.kubeconfig(context, 'kubelet')}", why)]
    if not context.settings.uses_insecure_port:
        flags += [
            Flag(
                f"--client-ca-file={context.pki / 'ca.crt'}",
                "Clients of the kubelet (for logs and exec) authenticate with certificates signed by this CA.",
                "use",
            ),
            Flag(
                "--anonymous-auth=false",
                "Rejects clients without a certificate; by default any user of the host can run commands in Pods.",
                "security",
            ),
            Flag(
                "--read-only-port=0",
                "Closes port 10255, which shows all Pods to any client without authentication.",
                "security",
            ),
            Flag(
                "--eviction-hard=memory.available<100Mi",
                "Evicts Pods only for lack of memory. The default also evicts them when the disk is nearly full, and "
                "this disk is the host's.",
                "isolation",
            ),
            Flag(
                f"--pod-manifest-path={manifests(context)}/",
                "Runs the Pods whose manifests are in this directory (static Pods).",
                "use",
            ),
        ]
    if rbac_enabled(context):
        flags += [
            Flag(
                "--authorization-mode=Webhook",
                "Authorizes each request by a SubjectAccessReview at the API server; the default allows all.",
                "security",
            ),
            Flag(
                f"--tls-cert-file={context.pki / context.node.prefix / 'kubelet-server.crt'}",
                "Serving certificate that the API server can verify; the default is self-signed.",
                "use",
            ),
            Flag(
                f"--tls-private-key-file={context.pki / context.node.prefix / 'kubelet-server.key'}",
                "Private key of the serving certificate.",
                "use",
            ),
        ]
    if context.facts.has_swap:
        flags.append(Flag("--fail-swap-on=false", "The host has swap; by default the kubelet refuses to start then."))
    if dns.COREDNS.was_ready(context):
        flags.append(Flag(f"--cluster-dns={dns.address(context)}", "DNS server for Pods: the ClusterIP of CoreDNS."))
        why = "DNS search domain for Pods, so that `web` also means web.default.svc.cluster.local."
        flags.append(Flag(f"--cluster-domain={dns.DOMAIN}", why))
    row = context.release_of("kubelet")
    if row.fail_cgroup_v1 and context.facts.has_cgroup_v1:
        why = "The host has cgroup v1; by default the kubelet refuses to start then."
        flags.append(Flag("--fail-cgroupv1=false", why))
    chosen = engine(context)
    if chosen.ENDPOINT and row.runtime_flag:
        why = (
            "Uses a container runtime through CRI; up to 1.23 the default is the built-in Docker support (dockershim)."
        )
        flags.append(Flag("--container-runtime=remote", why))
    if chosen.ENDPOINT and row.endpoint != chosen.ENDPOINT:
        why = f"CRI socket of {chosen.NAME}."
        flags.append(Flag(f"--container-runtime-endpoint=unix://{chosen.ENDPOINT}", why))
    return flags


def manifests(context: Context) -> Path:
    """Return the directory for the manifests of static Pods, as the kubelet sees it.

    https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/
    """
    return _stored_manifests(context) if context.settings.on_host else Path(MANIFESTS)


def _stored_manifests(context: Context) -> Path:
    return context.node.state / DISK[MANIFESTS]


def _prepare(context: Context) -> None:
    """Make the directory of static Pods; and the Node, in releases where that saves 10 s (see the table of releases).

    https://kubernetes.io/docs/concepts/architecture/nodes/#manual-node-administration
    """
    _stored_manifests(context).mkdir(exist_ok=True)
    if context.release_of("kubelet").node_first and not ask_api(context, _path(context), lambda node: Result(True, "")):
        api.create(context, manifest(context))


def manifest(context: Context) -> dict[str, Any]:
    """Return the Node that is created before the kubelet starts."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": context.node.name, "labels": {"kubernetes.io/hostname": context.node.name}},
        "status": {"capacity": {"pods": "110"}},  # kubelet 1.20 cannot take over a Node without capacity
    }


def _path(context: Context) -> str:
    return f"/api/v1/nodes/{context.node.name}"


def _has_registered(context: Context) -> Result:
    def judge(node: Any) -> Result:
        addresses = {a["type"]: a["address"] for a in node["status"].get("addresses", [])}
        address = addresses.get("InternalIP")
        return Result(bool(address), f"node {context.node.name} has the address {address}" if address else "no address")

    return ask_api(context, _path(context), judge)


def _node_is_ready(context: Context) -> Result:
    record = KUBELET.process(context)
    begun = record.since if record else 0.0

    def judge(node: Any) -> Result:
        told, ours = node["status"].get("nodeInfo", {}).get("kubeletVersion"), context.version_of("kubelet")
        if told and ours and told != ours:  # times are in seconds, and the last kubelet may have ended in this one
            return Result(False, f"node {context.node.name}: its status is of kubelet {told}")
        for condition in node["status"].get("conditions", []):
            if condition["type"] == "Ready":
                seen = datetime.strptime(condition["lastHeartbeatTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
                if seen.timestamp() < int(begun):
                    return Result(False, f"node {context.node.name}: its status is older than this kubelet")
                why = f"node {context.node.name} is {'Ready' if condition['status'] == 'True' else 'not Ready'}"
                return Result(condition["status"] == "True", f"{why}: {condition['message']}")
        return Result(False, f"node {context.node.name} has no condition Ready yet")

    return ask_api(context, _path(context), judge)


def _keeps(context: Context) -> Sequence[Path]:
    places = [Path("/var/lib/kubelet"), Path("/var/lib/dockershim"), Path("/var/log/pods"), Path("/var/log/containers")]
    stored = places if context.settings.on_host else [context.node.state / "kubelet"]
    return [*stored, _stored_manifests(context)]


def _clean_up(context: Context) -> None:
    api.delete(context, _path(context))
    # kube-proxy's rules refer to some of them, but it is taken back before.
    if not context.machine.disposable and KUBELET.was_ready_since_boot(context):
        iptables.remove(context.machine, Chains("KUBE-[A-Z0-9-]+"))


KUBELET = Daemon(
    name="kubelet",
    nodes="each",
    doc="start the kubelet, which registers the machine as a node and runs its Pods",
    program="kubelet",
    flags=flags,
    needs=lambda context: (*api_client.needs_without_roles(context), "kubeconfig", "container_engine"),
    after=lambda context: (
        "images",
        "coredns:started",
        *upgrade.if_upgrading(context, "controller_manager", "scheduler"),
    ),
    started=_has_registered,
    ready=All([Http("http://127.0.0.1:10248/healthz"), _node_is_ready]),
    prepare=_prepare,
    reads=lambda context: api_client.reads(context, flags(context)),
    clean_up=_clean_up,
    keeps=_keeps,
    needs_root=True,
    causes={
        "running with swap on is not supported": "The kubelet refuses to start on a host with swap, except with "
        "--fail-swap-on=false.",
        "misconfiguration: kubelet cgroup driver": "The kubelet and the engine must use the same cgroup driver.",
        "docker.sock. Is the docker daemon running": "The container engine does not answer.",
        "unknown service runtime.v1": "The kubelet and containerd have no version of CRI in common: up to 1.22 the "
        "kubelet has only v1alpha2, which containerd has up to 1.7; from 1.26 on only v1, which containerd has from "
        "1.6 on.",
    },
)


# Taints that the controller manager sets and removes by itself; all others are set by users, or are about resources.
PASSING = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def _is_schedulable(context: Context) -> Result:
    """Return whether the node is done with its start. A user may keep Pods away from it (cordon, taint) at any time."""

    def judge(node: Any) -> Result:
        taints = [t["key"] for t in node["spec"].get("taints", []) if t["effect"] != "PreferNoSchedule"]
        name = f"node {context.node.name}"
        return Result(
            not set(taints).intersection(PASSING),
            f"{name} has the taint {', '.join(taints)}" if taints else f"{name} accepts Pods",
        )

    return ask_api(context, _path(context), judge)


def _await_schedulable(context: Context, progress: Progress) -> None:
    deadline = context.settings.deadline_of("kubelet")
    wait_or_fail(
        context,
        _is_schedulable,
        deadline=deadline,
        progress=progress,
        tried="waiting until the node is Ready for the scheduler, too",
        about="node",
    )


# A new node has the taint not-ready until the controller manager has seen that it is Ready; no Pod is scheduled before.
SCHEDULABLE = Goal(
    name="schedulable",
    nodes="each",
    hidden=True,
    doc="wait until Pods can be scheduled on the node",
    holds=_is_schedulable,
    make=_await_schedulable,
    needs=("kubelet", "controller_manager"),
)

PARTS: list[Part] = [KUBELET, SCHEDULABLE]
