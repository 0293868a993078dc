"""Upgrades in place: the programs of a running cluster are replaced, one component after the other.

First the API server, whose clients are all other components; then the controller manager and the scheduler; then the
kubelet; then kube-proxy. https://kubernetes.io/releases/version-skew-policy/#supported-component-upgrade-order

Each component waits until those before it are ready: when one does not start, the others stay as they were. When no
older program is running there is no order, and each component is started as early as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import binaries
from .core.context import Context


def if_upgrading(context: Context, *names: str) -> Sequence[str]:
    """Return these names when programs of a running cluster are replaced, or may be; else nothing."""
    return names if _replaces(context) else ()


def _replaces(context: Context) -> bool:
    """Return whether a process runs whose program is not the wanted one; the programs may not be known yet."""
    wanted = {found.path: found.fingerprint for found in binaries.known(context).values()}
    processes = context.machine.processes
    records = [record for record in processes.all_recorded(context.pidfiles) if processes.is_alive(record)]
    programs = [(record.command[0], record) for record in records]
    return any(wanted.get(program) != record.inputs.get(program) for program, record in programs)
