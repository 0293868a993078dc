"""Remove the iptables chains that a daemon has left behind (every one does); all other rules stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .machine import Machine, run


@dataclass(frozen=True)
class Chains:
    """The chains and rules that a daemon has made, as regular expressions."""

    names: str  # the full names of its chains
    led_to_by: str = ""  # of these, only chains to which a rule leads that contains this
    shared: str = ""  # chains that others use, too: they are removed together with the last chain that uses them
    open_to_people: str = ""  # of these, chains that people add rules to: they stay while they have such a rule
    rules: str = ""  # the daemon's rules in other chains, as `iptables-save` prints them


# Prints nothing where there is no iptables, or no IPv6.
_SAVED = 'if [ -e "$2" ] && command -v "$1" >/dev/null; then exec "$1"; fi'
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')


def remove(machine: Machine, chains: Chains) -> None:
    """Remove these chains, the rules that lead to them, and the other `rules` of the daemon.

    Nothing else is written, so rules and counters of other programs stay. Raise DmucError when iptables refuses.
    """
    for program, needs in (("iptables", "/proc/net"), ("ip6tables", "/proc/net/if_inet6")):
        saved = run(machine, "sh", "-c", _SAVED, "sh", f"{program}-save", needs)
        changes = "\n".join(_changes(saved, chains))
        if changes:
            run(machine, f"{program}-restore", "-w", "--noflush", stdin=f"{changes}\n")


def _changes(saved: str, chains: Chains) -> Iterator[str]:
    """Yield the input for iptables-restore, for those tables from which something must be removed."""
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
            # A chain can be deleted only when it is empty and no rule leads to it, hence this order.
            yield from (f"*{name}", *(f":{c} - [0:0]" for c in gone), *deleted, *(f"-X {c}" for c in gone), "COMMIT")


def _gone(there: Sequence[str], rules: Sequence[str], chains: Chains) -> list[str]:
    """Return which of the chains `there` must be removed."""
    led_to = {_target(rule) for rule in rules if re.search(chains.led_to_by, rule)} if chains.led_to_by else {*there}
    added_to = {rule.split()[1] for rule in rules if not rule.endswith(" -j RETURN")}
    stay = {chain for chain in added_to if chains.open_to_people and re.fullmatch(chains.open_to_people, chain)}
    gone = [chain for chain in there if re.fullmatch(chains.names, chain) and chain in led_to and chain not in stay]
    shared = [chain for chain in there if chains.shared and re.fullmatch(chains.shared, chain)]
    users = {_target(rule) for rule in rules if rule.split()[1] in shared} & {*there} - {*shared}
    return gone + (shared if users and users <= {*gone} else [])


def _target(rule: str) -> str:
    """Return the chain that a rule leads to; "" for none."""
    found = re.search(r" -[jg] (\S+)", _QUOTED.sub("", rule))  # without the comment, which may contain anything
    return found[1] if found else ""
