"""The machine: `dmuc1`, on which nothing runs yet.

In the walk-through it is a virtual machine that somebody has made. Here it is made of Linux namespaces on the host's
own root file system (see core/namespaces.py): it has its own name, addresses, iptables, mounts and processes, and
beside it the host's Docker and clusters go on undisturbed. With machine=host it is the machine that you are on.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from . import choices
from .core import release, settings
from .core.context import Context
from .core.errors import DmucError
from .core.goal import Goal
from .core.machine import Host, Machine
from .core.namespaces import Namespaces
from .core.probe import Answer
from .core.progress import Progress

# Directories inside that outlive the machine, and where under the state directory they are: so the engine and the
# kubelet need no flag for it, and what they keep there never meets the host's own.
DISK = {
    "/var/lib/docker": "container_engine",
    "/var/lib/containerd": "containerd",
    "/var/lib/kubelet": "kubelet",
    "/etc/docker": "docker",  # Docker's configuration file, where it has one
}

# What kubelet (setupKernelTunables in pkg/kubelet/cm/container_manager_linux.go) and dockerd write into the kernel.
# kube-proxy (pkg/proxy/conntrack) may not write its two outside of the host's own network, and ends without.
KERNEL = (
    *("/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops"),
    *("/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom"),
    *("/proc/sys/net/netfilter/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize"),
)
MODULES = ("nf_conntrack",)  # which has the last two


def context(
    root: Path,
    environment: Mapping[str, str],
    arguments: Mapping[str, str],
    *,
    programs: Collection[str],
    tasks: Collection[str],
) -> Context:
    """Read the settings and give the context of the cluster that they describe, with its state under `root`/var; under
    the user's own ~/.local/state/dmuc where the checkout is somebody else's.

    Raises DmucError when a setting is wrong.
    """
    load = partial(settings.load, root / "cluster.toml", environment, arguments, programs=programs, tasks=tasks)
    chosen = load()
    state = _home_of_states(root, environment) / chosen.machine
    made_with = settings.remembered(state)
    chosen = load(remembered=made_with) if made_with else chosen
    machine: Machine = (
        Host(chosen.machine, whole=chosen.free_ports)
        if chosen.on_host
        else Namespaces(
            chosen.machine, state, chosen.link_range, chosen.service_range, chosen.pod_range, DISK, KERNEL, MODULES
        )
    )
    found = Context(chosen, release.find(chosen.kubernetes), machine, state)
    _refuse_path(state)
    choices.refuse_what_cannot_be(found)
    return found


def _home_of_states(root: Path, environment: Mapping[str, str]) -> Path:
    var = root / "var"
    if os.access(var if var.exists() else root, os.W_OK, effective_ids=True):
        return var
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dmuc"


def _refuse_path(state: Path) -> None:
    """Raise DmucError when what is written about this directory would mean another one."""
    why = "PATH cannot have a directory with a colon in its name." if ":" in str(state) else ""
    if os.fsencode(state) != str(state).encode("utf-8", "replace"):
        why = "Its name is not UTF-8, or this locale is not: configuration files are."
    if why:
        raise DmucError(f"keeping the cluster's state in {state}", why, "Use a checkout in another directory.")


def _is_on(context: Context) -> Answer:
    down = context.machine.down()
    return Answer(down is None, down or f"{context.machine.name} has the address {context.settings.address}")


def _power_on(context: Context, progress: Progress) -> None:
    context.machine.power_on(progress)


MACHINE = Goal(
    name="machine",
    doc="power on the machine dmuc1, where nothing runs yet",
    holds=_is_on,
    make=_power_on,
    undo=lambda context: context.machine.power_off(),
    needs=("_packages",),
)

PARTS = [MACHINE]
