"""The machine's cgroups: one cgroup with its name in every mounted hierarchy, of v1 and of v2 (cgroups(7))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DmucError
from .process import kill_all, start_time

_LEAF = "daemons"  # cgroup v2: a cgroup with children may hold no process, so the machine's processes are in this child


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy: `options` are its controllers in v1, and empty in v2 (cgroups(7))."""

    mount_point: Path
    options: str

    @property
    def is_v2(self) -> bool:
        """Whether this is the unified hierarchy of cgroup v2."""
        return not self.options

    def group(self, name: str) -> Path:
        """Return the directory of the cgroup of the machine `name`."""
        return self.mount_point / f"dmuc-{name}"  # the prefix, because a machine may be called docker

    def procs(self, name: str) -> Path:
        """Return the file of the machine's cgroup to which a process writes its pid to join."""
        return self.group(name) / (_LEAF if self.is_v2 else "") / "cgroup.procs"


def mounted() -> list[Hierarchy]:
    """Return the cgroup hierarchies that are mounted on this host."""
    return hierarchies(Path("/proc/self/mountinfo").read_text("utf-8", "replace"))


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Return the cgroup hierarchies in `mountinfo`, the text of /proc/self/mountinfo (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, super_options = after.split(" ", 2)
        mount_point = Path(before.split()[4])
        # Network plugins and containers mount some hierarchies a second time, elsewhere.
        if kind in {"cgroup", "cgroup2"} and mount_point.is_relative_to("/sys/fs/cgroup"):
            options = [o for o in super_options.split(",") if o not in {"rw", "ro", "xattr", "clone_children"}]
            found.append(Hierarchy(mount_point, "" if kind == "cgroup2" else ",".join(options)))
    return found


def make(name: str) -> None:
    """Create the cgroup of the machine `name` in every hierarchy, such that processes can join it."""
    there = mounted()
    for hierarchy in there:
        group = hierarchy.group(name)
        group.mkdir(exist_ok=True)
        if hierarchy.is_v2 and len(there) == 1:  # in a hybrid setup the controllers are in v1
            enable_controllers(hierarchy.mount_point)  # systemd has enabled some of them
        for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: empty in a new cgroup, which then cannot hold a process
            if not hierarchy.is_v2 and (group / setting).exists():
                (group / setting).write_bytes((group.parent / setting).read_bytes())


def make_leaves(name: str) -> None:
    """Move the processes of the machine's cgroup into a child, and enable all controllers (cgroup v2 only).

    The cgroup must be the root of the machine's cgroup namespace already. Raise DmucError when the kernel refuses.
    """
    for group in (h.group(name) for h in mounted() if h.is_v2):
        (group / _LEAF).mkdir(exist_ok=True)
        _empty(group)


def _empty(group: Path) -> None:
    """Move the processes of the group into its child until the kernel enables the controllers, for up to 10 s.

    A process that is started meanwhile is in the group again, and one that has just ended is in it until its parent
    has noticed.
    """
    import tenacity

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(DmucError),
        wait=tenacity.wait_fixed(0.01),
        stop=tenacity.stop_after_delay(10),
        reraise=True,
    )
    def attempt() -> None:
        for pid in (group / "cgroup.procs").read_text("utf-8").split():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                (group / _LEAF / "cgroup.procs").write_text(pid, "utf-8")
        enable_controllers(group)

    attempt()


def enable_controllers(group: Path) -> None:
    """Enable every controller of this cgroup for its children (cgroup v2). Raise DmucError when the kernel refuses.

    Controllers are never disabled again, because another program may depend on them.
    https://docs.kernel.org/admin-guide/cgroup-v2.html#controlling-controllers
    """
    control = group / "cgroup.subtree_control"
    available = (group / "cgroup.controllers").read_text("utf-8").split()
    lacking = sorted({*available} - {*control.read_text("utf-8").split()})
    try:
        if lacking:
            control.write_text(" ".join(f"+{controller}" for controller in lacking), "utf-8")
    except OSError as error:
        raise DmucError(
            f"enabling the cgroup controllers {', '.join(lacking)} for the groups below {group}",
            f"{control}: {error.strerror}",
            "In a container, controllers can be enabled only if the container's own group has no processes in it.\n"
            "Move its processes to a group below it.",
        ) from None


def joining(groups: Iterable[Path]) -> Sequence[str]:
    """Return a command prefix that joins these cgroups first: nsenter and unshare enter namespaces, not cgroups."""
    script = 'while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift; exec "$@"'
    return ("sh", "-euc", script, "sh", *map(str, groups), "--")


def pids_in(group: Path) -> set[int]:
    """Return the pids of all processes in a cgroup and the cgroups below it."""
    pids: set[int] = set()
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            pids |= {int(p) for p in Path(directory, "cgroup.procs").read_text("utf-8").split()}
    return pids - {0}


def kill_all_in(groups: Sequence[Path]) -> None:
    """SIGKILL every process in these cgroups until none is left (a killed process leaves only when it is reaped).

    Raise DmucError when some processes do not end.
    """

    def there() -> dict[int, int]:
        started = {pid: start_time(pid) for group in groups for pid in pids_in(group)}
        return {pid: time for pid, time in started.items() if time is not None}

    kill_all(there)


def remove(group: Path) -> None:
    """Remove a cgroup and all cgroups below it, bottom up; try for 10 s, as the kernel frees them with a delay."""
    import tenacity

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(OSError),
        wait=tenacity.wait_fixed(0.01),
        stop=tenacity.stop_after_delay(10),
        reraise=True,
    )
    def attempt() -> None:
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                Path(directory).rmdir()

    attempt()
