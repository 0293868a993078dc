"""The machine: `dmuc1`, on which nothing runs yet.

In the walk-through it is a virtual machine that somebody has made. Here it is made of Linux namespaces on the host's
own root file system (see core/namespaces.py): it has its own name, addresses, iptables, mounts and processes, and
beside it the host's Docker and clusters go on undisturbed. With machine=host it is the machine that you are on.
"""

from __future__ import annotations

from .core.context import Context
from .core.goal import Goal
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


def _is_on(context: Context) -> Answer:
    down = context.machine.down()
    return Answer(down is None, down or f"{context.machine.name} has the address {context.node.address}")


def _power_on(context: Context, progress: Progress) -> None:
    context.machine.power_on(progress)


MACHINE = Goal(
    name="machine",
    doc="power on the machine dmuc1, on which no component runs yet",
    holds=_is_on,
    make=_power_on,
    undo=lambda context: context.machine.power_off(),
    needs=("packages",),
)

PARTS = [MACHINE]
