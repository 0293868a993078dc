"""Cluster DNS: CoreDNS, so that Pods find Services by name. It is started only if requested, with `doit dns`.

DNS is not part of the walk-through, because a Service can be reached by its address, without its name. CoreDNS is a
daemon on the machine, behind the Service kube-system/kube-dns; the kubelet, restarted with a flag, writes its address
into each new Pod. https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import binaries, etcd, service_proxy
from .api_client import administrators
from .choices import DNS_DECISION, dns_enabled, rbac_enabled
from .core import api, settings
from .core.api import RBAC_GROUP
from .core.context import Context
from .core.daemon import Daemon
from .core.errors import DmucError
from .core.flags import Flag
from .core.goal import Goal
from .core.graph import Part
from .core.probe import Http, wait_or_fail
from .core.progress import Progress
from .core.result import Result
from .programs.catalog import PROGRAMS

DOMAIN = "cluster.local"
_NAME = f"kubernetes.default.svc.{DOMAIN}"  # a Service that always exists
_SERVICE = {"name": "kube-dns", "namespace": "kube-system"}
_PORTS = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
_LIMIT = 1.0  # seconds for one question


def address(context: Context) -> str:
    """Return the ClusterIP of the DNS server."""
    return context.settings.service_address(10)


# The program


def _is_wanted(context: Context) -> Result:
    return Result(dns_enabled(context), "CoreDNS is requested" if dns_enabled(context) else "CoreDNS is not requested")


def _want(context: Context, progress: Progress) -> None:
    if context.settings.on_host:
        raise DmucError(
            "starting CoreDNS on the host",
            f"CoreDNS would listen on {context.settings.address}, which cannot be the endpoint of a Service.",
            "Use a machine of its own: machine=NAME.",
        )
    found = binaries.find(context, PROGRAMS["coredns"])
    if found is None and not binaries.is_downloaded(context, PROGRAMS["coredns"]):
        raise DmucError(
            "looking for the program coredns",
            "coredns is not on PATH, not in bin_dir, and has no Debian package; and downloads are turned off.",
            "Download it from https://github.com/coredns/coredns/releases and use coredns_bin=PATH, or use "
            "obtain=download.\nNothing else needs CoreDNS: Services can be reached by their addresses.",
        )
    if found is not None and found.source == binaries.NAMED:  # else the next run would not find it
        settings.remember(context.state, {"coredns_bin": found.path})
    context.decide(DNS_DECISION, "yes")


WANTED = Goal(
    name="dns_wanted",
    hidden=True,
    doc="remember that CoreDNS is requested, and find the program",
    holds=_is_wanted,
    make=_want,
)


# The daemon


def _kubeconfig(context: Context) -> Path:
    return context.state / "kubeconfigs" / "coredns" if rbac_enabled(context) else administrators(context)


def _corefile(context: Context) -> Path:
    return context.state / "Corefile"


def _files(context: Context) -> Mapping[Path, str]:
    # https://coredns.io/plugins/kubernetes/ . Only names of the cluster: the machine has no route to other networks.
    without = "" if context.release_of("kube-apiserver").endpoint_slices else "\n        noendpoints"
    # A Corefile has no quotes for some paths. CoreDNS puts in what its environment says, as it is: see Context.home.
    file = f"{{$HOME}}/../{_kubeconfig(context).relative_to(context.state)}"
    text = f"""\
.:53 {{
    bind {context.settings.address}
    errors
    ready 127.0.0.1:8181
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {file}{without}
    }}
}}
"""
    return {_corefile(context): text}


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of CoreDNS, with their reasons."""
    why = "Configuration file (Corefile): the address to listen on, and the kubeconfig for the API server."
    return [Flag(f"-conf={_corefile(context)}", why)]


# The permissions of CoreDNS, with security=rbac: read the objects that its answers depend on.
_GROUP = "rbac.authorization.k8s.io"
_ROLE = {
    "apiVersion": f"{RBAC_GROUP}/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "system:coredns"},
    "rules": [
        {"apiGroups": [""], "resources": ["endpoints", "services", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ],
}
_BINDING = {
    "apiVersion": f"{RBAC_GROUP}/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "system:coredns"},
    "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": "system:coredns"},
    "subjects": [{"apiGroup": RBAC_GROUP, "kind": "User", "name": "system:coredns"}],  # as its certificate says
}


def _allow(context: Context) -> None:
    for manifest in (_ROLE, _BINDING) if rbac_enabled(context) else ():
        api.create(context, manifest)


COREDNS = Daemon(
    name="coredns",
    hidden=True,
    doc="start CoreDNS, the DNS server for the names of Services",
    program="coredns",
    flags=flags,
    needs=("dns_wanted", "machine", "binaries", "apiserver", "kubeconfig"),
    ready=Http("http://127.0.0.1:8181/ready", expect="OK"),
    disabled_because=lambda context: "" if dns_enabled(context) else "`doit dns` has not been run",
    prepare=_allow,
    writes=_files,
    reads=lambda context: [_kubeconfig(context), etcd.identity(context)],
    needs_root=True,
    causes={"bind: address already in use": "Another process uses port 53: `ss -lunp` in the machine shows which."},
)


# The Service


def _manifests(context: Context) -> Sequence[dict[str, Any]]:
    """Return the Service and its Endpoints, which must be created explicitly for a Service without a selector.

    kube-proxy reads Endpoints, or EndpointSlices, which the controller manager creates from these.
    """
    subset = {"addresses": [{"ip": context.settings.address}], "ports": _PORTS}
    return [
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": _SERVICE, "subsets": [subset]},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _SERVICE,
            "spec": {"clusterIP": address(context), "ports": _PORTS},
        },
    ]


def look_up(context: Context, name: str) -> Result:
    """Look up the address of `name` at the ClusterIP, from inside the machine, by UDP as Pods do (RFC 1035)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">x2H", 1, 1)
    try:
        with context.machine.connect(address(context), 53, _LIMIT, socket.SOCK_DGRAM) as stream:
            stream.sendall(question)
            reply = stream.recv(512)
    except OSError as error:
        return Result(False, f"{address(context)}:53 does not answer: {error.strerror or error}")
    _, codes, _, results = struct.unpack(">4H", reply[:8])
    if codes & 0xF or not results:
        return Result(False, f"{address(context)}:53 does not know the name {name} (code {codes & 0xF})")
    return Result(True, f"{name} is {ipaddress.IPv4Address(reply[-4:])}, says {address(context)}")


def _resolves(context: Context) -> Result:
    return look_up(context, _NAME) if dns_enabled(context) else _is_wanted(context)


def _make(context: Context, progress: Progress) -> None:
    for manifest in _manifests(context):
        api.create(context, manifest)
    tried, deadline = f"looking up the address of {_NAME}", context.settings.deadline_of("dns")
    wait_or_fail(context, _resolves, deadline=deadline, progress=progress, tried=tried, about="dns")


def _undo(context: Context) -> None:
    for kind in ("services", "endpoints"):
        api.delete(context, f"/api/v1/namespaces/kube-system/{kind}/{_SERVICE['name']}")
    for kind in ("clusterroles", "clusterrolebindings"):
        api.delete(context, f"/apis/{RBAC_GROUP}/v1/{kind}/system:coredns")
    COREDNS.undo(context)
    for path in (context.pki / "coredns.crt", context.pki / "coredns.key", context.state / "kubeconfigs" / "coredns"):
        path.unlink(missing_ok=True)
    if dns_enabled(context):
        context.decide(DNS_DECISION, "no")


DNS = Goal(
    name="dns",
    doc="start cluster DNS (CoreDNS), so that Pods find Services by name; not part of service_reachable",
    holds=_resolves,
    make=_make,
    undo=_undo,
    needs=("coredns", "controller_manager", "kubelet", service_proxy.TASK),
)

PARTS: list[Part] = [WANTED, COREDNS, DNS]
