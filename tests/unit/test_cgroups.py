"""Which cgroup hierarchies there are is read from the kernel's list of mounts; what was put into them can be ended."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core import cgroups
from tasks.core import process as process_module
from tasks.core.cgroups import Hierarchy, hierarchies
from tasks.core.errors import DmucError

# From a Debian 10 with systemd's legacy layout (shortened).
V1 = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
29 22 0:25 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
30 29 0:26 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:10 - cgroup cgroup rw,xattr,name=systemd
33 29 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:13 - cgroup cgroup rw,cpu,cpuacct
34 29 0:30 / /sys/fs/cgroup/cpuset rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,cpuset,clone_children
35 29 0:31 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:15 master:3 - cgroup cgroup rw,memory
"""
# The same with systemd's hybrid layout: one hierarchy more, the unified one, without controllers.
HYBRID = (
    V1
    + """\
31 29 0:27 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:11 - cgroup2 cgroup2 rw,nsdelegate
"""
)
# From a Debian 12.
V2 = """\
24 29 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
29 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
33 24 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
OF_V1 = {"systemd": "name=systemd", "cpu,cpuacct": "cpu,cpuacct", "cpuset": "cpuset", "memory": "memory"}


def found(text: str) -> dict[str, str]:
    return {str(h.mount_point): h.options for h in hierarchies(text)}


# Making them


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with cgroup v2, as far as plain files can be one: what is written to subtree_control stands in it."""
    group = tmp_path / "dmuc-m"
    group.mkdir()
    for directory, passed_on in ((tmp_path, "cpu memory\n"), (group, "")):
        (directory / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        (directory / "cgroup.subtree_control").write_text(passed_on)
        (directory / "cgroup.procs").write_text("")
    monkeypatch.setattr(cgroups, "mounted", lambda: [Hierarchy(tmp_path, "")])
    return tmp_path


def test_in_v2_the_root_passes_on_what_it_did_not(unified: Path) -> None:
    cgroups.make("m")
    assert (unified / "cgroup.subtree_control").read_text() == "+cpuset +io +pids"  # memory and cpu it did
    # Not before its processes have a group below: one that passes controllers on may hold none itself.
    assert (unified / "dmuc-m/cgroup.subtree_control").read_text() == ""


def test_in_v2_what_is_passed_on_already_is_not_touched(unified: Path) -> None:
    everything = "cpuset cpu io memory pids\n"
    (unified / "cgroup.subtree_control").write_text(everything)
    cgroups.make("m")
    assert (unified / "cgroup.subtree_control").read_text() == everything


def test_beside_v1_the_root_of_v2_stays_as_it_is(
    unified: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroups, "mounted", lambda: [Hierarchy(unified, ""), Hierarchy(tmp_path / "v1", "memory")])
    (tmp_path / "v1").mkdir()
    cgroups.make("m")
    assert (unified / "cgroup.subtree_control").read_text() == "cpu memory\n"


def test_in_v2_the_machines_processes_move_down_and_then_its_group_passes_all_on(unified: Path) -> None:
    group = unified / "dmuc-m"
    (group / "cgroup.procs").write_text("17\n")
    cgroups.make_leaves("m")
    assert (group / "daemons/cgroup.procs").read_text() == "17"
    assert (group / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory +pids"
    assert cgroups.mounted()[0].procs("m") == group / "daemons/cgroup.procs"


def test_in_v2_a_group_that_may_not_pass_on_says_so(unified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: Path, text: str, encoding: str) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(DmucError) as error:
        cgroups.make("m")
    assert "enabling the cgroup controllers cpuset, io, pids for" in error.value.tried
    assert error.value.seen == f"{unified}/cgroup.subtree_control: Device or resource busy"
    assert "Move its processes to a group below it" in error.value.do


# Reading them


def test_v1_has_a_hierarchy_for_each_set_of_controllers() -> None:
    assert found(V1) == {f"/sys/fs/cgroup/{name}": options for name, options in OF_V1.items()}
    assert not any(h.is_v2 for h in hierarchies(V1))


def test_the_hybrid_layout_has_the_unified_one_besides() -> None:
    assert found(HYBRID) == found(V1) | {"/sys/fs/cgroup/unified": ""}
    assert [h.mount_point.name for h in hierarchies(HYBRID) if h.is_v2] == ["unified"]


def test_v2_is_one_hierarchy_without_options() -> None:
    assert hierarchies(V2) == [Hierarchy(Path("/sys/fs/cgroup"), "")]
    assert hierarchies(V2)[0].is_v2


def test_without_cgroups_there_is_none() -> None:
    assert hierarchies("28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n") == []
    assert hierarchies("") == []


@pytest.mark.parametrize(
    "again",
    [
        "90 45 0:28 / /run/cilium/cgroupv2 rw,relatime shared:300 - cgroup2 none rw\n",
        "91 45 0:28 / /run/calico/cgroup rw,relatime shared:300 - cgroup2 none rw,nsdelegate\n",
        "92 45 0:28 /system.slice/x /var/lib/lxc/cgroup rw,relatime shared:300 - cgroup2 cgroup2 rw\n",
    ],
)
def test_a_hierarchy_that_is_mounted_twice_is_one(again: str) -> None:
    # Network plugins of a cluster on the host do that. The machine would fail to mount it where the host has it.
    assert found(V2 + again) == {"/sys/fs/cgroup": ""}


def test_this_hosts_own_are_read() -> None:
    kinds = [line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert bool(cgroups.mounted()) is any(kind in {"cgroup", "cgroup2"} for kind in kinds)


# The machine's group in them


def test_in_v2_processes_sit_in_a_group_below() -> None:
    v1, v2 = Hierarchy(Path("/cg/memory"), "memory"), Hierarchy(Path("/cg"), "")
    assert v1.procs("dmuc1").parent == v1.group("dmuc1")
    assert v2.procs("dmuc1").parent.parent == v2.group("dmuc1")
    assert {v1.procs("dmuc1").name, v2.procs("dmuc1").name} == {"cgroup.procs"}


def test_a_new_v1_group_gets_the_processors_and_memory_of_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"cpuset.cpus": "0-1\n", "cpuset.mems": "0\n"}
    group = Hierarchy(tmp_path, "cpuset").group("dmuc1")
    group.mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (group / name).write_text("\n")  # as the kernel makes them
    monkeypatch.setattr(cgroups, "mounted", lambda: [Hierarchy(tmp_path, "cpuset")])
    cgroups.make("dmuc1")
    cgroups.make("dmuc1")  # one that is there already does not matter
    assert {path.name: path.read_text() for path in group.iterdir()} == files


def test_joining_puts_itself_in_and_becomes_the_command(tmp_path: Path) -> None:
    groups = [tmp_path / "a b", tmp_path / "c"]
    done = subprocess.run(
        [*cgroups.joining(groups), "sh", "-c", 'echo "$*"', "sh", "x  y", "--", "z"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "x  y -- z\n"
    assert [group.read_text() for group in groups] == ["0\n", "0\n"]


def test_joining_says_when_it_cannot(tmp_path: Path) -> None:
    done = subprocess.run([*cgroups.joining([tmp_path / "no/where"]), "true"], capture_output=True, check=False)
    assert done.returncode != 0


# Ending what is in them


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A directory that stands for a group with one below it."""
    (tmp_path / "below").mkdir()
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "below/cgroup.procs").write_text("")
    return tmp_path


@pytest.fixture
def sleeping() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_the_processes_in_a_group_and_below_are_found(group: Path) -> None:
    (group / "cgroup.procs").write_text("12\n34\n")
    (group / "below/cgroup.procs").write_text("56\n0\n")  # 0: of another pid namespace
    assert cgroups.pids_in(group) == {12, 34, 56}
    assert cgroups.pids_in(group / "gone") == set()


def test_all_are_killed_and_waited_for(group: Path, sleeping: list[subprocess.Popen[bytes]]) -> None:
    (group / "cgroup.procs").write_text(f"{sleeping[0].pid}\n")
    (group / "below/cgroup.procs").write_text(f"{sleeping[1].pid}\n")
    cgroups.kill_all_in([group])
    assert [process.wait(0.1) for process in sleeping] == [-9, -9]
    cgroups.kill_all_in([group])  # the pids are gone now


def test_those_that_do_not_end_are_named(
    group: Path, sleeping: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (group / "cgroup.procs").write_text("".join(f"{process.pid}\n" for process in sleeping))
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda handle, number: None)  # as where a disk does not answer
    monkeypatch.setattr(process_module, "_KILLED_WITHIN", 0.2)
    with pytest.raises(DmucError) as error:
        cgroups.kill_all_in([group])
    assert all(f"(pid {process.pid})" in error.value.tried for process in sleeping)
    assert "after SIGKILL" in error.value.seen


def test_a_group_is_removed_with_all_below_and_once_more_is_nothing(tmp_path: Path) -> None:
    group = tmp_path / "group"
    (group / "a/b").mkdir(parents=True)
    (group / "c").mkdir()
    cgroups.remove(group)
    assert not group.exists()
    cgroups.remove(group)


def test_a_group_that_is_busy_for_a_moment_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, real = tmp_path / "group", Path.rmdir
    group.mkdir()
    busy = iter([True, True, False])

    def rmdir(path: Path) -> None:
        if next(busy):
            raise OSError(16, "Device or resource busy")
        real(path)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    cgroups.remove(group)
    assert not group.exists()
