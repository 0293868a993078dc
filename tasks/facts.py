"""Facts: what this host and this release are like. They are found out here, and only here; what is done about them
stands with whoever does it.
"""

from __future__ import annotations

import os
from pathlib import Path

from .core import cgroups
from .core.context import Context

_CAP_SYS_RESOURCE = 24  # <linux/capability.h>


def may_lower_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE (capabilities(7)): without, nothing may lower its oom_score_adj."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & (1 << _CAP_SYS_RESOURCE))
    return False


def has_swap() -> bool:
    """Whether the host swaps."""
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


def has_cgroup_v1() -> bool:
    """Whether the host's cgroups are of version 1, or of both: the kubelet takes /sys/fs/cgroup for its answer."""
    return not any(h.is_v2 and h.mount_point == Path("/sys/fs/cgroup") for h in cgroups.mounted())


def has_ipvs() -> bool:
    """Whether the kernel has IPVS, or a module of it that whoever asks for it gets loaded. We load nothing."""
    modules = Path("/lib/modules", os.uname().release)
    lists = [modules / "modules.dep", modules / "modules.builtin"]
    return Path("/proc/net/ip_vs").exists() or any("/ip_vs.ko" in list.read_text() for list in lists if list.exists())


def facts(context: Context) -> dict[str, bool]:
    """Give every fact that a step of the tour can depend on, by name."""
    return {"swap": has_swap(), "insecure_port": context.release.insecure_port}
