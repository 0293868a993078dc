"""Keys and certificates: the cluster's CA, and the serving and client certificates that it signs.

With security=none there is a serving certificate for the API server, and the administrator's client certificate, which
every component uses. With security=rbac each component has a client certificate of its own, and etcd has a CA of its
own. The names: https://kubernetes.io/docs/setup/best-practices/certificates/ .

A certificate is renewed, with its old key, when it expires soon or when a name in it changes; then the components that
read it, and no others, are restarted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .choices import dns_enabled, rbac_enabled
from .core import certificates
from .core.certificates import Certificate, KeyPair
from .core.context import Context
from .core.goal import Goal
from .core.node import Node
from .core.progress import Progress
from .core.result import Result
from .service_proxy import proxy

FRONT_PROXY, FRONT_PROXY_CA = "front-proxy-client", "front-proxy-ca"
MASTERS = "system:masters"  # a group that may do everything, in any authorization mode


def server_names(context: Context) -> list[str]:
    """Return every name and address of the API server, for clients on the host, in the machine, and in Pods."""
    settings = context.settings
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    return [*names, "localhost", settings.machine, "127.0.0.1", settings.address, settings.service_address(1)]


def everything(context: Context) -> Sequence[Certificate | KeyPair]:
    """Return all certificates and key pairs."""
    return [*_always(context), *(_with_rbac(context) if rbac_enabled(context) else ())]


def files(context: Context) -> list[str]:
    """Return the names of all files."""
    return [name for one in everything(context) for name in one.files]


def _always(context: Context) -> Sequence[Certificate | KeyPair]:
    return [
        Certificate("ca", "ca", "dmuc"),
        Certificate("apiserver", "ca", "kube-apiserver", server=server_names(context)),
        Certificate("admin", "ca", "admin", MASTERS, client=True),
        # With this certificate a client speaks for any user (see apiserver.py): so this CA signs no others.
        Certificate(FRONT_PROXY_CA, FRONT_PROXY_CA, "dmuc-front-proxy"),
        Certificate(FRONT_PROXY, FRONT_PROXY_CA, FRONT_PROXY, client=True),
        KeyPair("sa"),  # for the tokens of ServiceAccounts
    ]


def _of_node(node: Node) -> Sequence[Certificate]:
    name = f"system:node:{node.name}"
    return [
        Certificate(f"{node.prefix}kubelet", "ca", name, "system:nodes", client=True),
        # Serving certificate, for the API server's requests for logs and `kubectl exec`.
        Certificate(f"{node.prefix}kubelet-server", "ca", name, server=[node.name, node.address]),
    ]


def _with_rbac(context: Context) -> Sequence[Certificate]:
    def component(name: str, common_name: str = "", group: str = "") -> Certificate:
        return Certificate(name, "ca", common_name or f"system:{name}", group, client=True)

    return [
        component("kube-controller-manager"),
        component("kube-scheduler"),
        component(proxy(context).IDENTITY),
        *(certificate for node in context.nodes for certificate in _of_node(node)),
        *([component("coredns")] if dns_enabled(context) else []),
        component("apiserver-kubelet-client", "kube-apiserver-kubelet-client", MASTERS),
        # etcd accepts any certificate that this CA has signed: so it signs no others.
        Certificate("etcd-ca", "etcd-ca", "dmuc-etcd"),
        Certificate("etcd", "etcd-ca", "kube-etcd", client=True, server=["localhost", "127.0.0.1"]),
        Certificate("apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", client=True),
    ]


def _are_made(context: Context) -> Result:
    faults = certificates.faults(context.pki, everything(context))
    if faults:
        return Result(False, _in_short(faults))
    return Result(True, f"valid until {certificates.ends(context.pki, everything(context)):%F}")


def _in_short(faults: Mapping[str, str]) -> str:
    first, *more = faults.values()
    return f"{first}; and {len(more)} more" if more else first


def _make(context: Context, progress: Progress) -> None:
    for _ in range(2):  # the second time for certificates whose CA has a new key
        faults = certificates.faults(context.pki, everything(context))
        if faults:
            progress.note(_in_short(faults))
            certificates.make(context.pki, [one for one in everything(context) if one.name in faults])


PKI = Goal(
    name="pki",
    doc="create keys and certificates, signed by a CA of the cluster's own",
    holds=_are_made,
    make=_make,
    after=("dns_wanted",),
    undo=lambda context: certificates.remove(context.pki, [*_always(context), *_with_rbac(context)]),
)

PARTS = [PKI]
