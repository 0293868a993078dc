"""containerd with CNI: the container engine since Kubernetes 1.24, which no longer speaks to Docker.

The kubelet speaks to it through its socket (CRI, the container runtime interface). It joins each Pod to the network
with CNI plugins: `bridge` makes cni0 and a pair of links to the Pod, `host-local` gives it an address, `portmap` its
host ports. It keeps its images in /var/lib/containerd, which in the machine is a directory of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.context import Context
from ..core.daemon import Daemon, Flag
from ..core.iptables import Chains
from ..core.machine import Machine, run
from ..core.probe import Answer, Probe, Unix
from ..core.release import CONTAINERD_SOCKET
from ..facts import may_lower_oom_score
from ..machine import DISK
from ..registry import mirrors
from . import Traces

_STATE = "/run/containerd"  # its own default, and what CONTAINERD_SOCKET is in
_NETWORK = "dmuc"
PAUSE = "registry.k8s.io/pause:3.10"


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    return [Flag(f"--config={_config(context)}", "All else stands there: it has no flags for it.")]


def _config(context: Context) -> Path:
    return context.state / "containerd.toml"


def _plugins(context: Context) -> Path:
    return context.state / "cni" / "bin"  # see binaries.py


def _networks(context: Context) -> Path:
    return context.state / "cni" / "net.d"


def _registries(context: Context) -> Path:
    return context.state / "registries"


def _files(context: Context) -> Mapping[Path, str]:
    return {
        _config(context): _settings(context),
        _networks(context) / "10-dmuc.conflist": _network(context),
        _registries(context) / "_default" / "hosts.toml": _mirrors(context),
    }


def _settings(context: Context) -> str:
    """Its configuration file. Version 2 is what containerd 1.3 to 2.x read.

    https://github.com/containerd/containerd/blob/v1.6.20/docs/cri/config.md ; how 2.x takes it over: migrateConfig in
    plugins/cri/images/plugin.go and plugins/cri/runtime/plugin.go there.
    """
    restrict = "" if may_lower_oom_score() else _RESTRICT
    return f"""\
version = 2
# Without it the kubelet has nobody to speak to: better not to start than to start without.
required_plugins = ["io.containerd.grpc.v1.cri"]
# It would make /opt/containerd, on the host's disk.
disabled_plugins = ["io.containerd.internal.v1.opt"]

[plugins."io.containerd.grpc.v1.cri"]
# The pod sandbox's: one that we have.
sandbox_image = "{PAUSE}"
# All that it mounts is below {_STATE}, and can be taken back.
netns_mounts_under_state_dir = true
{restrict}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
# Its default; but containerd 2.0 reads the rest only where there is a section of this name.
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{_plugins(context)}"
conf_dir = "{_networks(context)}"

[plugins."io.containerd.grpc.v1.cri".registry]
# Where registries' mirrors are named.
config_path = "{_registries(context)}"
"""


_RESTRICT = """\
# We lack CAP_SYS_RESOURCE, and runc refuses to lower an oom_score_adj without.
restrict_oom_score_adj = true
"""


def _network(context: Context) -> str:
    """The Pods' network. https://github.com/containernetworking/cni/blob/spec-v0.4.0/SPEC.md"""
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,  # the bridge has the range's first address, and every Pod's default route leads there
        "hairpinMode": True,  # a Pod reaches itself through its Service
        "ipam": {"type": "host-local", "ranges": [[{"subnet": context.settings.pod_range}]]},
    }
    if context.settings.on_host:  # the machine has no way out that Pods could take
        bridge["ipMasq"] = True
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "0.4.0", "name": _NETWORK, "plugins": plugins}, indent=1) + "\n"


def _mirrors(context: Context) -> str:
    """Who is asked for an image, whatever registry is in its name, before that registry is.

    https://github.com/containerd/containerd/blob/v1.6.20/docs/hosts.md
    """
    return "".join(f'[host."{mirror}"]\ncapabilities = ["pull", "resolve"]\n' for mirror in mirrors(context))


def _keeps(context: Context) -> Sequence[Path]:
    if context.settings.on_host:
        return [Path("/var/lib/containerd"), Path("/var/lib/cni/networks", _NETWORK)]
    return [context.state / DISK["/var/lib/containerd"]]


def _results(machine: Machine) -> Iterable[Path]:
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
    causes={"required plugin .*cri": "It cannot serve the kubelet; the lines above say why."},
)

# Its images


def pause_image(context: Context) -> str:
    """The pod sandbox's image: it is the engine's own setting."""
    return PAUSE


def has(image: str) -> Probe:
    """Ask whether the image is there."""

    def ask(context: Context) -> Answer:
        runs = DAEMON.ready(context)
        there = runs and _full(image) in _ctr(context, "images", "ls", "-q").split()
        return Answer(bool(there), f"{image} is {'' if there else 'not '}in containerd") if runs else runs

    return ask


def pull(context: Context, image: str) -> None:
    """Fetch it."""
    _ctr(context, "images", "pull", "--hosts-dir", str(_registries(context)), _full(image))


def remove(context: Context, image: str) -> None:
    """Forget it."""
    _ctr(context, "images", "rm", _full(image))


def _full(image: str) -> str:
    """Only the kubelet and Docker leave out the registry."""
    return image if "/" in image else f"docker.io/library/{image}"


def _ctr(context: Context, *words: str) -> str:
    deadline = context.settings.deadline_of("images")
    return run(context.machine, str(context.bin / "ctr"), "-n", "k8s.io", *words, timeout=deadline)
