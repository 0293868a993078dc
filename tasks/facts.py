"""Facts about this host and this release. Only this module finds them out; each component decides what it does."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

from .core import cgroups
from .core.context import Context
from .core.errors import DmucError
from .core.machine import Machine, run

_CAPABILITIES = {  # <linux/capability.h>: capabilities that root in a container may lack
    "net_admin": 12,
    "net_raw": 13,
    "sys_chroot": 18,
    "sys_admin": 21,
    "sys_resource": 24,
    "mknod": 27,
}
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# Permissions


def lacking_capabilities() -> list[str]:
    """Return the capabilities (capabilities(7)) that a cluster or some component needs, and this process lacks."""
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    return [name for name, bit in _CAPABILITIES.items() if not effective & (1 << bit)]


def may_lower_oom_score() -> bool:
    """Return whether this process has CAP_SYS_RESOURCE, without which no process may lower its oom_score_adj."""
    return "sys_resource" not in lacking_capabilities()


# The kernel


def has_swap() -> bool:
    """Return whether the host has swap."""
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


def has_cgroup_v1() -> bool:
    """Return whether the host has cgroup v1, or both versions: like the kubelet, judge by /sys/fs/cgroup."""
    return not any(h.is_v2 and h.mount_point == Path("/sys/fs/cgroup") for h in cgroups.mounted())


def cgroup_version() -> str:
    """Return the host's cgroup version: "v1", "v2", "hybrid" (v1, and v2 without controllers beside it), or ""."""
    kinds = {hierarchy.is_v2 for hierarchy in cgroups.mounted()}
    if not kinds:
        return ""
    return "v1" if kinds == {False} else "hybrid" if has_cgroup_v1() else "v2"


def cgroup_controllers() -> set[str]:
    """Return the cgroup controllers that a cluster can use: those of v2 if there is no v1, else those of v1."""
    of_v1, found = has_cgroup_v1(), set[str]()
    for hierarchy in cgroups.mounted():
        if of_v1:
            found |= {name for name in hierarchy.options.split(",") if name and not name.startswith("name=")}
        elif hierarchy.mount_point == Path("/sys/fs/cgroup"):
            found |= {*(hierarchy.mount_point / "cgroup.controllers").read_text().split()}
    return found


def held_back_controllers() -> list[str]:
    """Return the cgroup v2 controllers that cannot be enabled, because the cgroup of this container has processes.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#no-internal-process-constraint
    """
    root = Path("/sys/fs/cgroup")
    if has_cgroup_v1() or not (root / "cgroup.type").exists() or not (root / "cgroup.procs").read_text().strip():
        return []
    return sorted(cgroup_controllers() - {*(root / "cgroup.subtree_control").read_text().split()})


def has_filesystem(name: str) -> bool | None:
    """Return whether the kernel has this filesystem, or a module for it; None when that is unknown."""
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    return True if name in known else has_module(name, f"CONFIG_{name.upper()}_FS")


def has_module(name: str, option: str) -> bool | None:
    """Return whether the kernel has this module, built in or to be loaded on demand; None when that is unknown.

    `option` is its name in the kernel's configuration. Loads nothing.
    """
    modules = Path("/lib/modules", os.uname().release)
    lists = [path.read_text() for path in (modules / "modules.dep", modules / "modules.builtin") if path.exists()]
    if Path("/sys/module", name).exists() or any(f"/{name}.ko" in text for text in lists):
        return True
    config = _kernel_config()
    if f"\n{option}=y\n" in config:
        return True
    return False if lists or config else None


def _kernel_config() -> str:
    """Return the configuration that the kernel was built with; empty when it is not available."""
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{os.uname().release}").read_text()
    except OSError:
        return ""


def has_ipvs() -> bool:
    """Return whether the kernel has IPVS, or a module that is loaded on demand. Loads nothing."""
    return Path("/proc/net/ip_vs").exists() or has_module("ip_vs", "CONFIG_IP_VS") is True


def available_memory() -> int:
    """Return the memory that is available to programs, in MiB."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def free_disk(path: Path) -> int:
    """Return the free disk space at `path`, which may not exist yet, in MiB."""
    there = next(p for p in (path, *path.parents) if p.exists())
    return shutil.disk_usage(there).free // 2**20


# iptables


def iptables() -> tuple[str, str]:
    """Return the host's variant of iptables, "nft" or "legacy", and its version; ("", "") when there is none.

    The two variants keep separate rules; since 1.8 the output of --version names the variant.
    """
    try:
        command = ["env", f"PATH={_SYSTEM_PATH}", "iptables", "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return "", ""
    version = re.search(r"v([\d.]+)", said)
    return "nft" if "(nf_tables)" in said else "legacy", version[1] if version else "?"


# Only for legacy tables that exist already: listing a table would create it in the kernel.
_OTHER_RULES = {
    "nft": "for table in $(cat /proc/net/ip_tables_names); do iptables-legacy-save -t $table; done",
    "legacy": "iptables-nft-save 2>/dev/null",
}


def rules_of_the_other(machine: Machine, kind: str) -> int | None:
    """Return the number of rules of the other variant of iptables on the machine; None when that is unknown."""
    try:
        return run(machine, "sh", "-c", _OTHER_RULES[kind], timeout=5).count("\n-A ")
    except DmucError:
        return None


def facts(context: Context) -> dict[str, bool]:
    """Return every fact that a step of the tour can depend on, by name."""
    return {"swap": has_swap(), "insecure_port": context.release.insecure_port}
