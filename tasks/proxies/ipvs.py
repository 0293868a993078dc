"""The kernel's load balancer IPVS, read from /proc/net/ip_vs and `ipset save` into the form of netfilter.py.

Each virtual server (an address and port of a Service) becomes a chain, and each real server (a Pod) a rule of it. Round
robin is not at random, but in the long run each real server gets a share as large as its weight: the probabilities of
the rules say that. Sources: ipvsadm(8), ip_vs_ctl.c of Linux, ipset(8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from ipaddress import IPv4Address

from ..core.errors import DmucError
from ..core.machine import Machine, run
from .netfilter import Rule, Table

SCHEDULERS = {
    "rr": "round robin",
    "wrr": "weighted round robin",
    "lc": "least connections",
    "wlc": "weighted least connections",
    "sh": "by the client's address",
    "dh": "by the destination's address",
    "sed": "shortest expected delay",
    "nq": "never queue",
}
_SERVER = re.compile(r"^(TCP|UDP|SCTP) +([0-9A-F]{8}):([0-9A-F]{4}) (\S+)(.*)")
_REAL = re.compile(r"^ +-> +([0-9A-F]{8}):([0-9A-F]{4}) +(\S+) +(\d+) ")
_AGAIN = re.compile(r"persistent (\d+)")
_LIMIT = 5.0  # seconds to read either


def read(machine: Machine) -> dict[str, Table]:
    """Return what IPVS has on the machine as the table `nat`; empty when it has no virtual server.

    Raise DmucError when the machine is off.
    """
    text = run(machine, "sh", "-c", "cat /proc/net/ip_vs 2> /dev/null || :", timeout=_LIMIT)
    if not any(map(_SERVER.match, text.splitlines())):
        return {}
    try:
        sets = run(machine, "ipset", "save", timeout=_LIMIT)
    except DmucError:  # no ipset on this machine
        sets = ""
    return parse(text, sets)


def parse(text: str, sets: str = "") -> dict[str, Table]:
    """Return the content of /proc/net/ip_vs, with the names of the ipsets in `sets` that have a server's address."""
    members = _members(sets)
    entry: list[Rule] = []
    chains: dict[str, list[Rule]] = {"LOCAL_IN": entry}
    reals: list[tuple[str, int]] = []
    name = ""

    def close() -> None:
        """Turn the weights of the last server's Pods into the probabilities of rules that are tried in turn."""
        left = sum(weight for _, weight in reals)
        for destination, weight in reals:
            if weight:
                chance = Fraction(weight, left)
                chains[name].append(Rule(targets=("DNAT",), destinations=(destination,), probability=chance))
                left -= weight
        reals.clear()

    for line in text.splitlines():
        if server := _SERVER.match(line):
            close()
            protocol, address, port = server[1].lower(), _address(server[2]), int(server[3], 16)
            how = SCHEDULERS.get(server[4], "")
            inside = members.get(f"{address},{protocol}:{port}", [])
            words = [f"IPVS {server[4]}", f"({how})" if how else "", *(f"in ipset {one}" for one in inside)]
            name = f"{' '.join(filter(None, words))}: {address}:{port}/{protocol}"
            chains[name] = []
            if again := _AGAIN.search(server[5]):
                chains[name].append(Rule(again=int(again[1])))
            entry.append(Rule(targets=(name,), networks=(f"{address}/32",), protocol=protocol, port=port))
        elif real := _REAL.match(line):
            reals.append((f"{_address(real[1])}:{int(real[2], 16)}", int(real[4])))
    close()
    return {"nat": Table(["LOCAL_IN"], chains)}


def _address(hexadecimal: str) -> str:
    return str(IPv4Address(int(hexadecimal, 16)))


def _members(sets: str) -> Mapping[str, list[str]]:
    """Return the names of the sets in which each ADDRESS,PROTOCOL:PORT is."""
    found: dict[str, list[str]] = {}
    for name, member in re.findall(r"(?m)^add (\S+) (\S+)", sets):
        found.setdefault(member, []).append(name)
    return found
