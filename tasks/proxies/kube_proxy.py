"""kube-proxy: makes Services reachable, with kernel rules that lead from each ClusterIP to the Service's Pods.

With proxy_mode=iptables these are iptables rules, as in the walk-through; with nftables an nftables table; with ipvs
the kernel's load balancer, and some iptables rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .. import api_client, upgrade
from ..core import iptables
from ..core.context import Context
from ..core.daemon import Daemon
from ..core.errors import DmucError
from ..core.flags import Flag
from ..core.iptables import Chains
from ..core.machine import run
from ..core.probe import All, Http, objects
from ..core.result import Result

if TYPE_CHECKING:
    from .netfilter import Table

IDENTITY = "kube-proxy"
NO_RULES = (
    "kube-proxy has written no rules: there is no chain KUBE-SERVICES, no nftables table kube-proxy, and no "
    "virtual server of IPVS"
)


def modes(context: Context) -> Mapping[str, str]:
    """Return the modes of this kube-proxy, each with the feature gate that it needs; see the table of releases."""
    return context.release_of("kube-proxy").proxy_modes


def rules(context: Context) -> Mapping[str, Table] | None:
    """Return the rules that kube-proxy has written; see ServiceProxy."""
    from . import ipvs
    from .netfilter import read_iptables, read_nftables

    if context.facts.has_ipvs and (tables := ipvs.read(context.machine)):
        return tables
    tables = read_iptables(context.machine)
    if "nat" in tables and "KUBE-SERVICES" in tables["nat"].chains:
        return tables
    return read_nftables(context.machine, "kube-proxy") or None


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of kube-proxy, with their reasons."""
    flags, mode = [api_client.flag(context, IDENTITY)], context.settings.proxy_mode
    if mode != "iptables":
        flags.append(Flag(f"--proxy-mode={mode}", f"Implements Services with {mode}; the default is iptables."))
    if gate := modes(context).get(mode):
        flags.append(Flag(f"--feature-gates={gate}=true", f"In this release the mode {mode} needs a feature gate."))
    if context.settings.on_host:
        flags.append(Flag("--conntrack-max-per-core=0", "Leaves the kernel's nf_conntrack_max as it is on this host."))
    return flags


def _rules_are_there(context: Context) -> Result:
    """Return whether the rules lead from each ClusterIP to its Pods: another program can have removed some, or all.

    kube-proxy itself looks only after an hour, and would leave it at that.
    """
    from .netfilter import Packet
    from .paths import destinations, gaps

    try:
        tables = rules(context)
    except DmucError as error:
        return Result(False, str(error))
    if tables is None:
        return Result(False, NO_RULES)
    api = Packet(context.settings.service_address(1), 443)  # the Service default/kubernetes, which there always is
    if not destinations(tables, api):
        return Result(False, f"kube-proxy's rules for {api.address}:{api.port} (default/kubernetes) are gone")
    try:
        services, endpoints = (objects(context, f"/api/v1/{kind}", "") for kind in ("services", "endpoints"))
    except DmucError:
        return Result(True, "")  # the API server's check says so; these rules are there
    missing = gaps(tables, services, endpoints, context.settings.address)
    return Result(not missing, f"kube-proxy's rules lack the way {missing[0]}" if missing else "")


def _mode(context: Context) -> Result:
    mode = context.settings.proxy_mode
    passing = mode in context.release_of("kube-proxy").proxy_deprecated
    return Result(True, f"Services are reached through {mode}{', which is deprecated' if passing else ''}")


# Not with `kube-proxy --cleanup`: that fails where there is no ipset. The chains for marks are the kubelet's.
_CHAINS = Chains(
    "KUBE-(SERVICES|SVC|SVL|SEP|EXT|XLB|FW|FORWARD|NODEPORTS|NODE-PORT|LOAD-BALANCER|SOURCE-RANGES|PROXY-).*"
)
_DROP_TABLES = """
command -v nft >/dev/null || exit 0
for family in ip ip6; do
    # A kernel without nf_tables has no table, and nft fails to list any.
    ! nft list table $family kube-proxy >/dev/null 2>&1 || nft delete table $family kube-proxy || exit
done
"""
_FIND_IPVS = "ip link show kube-ipvs0 2>/dev/null || :"


def _leave_ipvs(context: Context) -> None:
    """Have kube-proxy remove what it has in IPVS, if there is anything: its link is there then."""
    if not run(context.machine, "sh", "-c", _FIND_IPVS):
        return
    try:
        program = context.program("kube-proxy")
    except DmucError:
        raise DmucError(
            f"removing the Services from IPVS on {context.machine.name}",
            "There is the link kube-ipvs0, so there are Services; and kube-proxy, which removes them, is not found.",
            "Find it with scripts/doit binaries; or by hand: ipvsadm -C; ip link delete kube-ipvs0. Then clean again.",
        ) from None
    run(context.machine, str(program), "--cleanup")


def _remove_rules(context: Context, *, but: str = "") -> None:
    """Remove what it has written in any mode but this one, since the host was booted: before is no trace of it."""
    if not DAEMON.was_ready_since_boot(context):
        return
    if but != "nftables":
        run(context.machine, "sh", "-c", _DROP_TABLES)
    if but != "iptables":
        iptables.remove(context.machine, _CHAINS)
    if but != "ipvs":  # last: it alone needs a program of ours
        _leave_ipvs(context)


def _remove_other_rules(context: Context) -> None:
    """Remove what one of ours has left that ran in another mode: only later releases do that themselves."""
    _remove_rules(context, but=context.settings.proxy_mode)


DAEMON = Daemon(
    name="kube_proxy",
    nodes="each",
    doc="start kube-proxy, which makes Services reachable",
    program="kube-proxy",
    flags=flags,
    needs=api_client.needs,
    # kube-proxy looks up the address of its Node, and if there is none yet, tries again after 1, 2, 4, 8, 16 s.
    after=lambda context: ("kubelet:started", *upgrade.if_upgrading(context, "kubelet")),
    ready=All([Http("http://127.0.0.1:10256/healthz"), _rules_are_there, _mode]),
    reads=lambda context: api_client.reads(context, flags(context)),
    prepare=_remove_other_rules,
    clean_up=_remove_rules,
    needs_root=True,
    causes={
        "ProxyMode: Invalid value": "This kube-proxy does not have the mode of proxy_mode=; nftables came with 1.29.",
        "nft.*executable file not found": "The program nft, of the package nftables, is missing.",
    },
)
