"""A host for the end-to-end tests alone, made of namespaces: what other programs do on the real one is not seen there.

    python -m tests.e2e.own_host tests/e2e [ARGUMENT OF PYTEST ...]
    python -m tests.e2e.own_host --prepare    only have what the tests need installed, and in the cache

This host has its own processes, links, mounts, IPC and cgroups. /tmp, /var/tmp, /run, /dev/shm and the checkout's var/
are empty at first. The other directories are overlays on the real ones: their upper layers hold all that was written on
this host, and nothing that other programs write on the real one. The cache is the real one. When the command has ended,
nothing is left: processes, links and mounts end with the namespaces, files with a directory in the real var/.

What no namespace holds is the real host's: the kernel's modules, loop devices, swap, most of /proc/sys outside of net/.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.core import cgroups
from tasks.core.settings import Settings
from tests.e2e.host_picture import Layer

ROOT = Path(__file__).parents[2]
VAR = ROOT / "var"
CACHE = Path(os.environ.get("DMUC_CACHE") or Settings().cache)
OWN = Path("/run/own-host")  # exists there only: the layers
EMPTY = {Path("/tmp"): 0o1777, Path("/var/tmp"): 0o1777, Path("/run"): 0o755, Path("/dev/shm"): 0o1777}
_OVERLAID = [Path("/", name) for name in ("etc", "usr", "var", "opt", "root", "home", "srv", "dev")]
LAYERS = [
    Layer(directory, OWN / "upper" / str(number), OWN / "lower" / str(number))
    for number, directory in enumerate([*filter(Path.is_dir, _OVERLAID), ROOT])
]
_INSIDE = "--inside"
# The cgroup namespace comes later: its root is the group in which the process is by then.
_UNSHARE = ("unshare", "--mount", "--uts", "--net", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child")


def is_here() -> bool:
    """Whether this process runs on a host of its own."""
    return OWN.is_dir()


def run(command: Sequence[str]) -> int:
    """Run a command on a host of its own, in the checkout, and return its exit status. Needs root."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, lambda number, _: None)  # a terminal sends it to the command too, which then ends
    VAR.mkdir(exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    remove_left_behind()
    name = f"tests-{os.getpid()}"
    groups = [hierarchy.group(name) for hierarchy in cgroups.mounted()]
    with tempfile.TemporaryDirectory(prefix=f"own-host-{os.getpid()}-", dir=VAR) as disk:
        joining = cgroups.joining(group / "cgroup.procs" for group in groups)
        inside = (sys.executable, "-m", "tests.e2e.own_host", _INSIDE, disk, *command)
        try:
            cgroups.make(name)
            with subprocess.Popen([*_UNSHARE, *joining, "unshare", "--cgroup", *inside], cwd=ROOT) as process:
                try:
                    return process.wait()
                finally:
                    process.kill()  # and with it all that runs there, see --kill-child
        finally:
            for group in groups:
                cgroups.remove(group)


def remove_left_behind() -> None:
    """Remove what a killed run has left: processes and cgroups named after its pid, and the layers in this checkout."""
    for hierarchy in cgroups.mounted():
        for group in filter(_is_left_behind, hierarchy.mount_point.glob("dmuc-tests-*")):
            cgroups.kill_all_in([group])
            cgroups.remove(group)
    for disk in VAR.glob("own-host-*-*"):
        if _is_left_behind(Path(disk.name.rpartition("-")[0])):
            shutil.rmtree(disk)


def _is_left_behind(named: Path) -> bool:
    return not Path("/proc", named.name.rpartition("-")[2]).exists()


def _become(disk: str, command: Sequence[str]) -> None:
    """As the first process in the namespaces, mount what this host has; then become the command."""
    os.chdir(disk)  # sources of mounts are named relative to it: soon its path leads elsewhere
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", _new("own"))
    os.chdir("own")
    for name in ("upper", "work", "lower"):
        _new(name)
    # What the real host has, before anything is mounted over it.
    for layer in LAYERS:
        _mount("--bind", str(layer.directory), _new(str(layer.lower.relative_to(OWN))))
    _mount("--bind", str(CACHE), _new("cache"))
    # Each over what it is in: an empty /var/tmp over /var, the checkout over either.
    *overlaid, checkout = LAYERS
    for layer in overlaid:
        _overlay(layer)
    for number, (directory, mode) in enumerate(EMPTY.items()):
        _mount("--bind", _new(f"../{number}"), str(directory))
        directory.chmod(mode)
    _overlay(checkout)
    _mount("--bind", _new("../var"), str(VAR))
    CACHE.mkdir(parents=True, exist_ok=True)
    _mount("--bind", "cache", str(CACHE))
    for directory in (OWN, Path("/run/lock"), Path("/run/mount")):  # the latter two are on any host
        directory.mkdir()
    _mount("--rbind", ".", str(OWN))
    _mount("-t", "devpts", "-o", "ptmxmode=666", "devpts", "/dev/pts")
    _mount_cgroups(cgroups.mounted())
    # A default route, from which the API server takes its own address; what is sent there fails at once.
    _ip("link set lo up", "address add 192.0.2.2/32 dev lo", "route add default dev lo")
    _ip("rule add pref 100 lookup main suppress_prefixlength 0", "rule add pref 200 unreachable")
    os.chdir(ROOT)
    os.execvp("sh", ["sh", "-c", '"$@"; exit $?', "sh", *command])  # a shell takes in orphans, as a first process must


def _mount_cgroups(hierarchies: Sequence[cgroups.Hierarchy]) -> None:
    subprocess.run(["umount", "--no-mtab", "--recursive", "/sys"], check=True)
    _mount("-t", "sysfs", "sysfs", "/sys")  # which shows the links of the network namespace that it is mounted in
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup")
    for hierarchy in hierarchies:
        kind = ["cgroup2"] if hierarchy.is_v2 else ["cgroup", "-o", hierarchy.options]
        hierarchy.mount_point.mkdir(exist_ok=True)
        _mount("-t", *kind, "cgroup", str(hierarchy.mount_point))
        if hierarchy.is_v2:  # whose groups have controllers only if the group above them has no process
            _new(str(hierarchy.mount_point / "tests"))
            (hierarchy.mount_point / "tests" / "cgroup.procs").write_text(str(os.getpid()))


def _overlay(layer: Layer) -> None:
    lower, upper = (str(path.relative_to(OWN)) for path in (layer.lower, layer.upper))
    work = _new(f"work/{Path(upper).name}")
    layer.directory.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={_new(upper)},workdir={work}"
    _mount("-t", "overlay", "-o", options, "overlay", str(layer.directory))
    shutil.copystat(lower, layer.directory)  # what it has is the upper layer's
    os.chown(layer.directory, Path(lower).stat().st_uid, Path(lower).stat().st_gid)


def _new(directory: str) -> str:
    Path(directory).mkdir()
    return directory


def _mount(*words: str) -> None:
    subprocess.run(["mount", "--no-canonicalize", "--no-mtab", *words], check=True)


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def main(arguments: Sequence[str]) -> int:
    """Run pytest there. What the end-to-end tests install or put into the cache, the real host has by then."""
    if arguments[:1] == [_INSIDE]:
        _become(arguments[1], arguments[2:])
    only_prepare = list(arguments) == ["--prepare"]
    pytest = [sys.executable, "-m", "pytest", *arguments]
    if os.geteuid() != 0:  # the tests say themselves that they need root
        return 0 if only_prepare else subprocess.run(pytest, check=False).returncode
    from tests.e2e.conftest import prepare

    prepare(long="long" in arguments)  # as in: -m long
    return 0 if only_prepare else run(pytest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
