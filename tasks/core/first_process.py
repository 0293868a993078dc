"""The first process of a machine: a shell script that makes the machine's mounts and names, and then only waits."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import cgroups, mounts

if TYPE_CHECKING:
    from .namespaces import Namespaces


def setup_script(machine: Namespaces, groups: Sequence[cgroups.Hierarchy], what: mounts.Plan) -> str:
    """Return the shell script of the machine's first process: it makes the mounts and names, and then only waits."""
    q = shlex.quote
    name, state = machine.name, machine.state
    own = ipaddress.ip_network(machine.link)[2]
    new = "/sys/new"
    lines = [
        "# Its own root file system: overlays on the host's directories, with its own layers.",
        *mounts.script(state, what),
    ]
    lines += ["# Its own view of processes, devices and cgroups.", f"mount -t proc proc {new}/proc"]
    in_proc = [str(file) for file in what.files if file.is_relative_to("/proc")]
    # The host has other files in the place of these, as lxcfs does.
    lines += [f"mount --bind {q(file)} {q(new + file)}" for file in in_proc]
    lines += [
        f"mount -t sysfs sysfs {new}/sys",
        f"mount -t tmpfs -o mode=755 tmpfs {new}/sys/fs/cgroup",
    ]
    for group in groups:
        point = q(new + str(group.mount_point))
        kind = "cgroup2" if group.is_v2 else f"cgroup -o {group.options}"
        if group.mount_point != Path("/sys/fs/cgroup"):
            lines.append(f"mkdir {point}")
        lines.append(f"mount -t {kind} cgroup {point}")
    if len(what.files) > len(in_proc):  # a container whose devices are mounted one by one
        lines.append(f"mount --rbind /dev {new}/dev")
    else:
        lines += [
            "mkdir -p /sys/lost/dev/upper /sys/lost/dev/work; cd /dev",
            "mount --no-canonicalize -t overlay -o lowerdir=.,upperdir=/sys/lost/dev/upper,workdir=/sys/lost/dev/work "
            f"overlay {new}/dev || mount --bind /dev {new}/dev",
            f"mount --rbind /dev/pts {new}/dev/pts  # with the terminal of `doit shell`",
            f"mkdir -p {new}/dev/shm {new}/dev/mqueue",
        ]
    lines += [
        f"mount -t tmpfs -o mode=1777 tmpfs {new}/dev/shm",
        f"mount -t mqueue mqueue {new}/dev/mqueue || :  # a kernel may have none",
        f"mount -t tmpfs -o mode=755 tmpfs {new}/run",
        f"mkdir -p {new}/run/lock {new}/var/log {new}/var/lib",
        "# Directories with a file system of the host's, because an engine's own overlays cannot be on an overlay.",
    ]
    for inside, directory in machine.disk.items():
        lines += [f"mkdir -p {new}{inside}", f"mount --bind {q(str(state / directory))} {new}{inside}"]
    lines += [
        "# From here on all this is /, and the host's file systems are gone.",
        f"cd {new}",
        "pivot_root . .",
        "umount -l .",
        "cd /",
        "mount --make-rshared /  # as on a machine with systemd: for volumes with mount propagation",
    ]
    if machine.kernel:
        lines += [
            "# Settings of the host's kernel: writes to these go to a file instead.",
            *(f"modprobe -q {module} 2> /dev/null || :  # or it is built in" for module in machine.modules),
            f"for file in {' '.join(machine.kernel)}; do",
            '  [ -e "$file" ] || continue',
            '  own="/run/dmuc/kernel$file"; mkdir -p "${own%/*}"; cat "$file" > "$own"',
            '  mount --bind "$own" "$file"',
            "done",
        ]
    lines += [
        "# Its own names. There is no name server at this address, so that other names fail at once.",
        "rm -f /etc/hosts /etc/hostname /etc/resolv.conf",
        f"printf '127.0.0.1 localhost\\n{own} {name}\\n' > /etc/hosts",
        f"echo {name} > /etc/hostname",
        f"echo {name} > /proc/sys/kernel/hostname",
        "echo nameserver 127.0.0.1 > /etc/resolv.conf",
        "# iptables(8) is one of two programs; where the kernel has only the tables of the older one, that is the one.",
        'can_write() { "$@" -w -t nat -N dmuc && "$@" -w -t nat -X dmuc; }',
        "if there=$(command -v iptables) && ! can_write iptables 2> /dev/null; then",
        "  legacy=$(command -v xtables-legacy-multi) || legacy=",
        '  if [ -n "$legacy" ] && can_write "$legacy" iptables; then',
        "    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do",
        '      ln -sf "$legacy" "${there%/*}/$name"',
        "    done",
        "  fi",
        "fi",
        "# A container engine that enables forwarding itself may also set the policy of FORWARD to DROP.",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo up",
        "exec > /dev/null",
        "# A shell, which reaps the orphaned processes of the machine, as a first process must.",
        "while :; do sleep 3600; done",
    ]
    return "\n".join(lines)
