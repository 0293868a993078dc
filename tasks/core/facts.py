"""Facts about the host, each with its source. No other module reads them; each component decides what to do about the
facts that concern it.
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

# <linux/capability.h>, from bit 0 on
_CAPABILITIES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read"),
    *("perfmon", "bpf", "checkpoint_restore"),
)
# Those that some component needs, and that root in a container may lack.
NEEDED_CAPABILITIES = {"net_admin", "net_raw", "sys_chroot", "sys_admin", "sys_resource", "mknod"}


@dataclass(frozen=True)
class HostFacts:
    """The facts about one host. Each is read at its first use, from the files below `root`, and then kept."""

    root: Path = Path("/")
    path: str = SYSTEM_PATH  # the PATH in which programs are searched

    def _read(self, file: str) -> str:
        return (self.root / file).read_text(encoding="utf-8", errors="replace")

    def _there(self, file: str) -> bool:
        return (self.root / file).exists()

    # Capabilities

    @cached_property
    def lacking_capabilities(self) -> Sequence[str]:
        """The capabilities (capabilities(7)) that this kernel has, and this process does not."""
        effective = 0
        for line in self._read("proc/self/status").splitlines():
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
        known = _CAPABILITIES[: int(self._read("proc/sys/kernel/cap_last_cap")) + 1]
        return [name for bit, name in enumerate(known) if not effective & (1 << bit)]

    @property
    def may_lower_oom_score(self) -> bool:
        """Whether this process has CAP_SYS_RESOURCE, without which no process can lower its oom_score_adj."""
        return "sys_resource" not in self.lacking_capabilities

    # The kernel

    @cached_property
    def has_swap(self) -> bool:
        """Whether the host has swap (/proc/swaps)."""
        return len(self._read("proc/swaps").splitlines()) > 1

    @cached_property
    def _hierarchies(self) -> Sequence[cgroups.Hierarchy]:
        return cgroups.hierarchies(self._read("proc/self/mountinfo"))

    @property
    def has_cgroup_v1(self) -> bool:
        """Whether cgroup v1 is in use, alone or with v2. Like the kubelet, look at the type of /sys/fs/cgroup."""
        return not any(h.is_v2 and h.mount_point == Path("/sys/fs/cgroup") for h in self._hierarchies)

    @property
    def cgroup_version(self) -> str:
        """The cgroup version: "v1", "v2", "hybrid" (v1, and beside it v2 without controllers), or "" for none."""
        kinds = {hierarchy.is_v2 for hierarchy in self._hierarchies}
        if not kinds:
            return ""
        return "v1" if kinds == {False} else "hybrid" if self.has_cgroup_v1 else "v2"

    @cached_property
    def cgroup_controllers(self) -> set[str]:
        """The cgroup controllers that a cluster can use: those of v2 where there is only v2, else those of v1."""
        found = set[str]()
        for hierarchy in self._hierarchies:
            if self.has_cgroup_v1:
                found |= {name for name in hierarchy.options.split(",") if name and not name.startswith("name=")}
            elif hierarchy.mount_point == Path("/sys/fs/cgroup"):
                found |= {*self._read("sys/fs/cgroup/cgroup.controllers").split()}
        return found

    @cached_property
    def undelegated_controllers(self) -> Sequence[str]:
        """The controllers of cgroup v2 that cannot be delegated, because the cgroup seen as the root holds processes.

        https://docs.kernel.org/admin-guide/cgroup-v2.html#no-internal-process-constraint
        """
        root = "sys/fs/cgroup"
        is_a_group = not self.has_cgroup_v1 and self._there(f"{root}/cgroup.type")  # the real root lacks this file
        if not is_a_group or not self._read(f"{root}/cgroup.procs").strip():
            return []
        return sorted(self.cgroup_controllers - {*self._read(f"{root}/cgroup.subtree_control").split()})

    def has_filesystem(self, name: str) -> bool | None:
        """Return whether the kernel supports the file system, built in or as a module; None when unknown."""
        known = {line.split()[-1] for line in self._read("proc/filesystems").splitlines()}
        return True if name in known else self.has_module(name, f"CONFIG_{name.upper()}_FS")

    def has_module(self, name: str, option: str) -> bool | None:
        """Return whether the kernel has the module `name`, built in or loadable on demand; None when unknown.

        `option` is the name of the feature in the kernel's configuration. No module is loaded.
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
        """The configuration that the kernel was built with; an empty text where it is not available."""
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
        """Whether the kernel has IPVS, built in or as a module that is loaded on demand. No module is loaded."""
        return self._there("proc/net/ip_vs") or self.has_module("ip_vs", "CONFIG_IP_VS") is True

    @property
    def available_memory(self) -> int:
        """The available memory, in MiB."""
        found = re.search(r"^MemAvailable: +(\d+) kB", self._read("proc/meminfo"), re.MULTILINE)
        return int(found[1]) // 1024 if found else 0

    def free_disk(self, path: Path) -> int:
        """Return the free space of the file system of `path`, which need not exist yet, in MiB."""
        there = next(p for p in (path, *path.parents) if p.exists())
        return shutil.disk_usage(there).free // 2**20

    # iptables

    @cached_property
    def iptables(self) -> tuple[str, str]:
        """The iptables of the host, which the cluster uses, too: ("nft" or "legacy", version); ("", "") for none.

        iptables(8) is one of two programs with separate rules; since 1.8 the version says which.
        """
        try:
            command = ["env", f"PATH={self.path}", "iptables", "--version"]
            said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=5).stdout
        except (OSError, subprocess.SubprocessError):
            return "", ""
        version = re.search(r"v([\d.]+)", said)
        return "nft" if "(nf_tables)" in said else "legacy", version[1] if version else "?"


# Of legacy, only existing tables are read, because reading a table creates it.
_OTHER_RULES = {
    "nft": "for table in $(cat /proc/net/ip_tables_names); do iptables-legacy-save -t $table; done",
    "legacy": "iptables-nft-save 2>/dev/null",
}


def rules_of_other_kind(machine: Machine, kind: str) -> int | None:
    """Return how many rules the iptables of the other kind has on the machine; None when unknown."""
    try:
        return run(machine, "sh", "-c", _OTHER_RULES[kind], timeout=5).count("\n-A ")
    except DmucError:
        return None
