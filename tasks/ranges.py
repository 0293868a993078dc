"""The address ranges of a machine: where the user has named none, the first that nothing on this host uses.

Chosen at the cluster's first run, and remembered until `clean`, like every other setting. So a second machine needs
only a name. A range that the user has named is taken as it is, and refused by the machine when it is in use.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .core.namespaces import ranges_on_host
from .core.settings import Settings, remembered

# Each list begins with the setting's default. Those that begin with 172 are for hosts with a VPN to 10.0.0.0/8.
_CANDIDATES = {
    "link_range": [f"{begin}.{4 * number}/30" for begin in ("10.95.0", "172.29.0") for number in range(64)],
    "service_range": [f"10.{number}.0.0/16" for number in range(96, 128)] + ["172.30.0.0/16"],
    "pod_range": [f"{begin}.{number}.0/24" for begin in ("10.244", "172.31") for number in range(256)],
}


def choose(settings: Settings, state: Path) -> Settings:
    """Return the settings with a free range for each that is not set; with the default when none is free."""
    wanted = [name for name in _CANDIDATES if name not in settings.given]
    if settings.on_host or not wanted:
        return settings
    # Not the routes to the machine itself, which is on when only its settings were lost.
    taken = [network for network, where in ranges_on_host() if where.split()[-1] != settings.machine]
    taken += _of_machines_beside(state)
    taken += [ipaddress.IPv4Network(settings.given[name]) for name in _CANDIDATES if name not in wanted]
    chosen = {}
    for name in wanted:
        free = (text for text in _CANDIDATES[name] if not any(map(ipaddress.IPv4Network(text).overlaps, taken)))
        chosen[name] = next(free, _CANDIDATES[name][0])
        taken.append(ipaddress.IPv4Network(chosen[name]))
    return replace(settings, **chosen, given={**settings.given, **chosen})  # type: ignore[arg-type]


def _of_machines_beside(state: Path) -> Iterator[ipaddress.IPv4Network]:
    """Yield the ranges of this user's other machines: one that is off now has no routes, and will be on again."""
    for other in state.parent.glob("*/"):
        theirs = remembered(other) if other != state else {}
        for name in _CANDIDATES.keys() & theirs.keys():
            with contextlib.suppress(ValueError):  # its own run will say that
                yield ipaddress.IPv4Network(theirs[name])
