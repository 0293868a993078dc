"""An upgrade in place: the programs of a running cluster are replaced, one component after the other.

First the API server, of which everyone is a client; then the controller manager and the scheduler; then the kubelet;
then kube-proxy. https://kubernetes.io/releases/version-skew-policy/#supported-component-upgrade-order

Each waits until those before it are ready: when one of them does not start, the rest is as it was. From nothing there
is no order to keep, since nobody older runs, and each component is started as early as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import binaries
from .core.context import Context
from .core.process import Record


def first(context: Context, *names: str) -> Sequence[str]:
    """Give these names where programs of a running cluster are replaced, or may be; else none."""
    return names if _replaces(context) else ()


def _replaces(context: Context) -> bool:
    """Whether anything runs that is not of the programs that are wanted. Those may not have been looked for yet."""
    wanted = {found.path: found.print for found in binaries.known(context).values()}
    records = [record for path in context.pidfiles.glob("*.pid") if (record := Record.load(path))]
    programs = [(record.command[0], record) for record in records if record.alive()]
    return any(wanted.get(program) != record.inputs.get(program) for program, record in programs)
