"""The paths of a packet to a Service, read from the live rules of the service proxy: who draws them is `doit trace`.

Here is also what the rules must have: a way from each address of each Service to its Pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from typing import Any

from ..core.api import full_name
from .netfilter import VERDICTS, Packet, Table

_ENDS = VERDICTS | {"KUBE-MARK-DROP"}  # that one marks a packet to be dropped later
_MASQUERADES = {"KUBE-MARK-MASQ", "mark-for-masquerade", "MARK"}
_FROM = ("output", "prerouting", "local_in")  # the ends of the names of the hooks that packets to a Service come to


@dataclass(frozen=True)
class Branch:
    """One step of the path: a chain, or the verdict at its end."""

    label: str
    children: Sequence[Branch] = ()
    probability: Fraction | None = None  # that a packet which reaches the rule matches it; None: not at random
    share: Fraction = Fraction(1)  # of all packets
    only: str = ""  # conditions of the rule, besides the destination of the packet
    remarks: Sequence[str] = ()  # what else the chain does
    destination: str = ""  # of DNAT: ADDRESS:PORT
    packets: int | None = None  # packets that matched, since kube-proxy last wrote the rule

    def ends(self) -> Iterator[Branch]:
        """Yield the verdicts that the branch leads to."""
        for child in self.children:
            yield from child.ends()
        if not self.children:
            yield self


@dataclass(frozen=True)
class Entry:
    """An address and port at which a Service can be reached."""

    kind: str
    packet: Packet

    def __str__(self) -> str:
        return f"{self.kind} {self.packet.address}:{self.packet.port}/{self.packet.protocol}"


def needs_none(service: Any) -> str | None:
    """Return why there are no rules for this Service; None where there must be some."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return f"{full_name(service)} has the type ExternalName, a DNS alias of {spec['externalName']}: it has no rules"
    if spec.get("clusterIP") == "None":
        return f"{full_name(service)} is headless (clusterIP: None), DNS returns the Pods' addresses: it has no rules"
    return None


def entries(service: Any, address: str) -> list[Entry]:
    """Return where `service` can be reached, on the node with this address; IPv4 only, like the cluster."""
    spec, found = service["spec"], []
    balancers = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    outer = {*spec.get("externalIPs", []), *(b["ip"] for b in balancers if "ip" in b)}
    for port in spec.get("ports", []):
        protocol = port.get("protocol", "TCP").lower()
        for ip in (ip for ip in spec.get("clusterIPs", [spec["clusterIP"]]) if ":" not in ip):
            found.append(Entry("ClusterIP", Packet(ip, port["port"], protocol)))
        if "nodePort" in port:
            found.append(Entry("NodePort", Packet(address, port["nodePort"], protocol, local=True)))
        for ip in sorted(outer):
            found.append(Entry("external IP", Packet(ip, port["port"], protocol, local=ip == address)))
    return found


def tree(tables: Mapping[str, Table], packet: Packet) -> Sequence[Branch]:
    """Return the paths of this packet that end in DNAT; if there are none, those that end in REJECT or DROP."""
    for name in ("nat", "filter"):
        table, ways = tables.get(name, Table((), {})), dict[tuple[Branch, ...], list[str]]()
        for hook in table.hooks:
            branches, _ = _walk(table, hook, packet, Fraction(1), named=False)
            if branches:
                ways.setdefault(tuple(branches), []).append(hook)
        if ways:
            where = "" if name == "nat" else f"table {name}: "
            return tuple(Branch(where + ", ".join(sorted(hooks)), branches) for branches, hooks in ways.items())
    return ()


def _walk(
    table: Table, chain: str, packet: Packet, share: Fraction, *, named: bool
) -> tuple[list[Branch], Sequence[str]]:
    """Return the branches of this packet in `chain`, and remarks about the chain.

    `named`: a rule before has matched the packet's address or port. Without that, a verdict is not about the Service.
    """
    found: list[Branch] = []
    remarks: list[str] = []
    left = Fraction(1)  # the share of the packets that no rule of the chain has matched so far
    for rule in table.taking(chain, packet):
        asks = " and ".join(rule.conditions)
        if not left or (rule.targets == ("RETURN",) and not asks):
            break
        if rule.again is not None:
            remarks.append(f"same client, same Pod for {rule.again} s")
            continue
        if _MASQUERADES.intersection(rule.targets):
            remarks.append(f"masquerades packets {asks}" if asks else "masquerades all packets")
            continue
        known = named or rule.names
        here = []
        for target, destination in zip_longest(rule.targets, rule.destinations, fillvalue=""):
            chance = rule.probability / len(rule.targets)
            part = share * left * chance
            shown = None if asks else chance
            if target in _ENDS and known:
                label = f"{target} to {destination}" if destination else f"{target} {rule.comment}".strip()
                here.append(Branch(label, (), shown, part, asks, (), destination, rule.packets))
            elif target in table.chains:
                children, said = _walk(table, target, packet, part, named=known)
                if children:
                    here.append(Branch(target, tuple(children), shown, part, asks, said))
        found += here
        if here and not asks:
            left *= 1 - rule.probability
    return found, tuple(dict.fromkeys(remarks))


def gaps(
    tables: Mapping[str, Table] | None, services: Sequence[Any], endpoints: Sequence[Any], address: str
) -> list[str]:
    """Return which ways the rules lack, in words: from each ClusterIP of these Services to each of its endpoints.

    `services` and `endpoints` are the API's objects, `address` is the node's. Asked is only what is certain: not about
    Services that other programs look after or that choose among their endpoints, nor, without a selector, about
    endpoints that the controller manager may not have handed on yet.
    """
    known = {full_name(one): one.get("subsets") or [] for one in endpoints}
    found = []
    for service in services:
        spec, labels = service["spec"], service["metadata"].get("labels") or {}
        choosy = spec.get("internalTrafficPolicy") == "Local" or spec.get("trafficDistribution")
        named = full_name(service)
        if needs_none(service) or choosy or "service.kubernetes.io/service-proxy-name" in labels:
            continue
        if not spec.get("selector") and named != "default/kubernetes":
            continue
        names = {(port["port"], port.get("protocol", "TCP").lower()): port.get("name", "") for port in spec["ports"]}
        for entry in entries(service, address):
            name = names.get((entry.packet.port, entry.packet.protocol))
            wanted = {
                f"{one['ip']}:{port['port']}"
                for subset in known.get(named, ())
                for port in subset.get("ports") or []
                for one in subset.get("addresses") or []
                if port.get("name", "") == name and ":" not in one["ip"]
            }
            if entry.kind == "ClusterIP" and (lacking := wanted - destinations(tables or {}, entry.packet)):
                found.append(f"from {entry} of {named} to {', '.join(sorted(lacking))}")
    return found


def destinations(tables: Mapping[str, Table], packet: Packet) -> set[str]:
    """Return each ADDRESS:PORT to which this packet can go, wherever it comes from: the machine itself, or a Pod."""
    table = tables.get("nat", Table((), {}))
    hooks = [hook for hook in table.hooks if hook.lower().endswith(_FROM)]
    ways = [_walk(table, hook, packet, Fraction(1), named=False)[0] for hook in hooks]
    ends = [{end.destination for branch in way for end in branch.ends() if end.destination} for way in ways]
    return set.intersection(*ends) if ends else set()
