"""containerd with CNI plugins: the default container engine since Kubernetes 1.24, which no longer supports Docker.

The kubelet uses containerd through its socket (CRI, the container runtime interface). containerd connects each Pod to
the network with CNI plugins: `bridge` creates cni0 and a veth pair to the Pod, `host-local` assigns an address,
`portmap` sets up host ports. The images are in /var/lib/containerd, which in the machine is a directory of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.context import Context
from ..core.daemon import Daemon, Flag
from ..core.files import quoted
from ..core.iptables import Chains
from ..core.machine import Machine, run
from ..core.probe import Probe, Unix
from ..core.release import CONTAINERD_SOCKET
from ..core.result import Result
from ..machine import DISK
from ..registry import mirrors
from . import Traces

_STATE = "/run/containerd"  # the default of containerd, and the directory of CONTAINERD_SOCKET
_NETWORK = "dmuc"
PAUSE = "registry.k8s.io/pause:3.10"


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of containerd, with their reasons."""
    return [Flag(f"--config={_config(context)}", "Configuration file; containerd has no flags for these settings.")]


def _config(context: Context) -> Path:
    return context.node.state / "containerd.toml"


def _plugins(context: Context) -> Path:
    return context.state / "cni" / "bin"  # see binaries.py


def _networks(context: Context) -> Path:
    return context.node.state / "cni" / "net.d"


def _registries(context: Context) -> Path:
    return context.node.state / "registries"


def _files(context: Context) -> Mapping[Path, str]:
    return {
        _config(context): _settings(context),
        _networks(context) / "10-dmuc.conflist": _network(context),
        _registries(context) / "_default" / "hosts.toml": _mirrors(context),
    }


def _settings(context: Context) -> str:
    """Return the text of the configuration file, in version 2 of the format, which containerd 1.3 to 2.x read.

    https://github.com/containerd/containerd/blob/v1.6.20/docs/cri/config.md ; how 2.x converts it: migrateConfig in
    plugins/cri/images/plugin.go and plugins/cri/runtime/plugin.go there.
    """
    restrict = "" if context.facts.may_lower_oom_score else _RESTRICT
    return f"""\
version = 2
# The kubelet needs the CRI plugin: containerd must not start without it.
required_plugins = ["io.containerd.grpc.v1.cri"]
# This plugin would create /opt/containerd on the host's disk.
disabled_plugins = ["io.containerd.internal.v1.opt"]

[plugins."io.containerd.grpc.v1.cri"]
# Image of the Pod sandbox, one that dmuc's registry serves.
sandbox_image = "{PAUSE}"
# Network namespaces are mounted below {_STATE}, where `clean` removes them.
netns_mounts_under_state_dir = true
{restrict}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
# The default; containerd 2.0 reads the other settings only if this section exists.
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {quoted(str(_plugins(context)))}
conf_dir = {quoted(str(_networks(context)))}

[plugins."io.containerd.grpc.v1.cri".registry]
# Directory of the files that name registry mirrors.
config_path = {quoted(str(_registries(context)))}
"""


_RESTRICT = """\
# Without CAP_SYS_RESOURCE, runc cannot lower oom_score_adj.
restrict_oom_score_adj = true
"""


def _network(context: Context) -> str:
    """Return the CNI configuration. https://github.com/containernetworking/cni/blob/spec-v0.4.0/SPEC.md"""
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,  # the bridge has the first address of the range, and is the Pods' default gateway
        "hairpinMode": True,  # a Pod can reach itself through its Service
        "ipam": {"type": "host-local", "ranges": [[{"subnet": context.node.pod_range}]]},
    }
    if context.settings.on_host:  # a machine of its own has no route to other networks
        bridge["ipMasq"] = True
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "0.4.0", "name": _NETWORK, "plugins": plugins}, indent=1) + "\n"


def _mirrors(context: Context) -> str:
    """Return the file with the mirrors that containerd asks for an image before the registry in the image's name.

    https://github.com/containerd/containerd/blob/v1.6.20/docs/hosts.md
    """
    return "".join(f'[host.{quoted(mirror)}]\ncapabilities = ["pull", "resolve"]\n' for mirror in mirrors(context))


def _keeps(context: Context) -> Sequence[Path]:
    if context.settings.on_host:
        return [Path("/var/lib/containerd"), Path("/var/lib/cni/networks", _NETWORK)]
    return [context.node.state / DISK["/var/lib/containerd"]]


def _results(machine: Machine) -> Iterable[Any]:
    """What CNI remembers of our Pods, as NETWORK-POD-LINK; the network of a loopback has the same name everywhere."""
    directory = machine.path("/var/lib/cni/results")
    ours = {path.name.split("-")[1] for path in directory.glob(f"{_NETWORK}-{'[0-9a-f]' * 64}-*")}
    return [path for path in directory.glob("*-*-*") if path.name.split("-")[-2] in ours]


# All CNI plugins of the host share these; a network's name says whose each is.
TRACES = Traces(
    run=_STATE,
    bridge="cni0",
    chains=Chains("CNI-.*", led_to_by=rf'name: \\"{_NETWORK}\\" id: ', shared="CNI-HOSTPORT-.*"),
    files=_results,
)


DAEMON = Daemon(
    name="container_engine",
    doc="start containerd",
    program="containerd",
    tools=("containerd-shim-runc-v2", "runc"),
    flags=flags,
    ready=Unix(CONTAINERD_SOCKET),
    writes=_files,
    keeps=_keeps,
    causes={"required plugin .*cri": "containerd's CRI plugin, which the kubelet needs, failed; see the lines above."},
)

# Its images


def pause_image(context: Context) -> str:
    """Return the image for Pod sandboxes, which is a setting of containerd."""
    return PAUSE


def has(image: str) -> Probe:
    """Return a probe that asks containerd whether it has the image."""

    def ask(context: Context) -> Result:
        runs = DAEMON.ready(context)
        there = runs and _full(image) in _ctr(context, "images", "ls", "-q").split()
        return Result(bool(there), f"{image} is {'' if there else 'not '}in containerd") if runs else runs

    return ask


def pull(context: Context, image: str) -> None:
    """Pull the image."""
    _ctr(context, "images", "pull", "--hosts-dir", str(_registries(context)), _full(image))


def remove(context: Context, image: str) -> None:
    """Remove the image."""
    _ctr(context, "images", "rm", _full(image))


def _full(image: str) -> str:
    """Return the name with its registry, which only the kubelet and Docker leave out."""
    return image if "/" in image else f"docker.io/library/{image}"


def _ctr(context: Context, *words: str) -> str:
    deadline = context.settings.deadline_of("images")
    return run(context.machine, str(context.bin / "ctr"), "-n", "k8s.io", *words, timeout=deadline)
