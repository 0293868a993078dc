"""Docker, the container engine of the walk-through. On the slide it is `dockerd`.

It keeps its images in /var/lib/docker, which in the machine is a directory of its own. With front_door=on it is
`dockerd` here, too, and what the flags say stands in its configuration file.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.context import Context
from ..core.daemon import Daemon, Flag
from ..core.iptables import Chains
from ..core.machine import run
from ..core.probe import Http, Probe
from ..facts import may_lower_oom_score
from ..machine import DISK
from ..registry import mirrors
from . import Traces

_SOCKET = "/run/docker.sock"

# Without CAP_SYS_RESOURCE nothing may lower its oom_score_adj, and runc, asked to, refuses to start the pod sandbox
# ("can't get final child's PID from pipe"). This stands in front of runc and asks for 0 where less was asked for.
_RUNC_ADAPTER = """\
#!/bin/sh
previous=
for argument in "$@"; do
  [ "$previous" = --bundle ] && sed -i 's/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/' "$argument/config.json"
  previous=$argument
done
exec {runc} "$@"
"""


def _adapter(context: Context) -> Path:
    return context.state / "runc-adapter"


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    if context.settings.uses_front_door:
        return ()
    return [flag for flag, _ in _wishes(context)]


def _wishes(context: Context) -> list[tuple[Flag, dict[str, Any]]]:
    """What it is told: each as a flag, and as a part of its configuration file.

    https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
    """
    network = ipaddress.ip_network(context.settings.pod_range)
    bip = f"{network[1]}/{network.prefixlen}"
    why = "The Pods' addresses; Docker's default may be the host's Docker's."
    wishes: list[tuple[Flag, dict[str, Any]]] = [(Flag(f"--bip={bip}", why, "isolation"), {"bip": bip})]
    wishes += [
        (
            Flag(f"--registry-mirror={mirror}", "Serves `nginx` without a way out of the machine."),
            {"registry-mirrors": mirrors(context)},
        )
        for mirror in mirrors(context)
    ]
    if not may_lower_oom_score():
        why = "We lack CAP_SYS_RESOURCE, and runc refuses to lower an oom_score_adj without."
        adapter = str(_adapter(context))
        wishes += [
            (Flag(f"--add-runtime=adapter={adapter}", why), {"runtimes": {"adapter": {"path": adapter}}}),
            (Flag("--default-runtime=adapter", why), {"default-runtime": "adapter"}),
        ]
    return wishes


def _config(context: Context) -> Path:
    return context.state / DISK["/etc/docker"] / "daemon.json"


def _forget_config(context: Context) -> None:
    """What stands in the file and on the command line, too, Docker refuses."""
    if not context.settings.uses_front_door:
        _config(context).unlink(missing_ok=True)


def _files(context: Context) -> Mapping[Path, str]:
    files = {}
    if not may_lower_oom_score():
        files[_adapter(context)] = _RUNC_ADAPTER.format(runc=context.bin / "runc")
    if context.settings.uses_front_door:
        config: dict[str, Any] = {}
        for _, part in _wishes(context):
            config |= part
        files[_config(context)] = json.dumps(config, indent=1) + "\n"
    return files


def _keeps(context: Context) -> Sequence[Path]:
    return [Path("/var/lib/docker") if context.settings.on_host else context.state / DISK["/var/lib/docker"]]


# Docker's chains do not say whose Docker has made them.
TRACES = Traces(
    run="/run/docker",
    bridge="docker0",
    chains=Chains("DOCKER(-.*)?", rules=r"^-A (FORWARD|POSTROUTING|PREROUTING) .*-[io] docker0\b"),
)


DAEMON = Daemon(
    name="container_engine",
    doc="start Docker",
    program="dockerd",
    tools=("containerd", "runc"),
    flags=flags,
    ready=Http(f"unix://{_SOCKET}:/_ping", expect="OK"),
    writes=_files,
    prepare=_forget_config,
    keeps=_keeps,
    causes={
        "Devices cgroup isn't mounted": "The machine's cgroups are not as Docker needs them.",
        "iptables": "Docker could not set up its iptables chains; see the lines above.",
    },
)

# Its images


def pause_image(context: Context) -> str:
    """The pod sandbox's image: the kubelet names it."""
    return context.release_of("kubelet").pause_image


def has(image: str) -> Probe:
    """Ask whether the image is there."""
    return Http(f"unix://{_SOCKET}:/images/{image}/json")


def pull(context: Context, image: str) -> None:
    """Fetch it. Docker asks mirrors only for what has no registry in its name, so pause is fetched by its plain one."""
    docker, deadline = str(context.bin / "docker"), context.settings.deadline_of("images")
    plain = image.rpartition("/")[2]
    run(context.machine, docker, "pull", plain, timeout=deadline)
    run(context.machine, docker, "tag", plain, image, timeout=deadline)


def remove(context: Context, image: str) -> None:
    """Forget it, and its plain name."""
    names = (image, image.rpartition("/")[2])
    run(context.machine, "sh", "-c", '"$@" || true', "sh", str(context.bin / "docker"), "rmi", "-f", *names)
