"""containerd with CNI plugins: the default container engine since Kubernetes 1.24, which no longer supports Docker.

The kubelet uses containerd through its socket (CRI, the container runtime interface). containerd connects each Pod to
the network with CNI plugins (cni.py). The images are in /var/lib/containerd, which in the machine is a directory of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.context import Context
from ..core.daemon import Daemon
from ..core.files import quoted
from ..core.flags import Flag
from ..core.machine import run
from ..core.probe import Probe, Unix
from ..core.release import CONTAINERD_SOCKET, minor_of
from ..core.result import Result
from ..image_files.names import Name
from ..machine import DISK
from ..registry import mirrors
from . import cni
from .interface import Traces

_STATE = "/run/containerd"  # the default of containerd, and the directory of CONTAINERD_SOCKET
PAUSE = "registry.k8s.io/pause:3.10"
NAME = "containerd"
ENDPOINT = CONTAINERD_SOCKET
USES_CNI = True


def cri(version: str) -> Sequence[str]:
    """Return the versions of CRI that a containerd of this version serves.

    https://github.com/containerd/containerd/blob/main/RELEASES.md#kubernetes-support
    """
    if minor_of(version) < (1, 6):
        return ("v1alpha2",)
    return ("v1", "v1alpha2") if minor_of(version) < (2, 0) else ("v1",)


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of containerd, with their reasons."""
    return [Flag(f"--config={_config(context)}", "Configuration file; containerd has no flags for these settings.")]


def _config(context: Context) -> Path:
    return context.node.state / "containerd.toml"


def _registries(context: Context) -> Path:
    return context.node.state / "registries"


def _files(context: Context) -> Mapping[Path, str]:
    return {
        _config(context): _settings(context),
        cni.networks(context) / "10-dmuc.conflist": cni.network(context),
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
sandbox_image = "{pause_image(context)}"
# Network namespaces are mounted below {_STATE}, where `clean` removes them.
netns_mounts_under_state_dir = true
{restrict}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
# The default; containerd 2.0 reads the other settings only if this section exists.
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {quoted(str(cni.plugins(context)))}
conf_dir = {quoted(str(cni.networks(context)))}

[plugins."io.containerd.grpc.v1.cri".registry]
# Directory of the files that name registry mirrors.
config_path = {quoted(str(_registries(context)))}
"""


_RESTRICT = """\
# Without CAP_SYS_RESOURCE, runc cannot lower oom_score_adj.
restrict_oom_score_adj = true
"""


def _mirrors(context: Context) -> str:
    """Return the file with the mirrors that containerd asks for an image before the registry in the image's name.

    https://github.com/containerd/containerd/blob/v1.6.20/docs/hosts.md
    """
    return "".join(f'[host.{quoted(mirror)}]\ncapabilities = ["pull", "resolve"]\n' for mirror in mirrors(context))


def _keeps(context: Context) -> Sequence[Path]:
    if context.settings.on_host:
        return [Path("/var/lib/containerd"), cni.LEASES]
    return [context.node.state / DISK["/var/lib/containerd"]]


TRACES = Traces(run=_STATE, bridge=cni.BRIDGE, chains=cni.CHAINS, files=cni.results)


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


def fetch(context: Context, image: Name) -> None:
    """Pull the image: containerd asks the machine's registry first."""
    pull(context, image.full)


def know_registries(context: Context) -> None:
    """Do nothing: containerd asks its mirrors for the images of every registry."""


def remove(context: Context, image: str) -> None:
    """Remove the image."""
    _ctr(context, "images", "rm", _full(image))


def _full(image: str) -> str:
    """Return the name with its registry, which only the kubelet and Docker leave out."""
    return image if "/" in image else f"docker.io/library/{image}"


def _ctr(context: Context, *words: str) -> str:
    deadline = context.settings.deadline_of("images")
    return run(context.machine, str(context.bin / "ctr"), "-n", "k8s.io", *words, timeout=deadline)
