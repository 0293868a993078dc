"""Facts: what this host and this release are like. They are found out here, and only here; what is done about them
stands with whoever does it.
"""

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
from .core.machine import SYSTEM_PATH, Machine, run

_CAPABILITIES = {  # <linux/capability.h>: those of which root in a container may have to do without
    "net_admin": 12,
    "net_raw": 13,
    "sys_chroot": 18,
    "sys_admin": 21,
    "sys_resource": 24,
    "mknod": 27,
}


# What we may


def lacking_capabilities() -> list[str]:
    """The capabilities (capabilities(7)) that running a cluster takes, or some of it, and we do not have."""
    effective = 0
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    return [name for name, bit in _CAPABILITIES.items() if not effective & (1 << bit)]


def may_lower_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE: without, nothing may lower its oom_score_adj."""
    return "sys_resource" not in lacking_capabilities()


# The kernel


def has_swap() -> bool:
    """Whether the host swaps."""
    return len(Path("/proc/swaps").read_text("utf-8").splitlines()) > 1


def has_cgroup_v1() -> bool:
    """Whether the host's cgroups are of version 1, or of both: the kubelet takes /sys/fs/cgroup for its answer."""
    return not any(h.is_v2 and h.mount_point == Path("/sys/fs/cgroup") for h in cgroups.mounted())


def cgroup_version() -> str:
    """The version of the host's cgroups: "v1", "v2", "hybrid" (v1, and v2 without controllers beside it), or ""."""
    kinds = {hierarchy.is_v2 for hierarchy in cgroups.mounted()}
    if not kinds:
        return ""
    return "v1" if kinds == {False} else "hybrid" if has_cgroup_v1() else "v2"


def cgroup_controllers() -> set[str]:
    """The cgroup controllers that a cluster can use: of v2 where that is all there is, else of v1."""
    of_v1, found = has_cgroup_v1(), set[str]()
    for hierarchy in cgroups.mounted():
        if of_v1:
            found |= {name for name in hierarchy.options.split(",") if name and not name.startswith("name=")}
        elif hierarchy.mount_point == Path("/sys/fs/cgroup"):
            found |= {*(hierarchy.mount_point / "cgroup.controllers").read_text("utf-8").split()}
    return found


def held_back_controllers() -> list[str]:
    """The controllers of cgroup v2 that no group can have, as ours is not the root, and holds processes itself.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#no-internal-process-constraint
    """
    root = Path("/sys/fs/cgroup")
    if has_cgroup_v1() or not (root / "cgroup.type").exists() or not (root / "cgroup.procs").read_text("utf-8").strip():
        return []
    return sorted(cgroup_controllers() - {*(root / "cgroup.subtree_control").read_text("utf-8").split()})


def has_filesystem(name: str) -> bool | None:
    """Whether the kernel has it, or a module of it; None when that cannot be told."""
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text("utf-8").splitlines()}
    return True if name in known else has_module(name, f"CONFIG_{name.upper()}_FS")


def has_module(name: str, option: str) -> bool | None:
    """Whether the kernel has it, or a module of it that whoever asks for it gets loaded; None when that cannot be told.

    `option` is what it is called in the kernel's configuration. Loads nothing.
    """
    modules = Path("/lib/modules", os.uname().release)
    files = (modules / "modules.dep", modules / "modules.builtin")
    lists = [path.read_text("utf-8") for path in files if path.exists()]
    if Path("/sys/module", name).exists() or any(f"/{name}.ko" in text for text in lists):
        return True
    config = _kernel_config()
    if f"\n{option}=y\n" in config:
        return True
    return False if lists or config else None


def _kernel_config() -> str:
    """The configuration that the kernel was built with, where it says."""
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{os.uname().release}").read_text("utf-8")
    except OSError:
        return ""


def has_ipvs() -> bool:
    """Whether the kernel has IPVS, or a module of it that whoever asks for it gets loaded. We load nothing."""
    return Path("/proc/net/ip_vs").exists() or has_module("ip_vs", "CONFIG_IP_VS") is True


def available_memory() -> int:
    """The MiB of memory that programs can still have."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def free_disk(path: Path) -> int:
    """The MiB that are free where `path` is, or will be."""
    there = next(p for p in (path, *path.parents) if p.exists())
    return shutil.disk_usage(there).free // 2**20


# iptables


def iptables() -> tuple[str, str]:
    """Which iptables the host uses, and so does all of a cluster: ("nft" or "legacy", its version), ("", "") for none.

    iptables(8) is one of two programs, which keep their rules apart; since 1.8 its version says which.
    """
    try:
        command = ["env", f"PATH={SYSTEM_PATH}", "iptables", "--version"]
        said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return "", ""
    version = re.search(r"v([\d.]+)", said)
    return "nft" if "(nf_tables)" in said else "legacy", version[1] if version else "?"


# Of legacy only what is there already is asked for: asking makes the kernel have the table.
_OTHER_RULES = {
    "nft": "for table in $(cat /proc/net/ip_tables_names); do iptables-legacy-save -t $table; done",
    "legacy": "iptables-nft-save 2>/dev/null",
}


def rules_of_the_other(machine: Machine, kind: str) -> int | None:
    """How many rules the iptables that is not of this kind has on the machine; None when that cannot be told."""
    try:
        return run(machine, "sh", "-c", _OTHER_RULES[kind], timeout=5).count("\n-A ")
    except DmucError:
        return None


def facts(context: Context) -> dict[str, bool]:
    """Give every fact that a step of the tour can depend on, by name."""
    return {"swap": has_swap(), "insecure_port": context.release.insecure_port}
