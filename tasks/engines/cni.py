"""CNI: how an engine connects each Pod to the network, with plugins that a configuration names.

`bridge` creates cni0 and a veth pair to the Pod, `host-local` assigns an address, `portmap` sets up host ports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.context import Context
from ..core.iptables import Chains
from ..core.machine import Machine

NETWORK = "dmuc"  # the name of the network: it tells dmuc's traces from those of other CNI networks
BRIDGE = "cni0"
# All CNI plugins of the host share these chains; the network's name in a rule's comment says whose each is.
CHAINS = Chains("CNI-.*", led_to_by=rf'name: \\"{NETWORK}\\" id: ', shared="CNI-HOSTPORT-.*")
LEASES = Path("/var/lib/cni/networks", NETWORK)  # the addresses that host-local has assigned


def plugins(context: Context) -> Path:
    """Return the directory of the plugins."""
    return context.state / "cni" / "bin"  # see binaries.py


def networks(context: Context) -> Path:
    """Return the directory of the configuration files."""
    return context.node.state / "cni" / "net.d"


def network(context: Context) -> str:
    """Return the configuration. https://github.com/containernetworking/cni/blob/spec-v0.4.0/SPEC.md"""
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": True,  # the bridge has the first address of the range, and is the Pods' default gateway
        "hairpinMode": True,  # a Pod can reach itself through its Service
        "ipam": {"type": "host-local", "ranges": [[{"subnet": context.node.pod_range}]]},
    }
    if context.settings.on_host:  # a machine of its own has no route to other networks
        bridge["ipMasq"] = True
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "0.4.0", "name": NETWORK, "plugins": plugins}, indent=1) + "\n"


def results(machine: Machine) -> Iterable[Any]:
    """Return CNI's files about dmuc's Pods: NETWORK-POD-LINK; a loopback's network has the same name everywhere."""
    directory = machine.path("/var/lib/cni/results")
    ours = {path.name.split("-")[1] for path in directory.glob(f"{NETWORK}-{'[0-9a-f]' * 64}-*")}
    return [path for path in directory.glob("*-*-*") if path.name.split("-")[-2] in ours]
