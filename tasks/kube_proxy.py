"""kube-proxy: makes Services reachable. For each it writes iptables rules that lead from the ClusterIP to its Pods."""

from __future__ import annotations

from collections.abc import Sequence

from . import etcd
from .core import iptables
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.probe import Http
from .front_door import needs, way_in


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    flags = [way_in(context, "kube-proxy")]
    if context.settings.on_host:
        flags.append(Flag("--conntrack-max-per-core=0", "Leave nf_conntrack_max as it is: it is the host's."))
    return flags


# Not with `kube-proxy --cleanup`: that fails where there is no ipset. The chains for marks are the kubelet's.
_CHAINS = "KUBE-(SERVICES|SVC|SEP|XLB|FW|FORWARD|EXTERNAL-SERVICES|NODEPORTS|PROXY-CANARY)"


KUBE_PROXY = Daemon(
    name="kube_proxy",
    doc="start kube-proxy, which makes Services reachable",
    program="kube-proxy",
    flags=flags,
    needs=needs,
    after=("kubelet",),  # it looks for its Node's address, and when there is none yet, after 1, 2, 4, 8, 16 s again
    ready=Http("http://127.0.0.1:10256/healthz"),
    reads=lambda context: [*files_of(flags(context)), etcd.identity(context)],
    take_back=lambda context: iptables.remove(context.machine, _CHAINS),
    needs_root=True,
)

PARTS = [KUBE_PROXY]
