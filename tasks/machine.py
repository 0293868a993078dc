"""The machine: `dmuc1`, on which no component runs yet.

In the walk-through it is a virtual machine. Here it is made of Linux namespaces (core/namespaces.py): it has its own
name, addresses, iptables rules, mounts, processes and files (core/mounts.py), and does not disturb Docker or other
clusters on the host. With machine=host it is the host itself.
"""

from __future__ import annotations

from .core.context import Context
from .core.goal import Goal
from .core.progress import Progress
from .core.result import Result

MANIFESTS = "/etc/kubernetes/manifests"  # of static Pods, where kubeadm has them

# Directories of the machine that outlive it, and where they are below the state directory: so the engine and the
# kubelet need no flag for their directories, and do not touch those of the host.
DISK = {
    "/var/lib/docker": "container_engine",
    "/var/lib/containerd": "containerd",
    "/var/lib/kubelet": "kubelet",
    MANIFESTS: "manifests",  # a host that is a node itself has Pods of its own there, which must not run in the machine
    "/etc/docker": "docker",  # Docker's configuration file, where it has one
}

# Kernel settings that the kubelet (setupKernelTunables in pkg/kubelet/cm/container_manager_linux.go) and dockerd write.
# kube-proxy (pkg/proxy/conntrack) may not write the last two outside of the host's network namespace, and then exits.
KERNEL = (
    *("/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops"),
    *("/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom"),
    *("/proc/sys/net/netfilter/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize"),
)
MODULES = ("nf_conntrack",)  # the module with the last two settings


def _is_on(context: Context) -> Result:
    is_up = context.machine.is_up()
    return Result(True, f"{context.machine.name} has the address {context.node.address}") if is_up else is_up


def _power_on(context: Context, progress: Progress) -> None:
    context.machine.power_on(progress)


MACHINE = Goal(
    name="machine",
    nodes="each",
    doc="power on the machine dmuc1, on which no component runs yet",
    holds=_is_on,
    make=_power_on,
    undo=lambda context: context.machine.power_off(),
    needs=("packages",),
)

PARTS = [MACHINE]
