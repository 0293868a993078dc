"""`doit trace web`: draw the path of a packet to a Service, read from kube-proxy's live rules.

kube-proxy writes the rules in one of two forms. With iptables (pkg/proxy/iptables/proxier.go in Kubernetes' source):
the chain KUBE-SERVICES matches the addresses, a KUBE-SVC-… has the Pods of one port, a KUBE-SEP-… is one Pod. As each
rule is evaluated only if those before it did not match, four Pods have the probabilities 1/4, 1/3, 1/2 and 1: a quarter
of the packets each. With nftables (pkg/proxy/nftables/proxier.go): maps from addresses to a service-… chain, which
picks one of the endpoint-… chains at random, or, in later releases, the Pod itself if no endpoint-… chain is needed.
With ipvs (pkg/proxy/ipvs/proxier.go) there are no such rules: the kernel's load balancer has the addresses and Pods.
"""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import service_proxy
from ..core.api import full_name
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.machine import run
from ..core.probe import objects, wait
from ..core.progress import Silent
from ..core.result import Result
from ..proxies.kube_proxy import NO_RULES
from ..proxies.netfilter import Packet, Table
from ..proxies.paths import Branch, Entry, entries, needs_none, tree
from .base import Command
from .checklist import WIDTH

REQUESTS = 100
_DEADLINE = 10.0  # seconds for all requests together
_FOLLOWS = 3.0  # seconds in which kube-proxy follows a change: it writes at most once a second
_LIMIT = 1.0  # seconds for one request
_TRIED = "tracing the path to a Service"
_LIST = 5.0  # seconds to list connections in
_GIVE_UP = 3  # failures in a row
_PROXY = f"Run: scripts/doit {service_proxy.TASK}; its log: scripts/doit logs {service_proxy.TASK}"


def has_rules(context: Context, *services: Any) -> Result:
    """Return whether kube-proxy's rules lead from each ClusterIP and port of `services` (API objects) to a Pod.

    The rules are read once. Raise nothing.
    """
    result = Result(True, "")
    try:
        tables = None if all(map(needs_none, services)) else _rules(context)
    except DmucError as error:
        return Result(False, str(error))
    for service in services:
        reason = needs_none(service)
        result = Result(True, reason) if reason else _leads_to_a_pod(_way_in(context, tables, service))
        if not result:
            break
    return result


def _leads_to_a_pod(found: Branch | str) -> Result:
    if isinstance(found, str):
        return Result(False, found)
    for entry in found.children:
        if entry.label.startswith("ClusterIP") and not any(end.destination for end in entry.ends()):
            return Result(False, f"kube-proxy's rules for {entry.label} lead to no Pod")
    return Result(True, f"{found.label} has its rules")


def known_to_rules(context: Context, name: str) -> list[str]:
    """Return each TCP address ADDRESS:PORT of the Service with this full name, read from the rules alone.

    Raise DmucError when the rules cannot be read.
    """
    # The comment of an iptables rule, or the target chain of an nftables map.
    leads = re.compile(rf"{re.escape(name)}[ :].*cluster IP KUBE-SVC-.*|\S* service-\w+-{re.escape(name)}/tcp/.*")
    return [
        f"{network.removesuffix('/32')}:{rule.port}"
        for chain in (_rules(context) or {"nat": Table((), {})})["nat"].chains.values()
        for rule in chain
        if rule.protocol == "tcp" and rule.port and leads.fullmatch(" ".join([rule.comment, *rule.targets]))
        for network in rule.networks or ()
    ]


def way(context: Context, service: Any) -> Branch | str:
    """Return the tree of paths to `service` (the API object), for each of its entries, read from the live rules.

    Return the reason instead, when there are no rules for a ClusterIP and port of the Service. Raise DmucError when the
    rules cannot be read.
    """
    return needs_none(service) or _way_in(context, _rules(context), service)


def _way_in(context: Context, tables: Mapping[str, Table] | None, service: Any) -> Branch | str:
    if tables is None:
        return NO_RULES
    found = []
    for entry in entries(service, context.settings.address):
        branches = tree(tables, entry.packet)
        if not branches and entry.kind == "ClusterIP":
            return f"kube-proxy has written no rules for {entry}"
        found.append(Branch(str(entry), branches, remarks=() if branches else ("no rules",)))
    return Branch(full_name(service), found)


def _rules(context: Context) -> Mapping[str, Table] | None:
    return service_proxy.proxy(context).rules(context)


# Requests


@dataclass(frozen=True)
class Requests:
    """The result of the requests to one entry."""

    tried: int
    answered: int
    failure: str  # the last failure
    http: bool  # whether the requests were HTTP GETs; else only connections
    taken: Mapping[str, int] | None = None  # number by destination; None: could not be counted

    def __str__(self) -> str:
        kind, fate = ("requests", "answered") if self.http else ("connections", "accepted")
        number = f"{self.tried} of {REQUESTS}" if self.tried < REQUESTS else f"{REQUESTS}"
        return "; ".join(
            [f"{number} {kind}, {self.answered} {fate}"]
            + ["no answer to the first HTTP requests: another protocol, or the server hangs"] * (not self.http)
            + [f"the last failure: {self.failure}"] * (self.answered < self.tried)
            + ["not counted: the rules changed meanwhile, or other clients sent requests"] * (self.taken is None)
        )


def ask(context: Context, entry: Entry, *, end: float, tls: bool = False) -> Requests:
    """Send a hundred requests to the entry from inside the machine, and count in the rules where they went.

    Stop after some failures in a row, and at `end` (of time.monotonic). Raise DmucError when the rules cannot be read.
    """
    for once_more in (True, False):
        before = _taken(context, entry.packet)
        result, ports = _send(context, entry.packet, tls, end)
        if None in before.values():  # nftables: kube-proxy gives its rules no counters there
            taken = _tracked(context, entry.packet, ports)
        else:
            after = _taken(context, entry.packet)
            taken = {destination: (n or 0) - (before.get(destination) or 0) for destination, n in after.items()}
        if sum(taken.values()) == result.tried and min(taken.values(), default=0) >= 0:
            return replace(result, taken=taken)
        if result.answered < result.tried or not once_more:
            break
    return result


class _NoAnswer(OSError):
    """The server accepted the connection, and then sent nothing."""


def _send(context: Context, packet: Packet, tls: bool, end: float) -> tuple[Requests, set[int]]:
    """Send the requests; return the result, and the source ports."""
    tried = answered = in_a_row = silent = 0
    failure, http, ports = "", True, set[int]()
    while tried < REQUESTS and in_a_row < _GIVE_UP and time.monotonic() < end:
        tried += 1
        try:
            with context.machine.connect(packet.address, packet.port, _LIMIT * context.settings.patience) as stream:
                ports.add(stream.getsockname()[1])
                if http:
                    _get(stream, tls)
            answered, in_a_row = answered + 1, 0
        except OSError as error:
            failure, in_a_row = error.strerror or str(error), in_a_row + 1
            silent += isinstance(error, _NoAnswer)
        if http and silent == tried == _GIVE_UP:  # the server may use another protocol than HTTP
            http, answered, in_a_row = False, tried, 0
    return Requests(tried, answered, failure, http), ports


def _get(stream: socket.socket, tls: bool) -> None:
    """Send GET / and read the start of the answer. Raise OSError; _NoAnswer when there is no answer in time."""
    if tls:  # the API server logs each connection without TLS
        import ssl

        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        stream = anybody.wrap_socket(stream)
    with stream:
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            stream.recv(1)
        except TimeoutError:
            raise _NoAnswer(f"connected, but no answer within {_LIMIT:g} s") from None


def _taken(context: Context, packet: Packet) -> dict[str, int | None]:
    ends = [end for branch in tree(_rules(context) or {}, packet) for end in branch.ends() if end.destination]
    return {end.destination: end.packets for end in ends}


def _tracked(context: Context, packet: Packet, ports: set[int]) -> dict[str, int]:
    """Count the connections from these source ports, by destination, in the kernel's connection table."""
    try:
        text = run(context.machine, "conntrack", "-L", "-d", packet.address, timeout=_LIST * context.settings.patience)
    except DmucError:
        return {}
    there = rf"dst={re.escape(packet.address)} sport=(\d+) dport={packet.port} .*?src=(\S+) dst=\S+ sport=(\d+)"
    return dict(Counter(f"{ip}:{port}" for ours, ip, port in re.findall(there, text) if int(ours) in ports))


# Output


def draw(root: Branch, pods: Mapping[str, str], asked: Mapping[str, Requests]) -> str:
    """Return the tree as text: beside each DNAT the Pod with that address, its share, and the number of requests.

    `pods`: address to name; `asked`: the label of an entry to its requests.
    """
    lines = list(_lines(root, "", "", pods, asked, None, set()))
    width = max((len(text) for text, share, _ in lines if share), default=0) + 3
    if width > 3:
        lines[0] = (root.label, "share", "requests" if asked else "")
    return "\n".join(f"{t:{width}}{s:>5}{n:>11}".rstrip() if s else t for t, s, n in lines)


def _lines(
    branch: Branch,
    first: str,  # prefix of the branch's own line
    rest: str,  # prefix of its children's lines
    pods: Mapping[str, str],
    asked: Mapping[str, Requests],
    requests: Requests | None,
    drawn: set[tuple[Branch, ...]],
) -> Iterator[tuple[str, str, str]]:
    requests = asked.get(branch.label, requests)
    text, share, number = first + branch.label, "", ""
    if branch.destination:
        text += f", {pods.get(branch.destination.rpartition(':')[0], 'not in the Endpoints')}"
        share = str(branch.share)
        number = str(requests.taken.get(branch.destination, 0)) if requests and requests.taken is not None else ""
    children = tuple(branch.children)
    if len(children) > 1 and children in drawn:
        children, remarks = (), ["as above"]
    else:
        remarks = [*branch.remarks]
    if branch.only:
        remarks.insert(0, f"only packets {branch.only}")
    said = f"  ({'; '.join(remarks)})" if remarks else ""
    if len(text + said) > WIDTH:
        yield text, share, number
        text, share, number = rest + ("│" if children else " "), "", ""
    yield text + said, share, number
    drawn.add(children)
    odds = [str(child.probability or "") for child in children]
    if {*odds} <= {"", "1"}:  # there is nothing to choose
        odds = [""] * len(odds)
    for child, chance in zip(children, odds, strict=True):
        head, below = ("└── ", "    ") if child is children[-1] else ("├── ", "│   ")
        head += f"{chance:{len(max(odds, key=len)) + 1}}" if any(odds) else ""
        yield from _lines(child, rest + head, rest + below, pods, asked, requests, drawn)


class Trace(Command):
    """`doit trace [NAMESPACE/]NAME`."""

    doc_purpose = "draw the path of a packet to a Service, and count where a hundred requests go"
    doc_usage = "[NAMESPACE/]NAME"
    doc_description = (
        "Reads kube-proxy's live rules, and shows each branch with its probability, each Pod with its share."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print the tree and the requests; return 0, or 1 when a request was not answered."""
        context, end = cluster.context, time.monotonic() + _DEADLINE * cluster.context.settings.patience
        service = _find(context, arguments)
        if reason := needs_none(service):
            print(reason)
            return 0
        root, pods, notes = _settled(context, service)
        secure = {
            port["port"] for port in service["spec"]["ports"] if port.get("name") == "https" or port["port"] == 443
        }
        asked = {
            str(entry): ask(context, entry, end=end, tls=entry.packet.port in secure)
            for entry, branch in zip(entries(service, context.settings.address), root.children, strict=True)
            if entry.kind == "ClusterIP" and entry.packet.protocol == "tcp"
            if any(leaf.destination for leaf in branch.ends())
        }
        print("\n".join([draw(root, pods, asked), *(f"{entry}: {result}" for entry, result in asked.items()), *notes]))
        return int(any(result.answered < result.tried for result in asked.values()))


def _find(context: Context, arguments: Sequence[str]) -> Any:
    services = {full_name(service): service for service in objects(context, "/api/v1/services", _TRIED)}
    wanted = arguments[0] if len(arguments) == 1 else ""
    found = services.get(wanted if "/" in wanted else f"default/{wanted}")
    if found is None:
        said = f"there is no Service {wanted!r}" if wanted else "the name of one Service is needed"
        raise DmucError(_TRIED, said, f"Services: {', '.join(sorted(services)) or 'none yet'}.")
    return found


def _settled(context: Context, service: Any) -> tuple[Branch, Mapping[str, str], Sequence[str]]:
    """Wait until the rules have all endpoints; return the tree, the names by address, and notes.

    After a deadline, return the rules as they are. Raise DmucError when there are no rules.
    """
    root: Branch | str = ""
    pods: dict[str, str] = {}

    def follows(context: Context) -> Result:
        nonlocal root, pods
        root, pods, wanted = way(context, service), {}, set()
        for subset in _endpoints(context, service):
            for address in subset.get("addresses", []):
                reference = address.get("targetRef", {})
                is_pod = reference.get("kind") == "Pod"
                pods[address["ip"]] = f"Pod {reference['name']}" if is_pod else "an address in the Endpoints, not a Pod"
                wanted |= {f"{address['ip']}:{port['port']}" for port in subset.get("ports", [])}
        have = {end.destination for end in root.ends() if end.destination} if isinstance(root, Branch) else set()
        lack = [f"missing: {', '.join(sorted(wanted - have))}"] * (not wanted <= have)
        more = [f"out of date: {', '.join(sorted(have - wanted))}"] * (not have <= wanted)
        return Result(have == wanted and isinstance(root, Branch), "; ".join(lack + more))

    result = wait(context, follows, deadline=_FOLLOWS * context.settings.patience, progress=Silent())
    if isinstance(root, str):
        raise DmucError(f"tracing the path to {full_name(service)}", root, _PROXY)
    notes = [] if result else [f"The rules differ from the Endpoints: {result.why}. {_PROXY}"]
    return root, pods, notes if pods else [*notes, f"{full_name(service)} has no endpoints: no Pod of it is Ready."]


def _endpoints(context: Context, service: Any) -> Sequence[Any]:
    meta = service["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/endpoints?fieldSelector=metadata.name={meta['name']}"
    found = objects(context, path, _TRIED)
    return [subset for one in found if full_name(one) == full_name(service) for subset in one.get("subsets") or []]
