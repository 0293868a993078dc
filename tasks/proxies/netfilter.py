"""The live rules of iptables and nftables, read from `iptables-save -c` and `nft -j list table` into one form.

Both become chains of rules. The conditions of a rule are split in three: the destination of the packet (address,
protocol, port), the probability with which the rule matches, and all other conditions, in words.
Sources: iptables-extensions(8), nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from heapq import merge
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from ..core.errors import DmucError
from ..core.machine import Machine, run

VERDICTS = frozenset(
    {"DNAT", "REJECT", "DROP"}
)  # verdicts after which a packet is not matched against further rules of the table

_LIMIT = 5.0  # seconds to list the rules in


@dataclass(frozen=True)
class Packet:
    """The destination of the first packet of a connection. `local`: it is an address of the machine itself."""

    address: str
    port: int
    protocol: str = "tcp"
    local: bool = False

    @cached_property
    def _address(self) -> Any:
        return ip_address(self.address)

    def goes_to(self, networks: Sequence[str]) -> bool:
        """Return whether the destination is one of these addresses or networks."""
        exact = f"{self.address}/32"  # most are single addresses, of which there may be a thousand
        wide = (network for network in networks if not network.endswith("/32"))
        return exact in networks or any(self._address in ip_network(network) for network in wide)


@dataclass(frozen=True)
class Rule:
    """One rule of a chain."""

    # Chains or, in capitals, verdicts. Several: each with the same probability. None: the rule decides nothing.
    targets: Sequence[str] = ()
    probability: Fraction = Fraction(1)
    networks: Sequence[str] | None = None  # the destination must be in one of these; None: any destination
    protocol: str = ""
    port: int | None = None
    local: bool = False  # the destination must be an address of the machine itself
    conditions: Sequence[str] = ()  # all other conditions
    again: int | None = None  # only for clients whose last packet is at most so many seconds old
    comment: str = ""
    destinations: Sequence[str] = ()  # of DNAT: ADDRESS:PORT, one for each of the targets
    packets: int | None = None  # number of packets that have matched; None: the rule has no counter

    def may_take(self, packet: Packet) -> bool:
        """Return whether the rule can match the packet, as far as its destination tells."""
        return (
            self.protocol in ("", packet.protocol)
            and self.port in (None, packet.port)
            and (packet.local or not self.local)
            and (self.networks is None or packet.goes_to(self.networks))
        )

    @property
    def names(self) -> bool:
        """Whether the rule has a condition on the destination's address or port."""
        return self.networks is not None or self.port is not None


@dataclass(frozen=True)
class Table:
    """A table: its chains by name, and the names of its base chains (OUTPUT, PREROUTING and so on)."""

    hooks: Sequence[str]
    chains: Mapping[str, Sequence[Rule]]

    def taking(self, chain: str, packet: Packet) -> Iterator[Rule]:
        """Yield the rules of the chain that can match the packet, as far as its destination tells, in their order."""
        of_address, others = self._indexed[chain]
        for _, rule in merge(of_address.get(packet.address, ()), others):
            if rule.may_take(packet):
                yield rule

    @cached_property
    def _indexed(self) -> Mapping[str, tuple[Mapping[str, Sequence[_Numbered]], Sequence[_Numbered]]]:
        """The rules of each chain, with their numbers: those for single addresses by address, and all others.

        There is a rule for each Service: without this, to look at every Service would be to look at each rule as often.
        """
        index = {}
        for chain, rules in self.chains.items():
            of_address, others = dict[str, list[_Numbered]](), list[_Numbered]()
            for numbered in enumerate(rules):
                networks = numbered[1].networks
                if networks is None or not all(network.endswith("/32") for network in networks):
                    others.append(numbered)
                else:
                    for address in {network.removesuffix("/32") for network in networks}:
                        of_address.setdefault(address, []).append(numbered)
            index[chain] = (of_address, others)
        return index


_Numbered = tuple[int, Rule]


def read_iptables(machine: Machine) -> dict[str, Table]:
    """Return the machine's iptables tables, by name. Raise DmucError when they cannot be read."""
    return parse_iptables(run(machine, "iptables-save", "-c", timeout=_LIMIT))


def read_nftables(machine: Machine, name: str) -> dict[str, Table]:
    """Return the nftables table `ip NAME` of the machine, as `parse_nftables` does; empty when there is none."""
    try:
        return parse_nftables(run(machine, "nft", "-j", "list", "table", "ip", name, timeout=_LIMIT))
    except DmucError:  # no such table, or no nft on this machine, and so no table either
        return {}


# iptables

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_LINE = re.compile(r"(?:\[(\d+):\d+\] )?-A (\S+) ?(.*)")
# These always match the first packet of a connection, or only count or record it.
_TRUE = re.compile(r"--ctstate \S*\bNEW\b.*|--set .*|--nfacct-name .*")

# The options of a rule: the field of Rule, and the value.
_FACT_OF: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "-j": ("targets", lambda target: (target,)),
    "-g": ("targets", lambda target: (target,)),
    "-d": ("networks", lambda network: (network,)),
    "-p": ("protocol", str),
    "--dport": ("port", int),
    "--probability": ("probability", lambda number: Fraction(number).limit_denominator(10_000)),  # 0.33333333349
    "--seconds": ("again", int),
    "--comment": ("comment", str),
    "--to-destination": ("destinations", lambda destination: (destination,)),
}
_FACTS: Mapping[tuple[str, str], Mapping[str, Any]] = {("--dst-type", "LOCAL"): {"local": True}}
_WORDS = {
    "-s": "from {}",
    "! -s": "not from {}",
    "--src-type": "from {} addresses",
    "! --src-type": "not from {} addresses",
}
# Options without a meaning of their own.
_SILENT = {"-m", "--mode", "--rcheck", "--reap", "--name", "--mask", "--rsource"}


def parse_iptables(text: str) -> dict[str, Table]:
    """Return the tables in the output of `iptables-save -c` (without -c: rules without counters)."""
    tables: dict[str, Table] = {}
    hooks: list[str] = []
    chains: dict[str, list[Rule]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            hooks, chains = [], {}
            tables[line[1:]] = Table(hooks, chains)
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chains[name] = []
            if policy != "-":
                hooks.append(name)
        elif found := _LINE.match(line):
            packets, chain, rest = found.groups()
            chains[chain].append(_iptables_rule(rest, packets))
    return tables


def _iptables_rule(text: str, packets: str | None) -> Rule:
    facts: dict[str, Any] = {"packets": None if packets is None else int(packets)}
    conditions = []
    for option, argument in _options(text):
        if (option, argument) in _FACTS:
            facts |= _FACTS[option, argument]
        elif option in _FACT_OF and (option != "--dport" or argument.isdecimal()):  # not a range of ports
            name, value = _FACT_OF[option]
            facts[name] = value(argument)
        elif option in _WORDS:
            conditions.append(_WORDS[option].format(argument.removesuffix("/32")))
        elif option not in _SILENT and "targets" not in facts and not _TRUE.match(f"{option} {argument}"):
            conditions.append(f"{option} {argument}".strip())
    return Rule(**facts, conditions=tuple(conditions))


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Yield each option, with the prefix `! ` if it is negated, and its arguments."""
    option, arguments, denied = "", list[str](), False
    for quoted, word in _WORD.findall(text):
        if word == "!" or word.startswith("-"):
            if option:
                yield option, " ".join(arguments)
            option, arguments = "", []
        if word == "!":
            denied = True
        elif word.startswith("-"):
            option, denied = f"! {word}" if denied else word, False
        else:
            arguments.append(word or re.sub(r"\\(.)", r"\1", quoted))
    if option:
        yield option, " ".join(arguments)


# nftables


def parse_nftables(text: str) -> dict[str, Table]:
    """Return the output of `nft -j list table` as two tables, `nat` and `filter`, with the same chains.

    The two tables differ in their base chains.
    """
    things = json.loads(text)["nftables"]
    sets = {s["name"]: s for thing in things for kind, s in thing.items() if kind in {"set", "map"}}
    chains: dict[str, list[Rule]] = {c["chain"]["name"]: [] for c in things if "chain" in c}
    for thing in things:
        if "rule" in thing:
            chains[thing["rule"]["chain"]].extend(_nftables_rules(thing["rule"], sets))
    return {
        kind: Table([c["chain"]["name"] for c in things if "chain" in c and c["chain"].get("type") == kind], chains)
        for kind in ("nat", "filter")
    }


def _nftables_rules(rule: Any, sets: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield the rule; a rule with a map becomes one rule for each element of the map."""
    made = Rule(comment=rule.get("comment", ""))
    for statement in rule["expr"]:
        ((kind, value),) = statement.items()
        match kind:
            case "match":
                made = _matching(made, value["left"], value["op"], value["right"], sets)
            case "counter" if isinstance(value, dict):
                made = replace(made, packets=value["packets"])
            case "dnat":
                destinations = tuple(_destinations(value))
                made = replace(made, targets=("DNAT",) * len(destinations), destinations=destinations)
            case "mangle" if "|" in value["value"]:  # sets a bit of the mark, for a later rule
                made = replace(made, targets=("MARK",))
            case "jump" | "goto" | "reject" | "drop" | "return" | "masquerade":
                made = replace(made, targets=(_target(statement),))
            case "vmap" if "numgen" in value["key"]:
                made = replace(made, targets=tuple(_target(verdict) for _, verdict in _elements(value["data"], sets)))
            case "vmap":
                left = value["key"].get("concat", [value["key"]])
                for element, verdict in _elements(value["data"], sets):
                    one, right = replace(made, targets=(_target(verdict),)), _plain(element)
                    right = right["concat"] if isinstance(right, dict) else [right]
                    for key, wanted in zip(left, right, strict=True):
                        one = _matching(one, key, "==", wanted, sets)
                    yield one
                return
    yield made


def _matching(rule: Rule, left: Any, op: str, right: Any, sets: Mapping[str, Any]) -> Rule:
    """Return the rule with one more condition."""
    payload = left.get("payload", {})
    facts: dict[str, Any]
    match payload.get("field") or next(iter(left)), op:
        case "daddr", "==":
            facts = {"networks": tuple(_networks(right, sets))}
        case "dport", "==" if isinstance(right, int):
            protocol = payload["protocol"]  # th: the transport header of any protocol
            facts = {"port": right, "protocol": rule.protocol if protocol == "th" else protocol}
        case "saddr", "==" if isinstance(right, str) and right.startswith("@"):
            facts = {"again": sets[right[1:]].get("timeout", 0)}  # the set has the clients of the last seconds
        case "saddr", _:
            networks = " or ".join(network.removesuffix("/32") for network in _networks(right, sets))
            facts = {"conditions": (*rule.conditions, f"{'not ' if op == '!=' else ''}from {networks}")}
        case "meta", "==" if left["meta"]["key"] == "l4proto":
            facts = {"protocol": str(right)}
        case "ct", "in" | "==" if "new" in right:
            facts = {}  # always true for the first packet of a connection
        case "fib", "==" if right == "local" and "daddr" in left["fib"]["flags"]:
            facts = {"local": True}
        case "fib", "==" if right == "local" and "saddr" in left["fib"]["flags"]:
            facts = {"conditions": (*rule.conditions, "from LOCAL addresses")}
        case _:
            facts = {"conditions": (*rule.conditions, f"{json.dumps(left)} {op} {json.dumps(right)}")}
    return replace(rule, **facts)


def _destinations(dnat: Any) -> Iterator[str]:
    """Yield the destinations: one address and port, or several of which `numgen` picks one at random."""
    if "port" in dnat:
        yield f"{dnat['addr']}:{dnat['port']}"
    else:
        for _, one in dnat["addr"]["map"]["data"]["set"]:
            address, port = one["concat"]
            yield f"{address}:{port}"


def _elements(data: Any, sets: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = sets[data[1:]].get("elem", []) if isinstance(data, str) else data["set"]
    return found


def _networks(right: Any, sets: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": sets[right[1:]].get("elem", [])}
    for one in right["set"] if isinstance(right, dict) and "set" in right else [right]:
        plain = _plain(one)
        yield "{addr}/{len}".format(**plain["prefix"]) if isinstance(plain, dict) else f"{IPv4Address(plain)}/32"


def _plain(element: Any) -> Any:
    """Return an element of a set without its comment and timeout."""
    return element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element


def _target(verdict: Any) -> str:
    ((kind, value),) = verdict.items()
    return str(value["target"]) if kind in {"jump", "goto"} else str(kind).upper()
