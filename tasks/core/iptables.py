"""Taking back iptables chains that a daemon has left behind, as they all do; all other rules stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .machine import Machine, run


@dataclass(frozen=True)
class Chains:
    """Which chains and rules are a daemon's own, by regular expressions."""

    names: str  # of the chains, whole
    led_to_by: str = ""  # only those to which a rule leads in which this is found
    shared: str = ""  # the names of those that others use, too: they go with the last that one of them leads to
    rules: str = ""  # rules in other chains, too, as `iptables-save` prints them


# Where there is no iptables, or no IPv6, there are no rules.
_SAVED = 'if [ -e "$2" ] && command -v "$1" >/dev/null; then exec "$1"; fi'
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')


def remove(machine: Machine, chains: Chains) -> None:
    """Remove these chains, the rules that lead to them, and the other `rules`.

    Nothing else is written, so what others add or count meanwhile stays. Raises DmucError when iptables refuses.
    """
    for program, needs in (("iptables", "/proc/net"), ("ip6tables", "/proc/net/if_inet6")):
        saved = run(machine, "sh", "-c", _SAVED, "sh", f"{program}-save", needs)
        changes = "\n".join(_changes(saved, chains))
        if changes:
            run(machine, f"{program}-restore", "-w", "--noflush", stdin=f"{changes}\n")


def _changes(saved: str, chains: Chains) -> Iterator[str]:
    """What iptables-restore is given, for the tables of which something goes."""
    for table in f"\n{saved}".split("\n*")[1:]:
        name, *lines = table.splitlines()
        there = [line[1:].split()[0] for line in lines if line.startswith(":")]
        rules = [line for line in lines if line.startswith("-A ")]
        gone = _gone(there, rules, chains)
        deleted = [
            f"-D{rule[2:]}"
            for rule in rules
            if rule.split()[1] not in gone
            and (_target(rule) in gone or (chains.rules and re.search(chains.rules, rule)))
        ]
        if gone or deleted:
            # A chain can be deleted when it is empty and no rule leads to it: so in this order.
            yield from (f"*{name}", *(f":{c} - [0:0]" for c in gone), *deleted, *(f"-X {c}" for c in gone), "COMMIT")


def _gone(there: Sequence[str], rules: Sequence[str], chains: Chains) -> list[str]:
    """Which of these chains go."""
    led_to = {_target(rule) for rule in rules if re.search(chains.led_to_by, rule)} if chains.led_to_by else {*there}
    gone = [chain for chain in there if re.fullmatch(chains.names, chain) and chain in led_to]
    shared = [chain for chain in there if chains.shared and re.fullmatch(chains.shared, chain)]
    users = {_target(rule) for rule in rules if rule.split()[1] in shared} & {*there} - {*shared}
    return gone + (shared if users and users <= {*gone} else [])


def _target(rule: str) -> str:
    """The chain that it leads to; "" for none."""
    found = re.search(r" -[jg] (\S+)", _QUOTED.sub("", rule))  # a comment may say anything
    return found[1] if found else ""
