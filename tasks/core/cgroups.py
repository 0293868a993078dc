"""The machine's cgroups: one group by its name in every mounted hierarchy, v1 and v2 alike (cgroups(7))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DmucError
from .process import kill_all, start_time

_LEAF = "daemons"  # in cgroup v2 a group with groups below it may hold no process itself: ours sit in this one


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy: `options` are its v1 controllers, none for v2 (cgroups(7))."""

    mount_point: Path
    options: str

    @property
    def is_v2(self) -> bool:
        """Whether this is the unified hierarchy."""
        return not self.options

    def group(self, name: str) -> Path:
        """The directory of the machine's own group."""
        return self.mount_point / f"dmuc-{name}"  # a machine may be called docker, and so may somebody's group

    def procs(self, name: str) -> Path:
        """The file that a process is put into the machine's group with."""
        return self.group(name) / (_LEAF if self.is_v2 else "") / "cgroup.procs"


def mounted() -> list[Hierarchy]:
    """Give the hierarchies that are mounted here."""
    return hierarchies(Path("/proc/self/mountinfo").read_text("utf-8", "replace"))


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Find the cgroup hierarchies in the text of /proc/self/mountinfo (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, super_options = after.split(" ", 2)
        mount_point = Path(before.split()[4])
        # Network plugins and containers mount some of them again elsewhere.
        if kind in {"cgroup", "cgroup2"} and mount_point.is_relative_to("/sys/fs/cgroup"):
            options = [o for o in super_options.split(",") if o not in {"rw", "ro", "xattr", "clone_children"}]
            found.append(Hierarchy(mount_point, "" if kind == "cgroup2" else ",".join(options)))
    return found


def make(name: str) -> None:
    """Make the group `name` in every hierarchy, ready to take processes."""
    there = mounted()
    for hierarchy in there:
        group = hierarchy.group(name)
        group.mkdir(exist_ok=True)
        if hierarchy.is_v2 and len(there) == 1:  # beside v1 nobody looks for controllers in it
            pass_on(hierarchy.mount_point)  # systemd has done so with some
        for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: empty in a new group, and then nothing may run in it
            if not hierarchy.is_v2 and (group / setting).exists():
                (group / setting).write_bytes((group.parent / setting).read_bytes())


def make_leaves(name: str) -> None:
    """v2: now that the group is the root of what the machine sees, move its processes down and turn the rest on."""
    for group in (h.group(name) for h in mounted() if h.is_v2):
        (group / _LEAF).mkdir(exist_ok=True)
        for pid in (group / "cgroup.procs").read_text("utf-8").split():
            (group / _LEAF / "cgroup.procs").write_text(pid, "utf-8")
        pass_on(group)


def pass_on(group: Path) -> None:
    """v2: have the groups below this one get every controller that it has itself. Raises DmucError when it may not.

    Those that another has turned on stay as they are; none is turned off again: who else relies on it cannot be told.
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
    """A command prefix that puts itself into these cgroups first: nsenter and unshare enter namespaces, not cgroups."""
    script = 'while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift; exec "$@"'
    return ("sh", "-euc", script, "sh", *map(str, groups), "--")


def pids_in(group: Path) -> set[int]:
    """Give the processes in a group and all below it."""
    pids: set[int] = set()
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            pids |= {int(p) for p in Path(directory, "cgroup.procs").read_text("utf-8").split()}
    return pids - {0}


def kill_all_in(groups: Sequence[Path]) -> None:
    """SIGKILL every process in these cgroups until none is left (a killed one leaves only when it is reaped).

    Raises DmucError when some do not end.
    """

    def there() -> dict[int, int]:
        started = {pid: start_time(pid) for group in groups for pid in pids_in(group)}
        return {pid: time for pid, time in started.items() if time is not None}

    kill_all(there)


def remove(group: Path) -> None:
    """Remove a cgroup and all below it, bottom up; the kernel may need a moment after the last process is gone."""
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
