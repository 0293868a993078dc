"""Docker, the container engine of the walk-through, which starts it as `dockerd`.

Docker stores its images in /var/lib/docker, which in the machine is a directory of its own. With insecure_port=on,
dmuc, too, starts `dockerd` without flags, and writes the same options into the configuration file.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.context import Context
from ..core.daemon import Daemon
from ..core.flags import Flag
from ..core.iptables import Chains
from ..core.machine import run
from ..core.probe import Http, Probe
from ..image_files.names import DOCKER_HUB, Name, parse
from ..machine import DISK
from ..registry import LOCAL, mirrors, storage
from .interface import Traces

_SOCKET = "/run/docker.sock"
_OURS = "# a registry, served by dmuc"
NAME = "Docker"
ENDPOINT = ""
USES_CNI = False


def cri(version: str) -> Sequence[str]:
    """Return no version of CRI: the kubelet up to 1.23 talks to Docker itself (dockershim)."""
    return ()


# Without CAP_SYS_RESOURCE no process may lower its oom_score_adj, and runc fails to start the Pod sandbox, for which
# Docker requests that ("can't get final child's PID from pipe"). This wrapper replaces negative values by 0. And for a
# privileged container Docker requests every capability of the kernel, of which runc cannot give what dmuc does not have
# ("unable to apply caps"): the wrapper leaves those out, as containerd does.
_RUNC_ADAPTER = """\
#!/bin/sh
previous=
for argument in "$@"; do
  file=
  case $previous in
    --bundle) file=$argument/config.json ;;
    --process) file=$argument ;;  # runc exec
  esac
  [ -z "$file" ] || sed -E -i \
    -e 's/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/' \
    -e 's/"CAP_({lacking})",|,?"CAP_({lacking})"//g' \
    "$file"
  previous=$argument
done
exec {runc} "$@"
"""


def _adapter(context: Context) -> Path:
    return context.node.state / "runc-adapter"


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of dockerd, with their reasons."""
    if context.settings.uses_insecure_port:
        return ()
    return [flag for flag, _ in _parts(context)]


def _parts(context: Context) -> list[tuple[Flag, dict[str, Any]]]:
    """Return the options of Docker: each as a flag, and as a part of the configuration file.

    https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
    """
    network = ipaddress.ip_network(context.node.pod_range)
    bip = f"{network[1]}/{network.prefixlen}"
    why = "Pods get their addresses from this range; Docker's default range may be in use by Docker on the host."
    parts: list[tuple[Flag, dict[str, Any]]] = [(Flag(f"--bip={bip}", why, "isolation"), {"bip": bip})]
    parts += [
        (
            Flag(
                f"--registry-mirror={mirror}",
                "Registry mirror that serves `nginx`, so that the machine needs no access to Docker Hub.",
            ),
            {"registry-mirrors": mirrors(context)},
        )
        for mirror in mirrors(context)
    ]
    why = "Containers go on while Docker is restarted; by default Docker stops them when it ends."
    parts.append((Flag("--live-restore", why, "use"), {"live-restore": True}))
    why = "Turns on hairpin mode, with which a Pod reaches itself through its Service; the kernel serves host ports."
    parts.append((Flag("--userland-proxy=false", why, "use"), {"userland-proxy": False}))
    if context.facts.lacking_capabilities:
        named = " and ".join(f"CAP_{name.upper()}" for name in context.facts.lacking_capabilities)
        cannot = "start privileged containers"
        if not context.facts.may_lower_oom_score:
            named, cannot = "CAP_SYS_RESOURCE", f"lower oom_score_adj, or {cannot}"
        why = f"Without {named}, runc cannot {cannot}; the adapter leaves out what it cannot do."
        adapter = str(_adapter(context))
        parts += [
            (Flag(f"--add-runtime=adapter={adapter}", why), {"runtimes": {"adapter": {"path": adapter}}}),
            (Flag("--default-runtime=adapter", why), {"default-runtime": "adapter"}),
        ]
    return parts


def _config(context: Context) -> Path:
    return context.node.state / DISK["/etc/docker"] / "daemon.json"


def _prepare(context: Context) -> None:
    """Remove the configuration file: Docker refuses an option that is both in the file and on the command line."""
    if not context.settings.uses_insecure_port:
        _config(context).unlink(missing_ok=True)
    know_registries(context)


# Docker asks mirrors for images of Docker Hub only. The machine's registry serves the images of others all the same:
# their names are on the machine's loopback, where Docker accepts plain HTTP (isSecureIndex in its registry/config.go),
# and its HTTP proxy is that registry, which does not mind whole URLs in requests. Hosts with an address need no proxy.


def _environment(context: Context) -> Mapping[str, str]:
    if context.settings.on_host:  # the names of the host are not dmuc's
        return {}
    return {"HTTP_PROXY": f"http://{LOCAL}", "NO_PROXY": "0.0.0.0/0,localhost"}


def know_registries(context: Context) -> None:
    """Have the names of all registries of which an image is loaded on the machine's loopback."""
    file = context.machine.path("/etc/hosts")
    if context.settings.on_host or not file.exists():
        return
    known = {parse(full).registry.partition(":")[0] for full in storage(context).loaded()}
    lines = [line for line in str(file.read("utf-8")).splitlines() if not line.endswith(_OURS)]
    lines += [f"127.0.0.1 {name}  {_OURS}" for name in sorted(known - {DOCKER_HUB}) if not name[:1].isdigit()]
    file.write("".join(f"{line}\n" for line in lines), "utf-8")


def _files(context: Context) -> Mapping[Path, str]:
    files = {}
    if context.facts.lacking_capabilities:
        lacking = "|".join(context.facts.lacking_capabilities).upper()
        runc = shlex.quote(str(context.bin / "runc"))
        files[_adapter(context)] = _RUNC_ADAPTER.format(runc=runc, lacking=lacking)
    if context.settings.uses_insecure_port:
        config: dict[str, Any] = {}
        for _, part in _parts(context):
            config |= part
        files[_config(context)] = json.dumps(config, indent=1) + "\n"
    return files


def _keeps(context: Context) -> Sequence[Path]:
    return [Path("/var/lib/docker") if context.settings.on_host else context.node.state / DISK["/var/lib/docker"]]


# Docker's chains do not say whose Docker has made them.
TRACES = Traces(
    run="/run/docker",
    bridge="docker0",
    chains=Chains(
        "DOCKER(-USER|-FORWARD|-CT|-BRIDGE|-INTERNAL|-INGRESS|-ISOLATION-STAGE-[12])?",
        # https://docs.docker.com/engine/network/packet-filtering-firewalls/#docker-and-iptables-chains
        open_to_people="DOCKER-USER",
        rules=r"^-A (FORWARD|POSTROUTING|PREROUTING) .*-[io] docker0\b",
    ),
)


DAEMON = Daemon(
    name="container_engine",
    doc="start Docker",
    program="dockerd",
    tools=("containerd", "runc"),
    flags=flags,
    ready=Http(f"unix://{_SOCKET}:/_ping", expect="OK"),
    writes=_files,
    prepare=_prepare,
    environment=_environment,
    keeps=_keeps,
    causes={
        "Devices cgroup isn't mounted": "Docker needs the cgroup controller `devices`, and the machine lacks it.",
        "iptables": "Docker could not set up its iptables chains; see the lines above.",
    },
)

# Its images


def pause_image(context: Context) -> str:
    """Return the image for Pod sandboxes, which the kubelet names."""
    return context.release_of("kubelet").pause_image


def has(image: str) -> Probe:
    """Return a probe that asks Docker whether it has the image."""
    return Http(f"unix://{_SOCKET}:/images/{image}/json")


def pull(context: Context, image: str) -> None:
    """Pull the image by its plain name, and tag it: Docker asks mirrors only for names without a registry."""
    docker, deadline = str(context.bin / "docker"), context.settings.deadline_of("images")
    plain = image.rpartition("/")[2]
    run(context.machine, docker, "pull", plain, timeout=deadline)
    run(context.machine, docker, "tag", plain, image, timeout=deadline)


def fetch(context: Context, image: Name) -> None:
    """Pull the image from the machine's registry, and tag it with its whole name."""
    docker, deadline = str(context.bin / "docker"), context.settings.deadline_of("images")
    here = f"{LOCAL}/{image.place}"
    for words in (("pull", here), ("tag", here, image.full), ("rmi", here)):
        run(context.machine, docker, *words, timeout=deadline)


def remove(context: Context, image: str) -> None:
    """Remove the image, by both names."""
    names = (image, image.rpartition("/")[2])
    run(context.machine, "sh", "-c", '"$@" || true', "sh", str(context.bin / "docker"), "rmi", "-f", *names)
