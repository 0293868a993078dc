"""The root file system of a machine: which directories have a layer of their own, and what is handed in as it is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core import hand_in, mounts
from tasks.core.mounts import KEPT, TOP, Mount, Plan, layer, make, plan
from tests.unit.private_host import on_a_private_host


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's file system, with a checkout and its state in it."""
    top = tmp_path / "host"
    for name in ("etc", "usr/bin", "tmp", "proc", "home/ada/docs", "home/ada/it's, mine", "home/eve", "lost+found"):
        (top / name).mkdir(parents=True)
    (top / "home/ada/dmuc/var/one").mkdir(parents=True)
    (top / "bin").symlink_to("usr/bin")
    (top / "home/ada/.bashrc").write_text("alias ll='ls -l'\n")
    (top / "home/ada/disk.img").write_bytes(bytes(mounts._LARGE + 1))
    return top


def names(paths: list[Path], top: Path) -> list[str]:
    return [f"/{path.relative_to(top)}" for path in paths]


def test_each_directory_has_a_layer_and_those_above_the_state_are_plain(host: Path) -> None:
    checkout = host / "home/ada/dmuc"
    found = plan(checkout / "var/one", [checkout], [], host)
    assert names(found.overlays, host) == ["/etc", "/home/ada/docs", "/home/ada/it's, mine", "/home/eve", "/usr"]
    assert names(found.plain, host) == ["/.", "/home", "/home/ada", "/home/ada/dmuc"]
    assert names(found.links, host) == ["/bin"]
    assert names(found.copies, host) == ["/home/ada/.bashrc"]
    assert names(found.read_only, host) == ["/home/ada/disk.img"]


def test_a_checkout_on_its_way_to_nothing_else_leaves_its_directory_a_layer(host: Path, tmp_path: Path) -> None:
    state = tmp_path / "elsewhere" / "state"
    state.mkdir(parents=True)
    found = plan(state, [host / "home/ada/dmuc"], [], host)
    assert names(found.overlays, host) == ["/etc", "/home", "/usr"]


def test_a_file_system_of_its_own_has_a_layer_of_its_own(host: Path) -> None:
    checkout = host / "home/ada/dmuc"
    points = [
        Mount(host / "usr/bin", "ext4"),
        Mount(host / "home/ada/dmuc/var", "ext4"),
        Mount(host / "tmp/x", "ext4"),
        Mount(host / "etc", "proc"),
        Mount(host / "home/ada/.bashrc", "ext4"),
    ]
    found = plan(checkout / "var/one", [checkout], points, host)
    assert host / "usr/bin" in found.overlays and found.overlays.index(host / "usr") < found.overlays.index(
        host / "usr/bin"
    )
    assert not any(path.is_relative_to(checkout) or path.is_relative_to(host / "tmp") for path in found.overlays)


@pytest.mark.parametrize("disk", ["home/ada", "home"])
def test_a_home_on_a_disk_of_its_own_is_whole(host: Path, monkeypatch: pytest.MonkeyPatch, disk: str) -> None:
    checkout, real = host / "home/ada/dmuc", Path.lstat

    def lstat(path: Path) -> os.stat_result:
        status = [*real(path)]
        status[stat.ST_DEV] += path.is_relative_to(host / disk)
        return os.stat_result(status)

    monkeypatch.setattr(Path, "lstat", lstat)
    found = plan(checkout / "var/one", [checkout], [Mount(host / disk, "ext4")], host)
    # No overlay covers a directory that must be there for others: /home would hide what is in /home/ada.
    assert names(found.overlays, host) == ["/etc", "/home/ada/docs", "/home/ada/it's, mine", "/home/eve", "/usr"]
    assert names(found.copies, host) == ["/home/ada/.bashrc"]


def test_a_state_outside_of_the_checkout_is_handed_in_too(host: Path) -> None:
    state = host / "home/eve/var/one"
    (state / "pki").mkdir(parents=True)
    (state / "pki/ca.key").write_text("secret")
    (state / "settings.json").write_text("{}")
    found = plan(state, [host / "home/ada/dmuc"], [], host)
    assert names(found.plain, host) == ["/.", "/home", "/home/eve", "/home/eve/var", "/home/eve/var/one"]
    assert names(found.overlays, host) == ["/etc", "/home/ada", "/usr"]
    assert not found.copies


@pytest.mark.parametrize(
    ("path", "lacks"),
    [
        ("/", "/proc"),
        ("/proc", "/proc"),
        ("/sys/fs/cgroup", "/sys/fs/cgroup"),
        ("/proc/self/environ", None),
        ("/dev", "/dev/pts"),
        ("/run", "/run"),
        ("/var/run", "/run"),
        ("/etc", "/etc/hosts"),
        ("/etc/../etc", "/etc/hosts"),
        ("/var/lib", "/var/lib/kubelet"),
        ("/var/lib/kubelet", "/var/lib/kubelet"),
        *((path, "") for path in ("/srv", "/tmp", "/etc/apt", "/run/x", "/dev/shm/x", "/var/lib/kubelets", "/procs")),
    ],
)
def test_what_the_machine_needs_for_itself_cannot_be_the_hosts(path: str, lacks: str | None) -> None:
    found = mounts.hidden_by(Path(path), ["/var/lib/kubelet"])
    assert found == lacks if lacks is not None else found.startswith("/proc/")


def test_file_systems_on_a_network_are_not_looked_at(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = host / "home/ada/dmuc"
    (host / "mnt/nas/films").mkdir(parents=True)
    (host / "data").mkdir()
    real, away = Path.lstat, (host / "data", host / "mnt/nas")
    monkeypatch.setattr(Path, "lstat", lambda path: pytest.fail("it hangs") if path in away else real(path))
    points = [Mount(host / "data", "nfs4"), Mount(host / "mnt/nas", "fuse.sshfs"), Mount(away[1] / "films", "ext4")]
    found = plan(checkout / "var/one", [checkout], points, host)
    assert host / "mnt" in found.overlays
    assert not any(path.is_relative_to(one) for path in found.overlays for one in away)


def test_layers_have_plain_names_which_differ() -> None:
    odd = [Path("/a b"), Path("/a,b"), Path("/a:b"), Path("/a\\b"), Path("/é"), Path("/a/b"), Path("/a-b")]
    found = [layer(path) for path in odd]
    assert len({*found}) == len(odd)
    assert all(name.isascii() and not {*name} & {*" ,:\\/"} for name in found)


def test_what_the_machine_has_written_is_kept_when_it_is_made_again(host: Path) -> None:
    checkout = host / "home/ada/dmuc"
    state = checkout / "var/one"
    (host / "etc").chmod(0o750)
    for _ in range(2):
        found = plan(state, [checkout], [], host)
        make(state, Plan([host / "home/ada"], [host / "etc"], [host / "bin"], [host / "home/ada/.bashrc"], []))
        assert found
        mine = Path(f"{state / TOP}{host / 'home/ada/.bashrc'}")
        upper = state / KEPT / layer(host / "etc") / "upper"
        if not (upper / "new").exists():
            assert mine.read_text() == "alias ll='ls -l'\n"
            mine.write_text("changed\n")
            (upper / "new").touch()
    assert mine.read_text() == "changed\n"
    assert upper.stat().st_mode & 0o777 == 0o750
    assert Path(f"{state / TOP}{host / 'bin'}").is_symlink()
    assert (state / TOP / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_mounts_are_read_with_any_name(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_bytes(
        b"36 35 98:0 / /mnt/a\\040b\\011c rw master:1 - ext4 /dev/x rw\n37 35 0:1 / /\xff rw - tmpfs x rw\n"
    )
    assert mounts.mounted(file) == [Mount(Path("/mnt/a b\tc"), "ext4"), Mount(Path("/\udcff"), "tmpfs")]


@on_a_private_host
def test_files_and_directories_are_handed_in_with_what_is_mounted_in_them(tmp_path: Path) -> None:
    odd = tmp_path / "it's a, dir"
    (odd / "disk").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", odd / "disk"], check=True)
    (odd / "disk/file").write_text("here\n")
    program = tmp_path / "program"
    program.write_text("one\n")
    hide = f"mount --make-rprivate /; mount -t tmpfs tmpfs '{tmp_path}'; echo up; exec sleep 60"
    with subprocess.Popen(["unshare", "--mount", "sh", "-euc", hide], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"up\n"
        seen = Path(f"/proc/{other.pid}/root{tmp_path}")
        assert not list(seen.iterdir())
        command = [sys.executable, "-I", "-S", hand_in.__file__, str(other.pid)]
        subprocess.run([*command, odd, program], check=True)
        assert (seen / odd.name / "disk/file").read_text() == "here\n"
        assert (seen / "program").read_text() == "one\n"
        # Another file in its place, as a build makes it.
        program.unlink()
        program.write_text("two\n")
        subprocess.run([*command, program], check=True)
        assert (seen / "program").read_text() == "two\n"
        # What is mounted there stays there.
        subprocess.run(["nsenter", "-t", str(other.pid), "-m", "mount", "-t", "tmpfs", "x", odd / "disk"], check=True)
        assert (odd / "disk/file").exists()
        missing = subprocess.run([*command, tmp_path / "nosuch"], capture_output=True, text=True, check=False)
        assert missing.returncode == 1 and missing.stderr == f"{tmp_path}/nosuch: No such file or directory\n"
        other.kill()
    assert os.path.ismount(odd / "disk")
