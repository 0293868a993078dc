"""Taking back iptables chains that a daemon has left behind, as they all do."""

from __future__ import annotations

from .machine import Machine, run

_REMOVE = """
for tables in iptables ip6tables; do
  $tables-save | grep -Ev -e "$1" | $tables-restore -w || exit
done
"""


def remove(machine: Machine, pattern: str) -> None:
    """Remove every chain and rule of the machine in which `pattern` (an extended regular expression) is found.

    Raises DmucError when iptables does not let us.
    """
    run(machine, "sh", "-c", _REMOVE, "sh", pattern)
