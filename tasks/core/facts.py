"""What this host is like: found out here and only here, each fact with its source. What is done about it is decided by
the component that the fact is about.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import cgroups
from .errors import DmucError
from .machine import SYSTEM_PATH, Machine, run

_CAPABILITIES = {  # <linux/capability.h>: those of which root in a container may have to do without
    "net_admin": 12,
    "net_raw": 13,
    "sys_chroot": 18,
    "sys_admin": 21,
    "sys_resource": 24,
    "mknod": 27,
}


@dataclass(frozen=True)
class HostFacts:
    """The facts about one host, each read once, when it is first asked for, from the files below `root`."""

    root: Path = Path("/")
    path: str = SYSTEM_PATH  # where programs are looked for

    def _read(self, file: str) -> str:
        return (self.root / file).read_text(encoding="utf-8", errors="replace")

    def _there(self, file: str) -> bool:
        return (self.root / file).exists()

    # What we may do

    @cached_property
    def lacking_capabilities(self) -> Sequence[str]:
        """The capabilities (capabilities(7)) that a cluster, or some of it, needs and this process does not have."""
        effective = 0
        for line in self._read("proc/self/status").splitlines():
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
        return [name for name, bit in _CAPABILITIES.items() if not effective & (1 << bit)]

    @property
    def may_lower_oom_score(self) -> bool:
        """Whether there is CAP_SYS_RESOURCE: without it nothing may lower its oom_score_adj."""
        return "sys_resource" not in self.lacking_capabilities

    # The kernel

    @cached_property
    def has_swap(self) -> bool:
        """Whether the host swaps (/proc/swaps)."""
        return len(self._read("proc/swaps").splitlines()) > 1

    @cached_property
    def _hierarchies(self) -> Sequence[cgroups.Hierarchy]:
        return cgroups.hierarchies(self._read("proc/self/mountinfo"))

    @property
    def has_cgroup_v1(self) -> bool:
        """Whether the cgroups are of version 1, or of both versions: the kubelet looks at /sys/fs/cgroup to tell."""
        return not any(h.is_v2 and h.mount_point == Path("/sys/fs/cgroup") for h in self._hierarchies)

    @property
    def cgroup_version(self) -> str:
        """The version of the cgroups: "v1", "v2", "hybrid" (v1, and v2 without controllers beside it), or ""."""
        kinds = {hierarchy.is_v2 for hierarchy in self._hierarchies}
        if not kinds:
            return ""
        return "v1" if kinds == {False} else "hybrid" if self.has_cgroup_v1 else "v2"

    @cached_property
    def cgroup_controllers(self) -> set[str]:
        """The cgroup controllers that a cluster can use: of v2 where there is only that, else of v1."""
        found = set[str]()
        for hierarchy in self._hierarchies:
            if self.has_cgroup_v1:
                found |= {name for name in hierarchy.options.split(",") if name and not name.startswith("name=")}
            elif hierarchy.mount_point == Path("/sys/fs/cgroup"):
                found |= {*self._read("sys/fs/cgroup/cgroup.controllers").split()}
        return found

    @cached_property
    def undelegated_controllers(self) -> Sequence[str]:
        """The controllers of cgroup v2 that no group can get: the group that we see as the root holds processes itself.

        https://docs.kernel.org/admin-guide/cgroup-v2.html#no-internal-process-constraint
        """
        root = "sys/fs/cgroup"
        is_a_group = not self.has_cgroup_v1 and self._there(f"{root}/cgroup.type")  # which the real root has not
        if not is_a_group or not self._read(f"{root}/cgroup.procs").strip():
            return []
        return sorted(self.cgroup_controllers - {*self._read(f"{root}/cgroup.subtree_control").split()})

    def has_filesystem(self, name: str) -> bool | None:
        """Return whether the kernel has the file system, or a module of it; None when that cannot be told."""
        known = {line.split()[-1] for line in self._read("proc/filesystems").splitlines()}
        return True if name in known else self.has_module(name, f"CONFIG_{name.upper()}_FS")

    def has_module(self, name: str, option: str) -> bool | None:
        """Return whether the kernel has it, or a module of it that is loaded on demand; None when that cannot be told.

        `option` is its name in the kernel's configuration. Nothing is loaded.
        """
        files = [f"lib/modules/{self._kernel}/{file}" for file in ("modules.dep", "modules.builtin")]
        lists = [self._read(file) for file in files if self._there(file)]
        if self._there(f"sys/module/{name}") or any(f"/{name}.ko" in text for text in lists):
            return True
        if f"\n{option}=y\n" in self._kernel_config:
            return True
        return False if lists or self._kernel_config else None

    @cached_property
    def _kernel(self) -> str:
        return self._read("proc/sys/kernel/osrelease").strip()

    @cached_property
    def _kernel_config(self) -> str:
        """The configuration that the kernel was built with; empty where it is not published."""
        import gzip

        try:
            return gzip.decompress((self.root / "proc/config.gz").read_bytes()).decode()
        except OSError:
            pass
        try:
            return self._read(f"boot/config-{self._kernel}")
        except OSError:
            return ""

    @cached_property
    def has_ipvs(self) -> bool:
        """Whether the kernel has IPVS, or a module of it that is loaded on demand. Nothing is loaded."""
        return self._there("proc/net/ip_vs") or self.has_module("ip_vs", "CONFIG_IP_VS") is True

    @property
    def available_memory(self) -> int:
        """The memory that programs can still have, in MiB."""
        found = re.search(r"^MemAvailable: +(\d+) kB", self._read("proc/meminfo"), re.MULTILINE)
        return int(found[1]) // 1024 if found else 0

    def free_disk(self, path: Path) -> int:
        """Return the MiB that are free where `path` is, or will be."""
        there = next(p for p in (path, *path.parents) if p.exists())
        return shutil.disk_usage(there).free // 2**20

    # iptables

    @cached_property
    def iptables(self) -> tuple[str, str]:
        """Which iptables the host uses, and so does the cluster: ("nft" or "legacy", its version); ("", "") for none.

        iptables(8) is one of two programs, which keep their rules apart; since 1.8 its version says which.
        """
        try:
            command = ["env", f"PATH={self.path}", "iptables", "--version"]
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
    """Return how many rules the iptables that is not of this kind has on the machine; None when that cannot be told."""
    try:
        return run(machine, "sh", "-c", _OTHER_RULES[kind], timeout=5).count("\n-A ")
    except DmucError:
        return None
