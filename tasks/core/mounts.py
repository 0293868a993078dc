"""The root file system of a machine: every directory of the host, but what is written there is the machine's own.

For each directory at the top of the host there is an overlay (overlayfs): the lower layer is the host's directory, and
the upper one is below the cluster's state. So `down` keeps what Pods and people have written, and `clean` removes it.

The kernel refuses an overlay whose upper layer lies below its lower one. So the directories above the state are plain
ones in the machine, and what else is in them has an overlay each. /tmp is empty at first; /run, /proc, /sys and /dev
are made by the machine's first process (namespaces.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Not the host's: at the top of the file system, made at each power-on, or empty at first.
OWN = ("proc", "sys", "dev", "run", "tmp")
_OF_THE_KERNEL = ("/proc", "/sys")  # each machine's own view: nothing of the host's can be in it
_NEEDED = (*_OF_THE_KERNEL, "/dev/pts", "/run", "/etc/hosts")  # the machine does not work without its own
_LEFT_OUT = {*OWN, "lost+found"}
# File systems that are views of the kernel, or are made of other files: no layer of an overlay.
_NO_LAYER = {
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "devtmpfs",
    "mqueue",
    "nsfs",
    "autofs",
    "overlay",
    "squashfs",
}
_NO_LAYER |= {"debugfs", "tracefs", "securityfs", "pstore", "bpf", "configfs", "hugetlbfs", "binfmt_misc", "fusectl"}
# On a network: a server that does not answer would stop whatever looks there. They are in the machine only if shared.
_REMOTE = re.compile(r"nfs\d?|cifs|smb3|fuse.*|9p|ceph|glusterfs|afs")
_LARGE = 1 << 20  # bytes; a larger file beside the state is shown read-only, and not copied
TOP, KEPT = "root/top", "root/kept"  # below the state: the plain directories, and the upper layers


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: Path
    kind: str


def mounted(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """Return the mounted file systems (proc(5))."""
    found = []
    for line in mountinfo.read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        found.append(Mount(Path(point), after.split()[0]))
    return found


@dataclass
class Plan:
    """What the root file system consists of; each path is the same on the host and in the machine."""

    plain: list[Path] = field(default_factory=list)  # directories of the machine alone, below TOP
    overlays: list[Path] = field(default_factory=list)  # a directory after the one that it is in
    links: list[Path] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)  # files in plain directories
    read_only: list[Path] = field(default_factory=list)  # larger ones
    files: list[Path] = field(default_factory=list)  # below /proc and /dev, on which the host has something mounted


def plan(state: Path, as_it_is: Collection[Path], mounts: Sequence[Mount], top: Path = Path("/")) -> Plan:
    """Return the plan for a machine with its state in the directory `state`, which exists.

    The state, and what is in `as_it_is` (the checkout, the cache), will be handed in as they are. `top` is for tests.
    """
    state = state.resolve()
    handed_in = {path.resolve() for path in (*as_it_is, state)}
    remote = {m.point for m in mounts if _REMOTE.fullmatch(m.kind) and not state.is_relative_to(m.point)}
    found = Plan()

    def visit(directory: Path) -> None:
        """Plan a directory above the state: a plain one, and what else is in it."""
        found.plain.append(directory)
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - a Path each would be slower
            path = directory / name
            if path in remote:
                continue
            with contextlib.suppress(FileNotFoundError):  # it is gone meanwhile
                if not (directory == top and name in _LEFT_OUT) and path not in handed_in:
                    place(path, path.lstat())
                elif path in handed_in and path.is_dir():
                    found.plain.append(path)

    def place(path: Path, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            found.links.append(path)
        elif stat.S_ISREG(status.st_mode):
            (found.copies if status.st_size <= _LARGE else found.read_only).append(path)
        elif stat.S_ISDIR(status.st_mode):
            # Also on another disk than the state: an overlay here would cover the plain directories in it.
            if state.is_relative_to(path):
                visit(path)
            else:
                found.overlays.append(path)

    visit(top)
    for mount in sorted(mounts, key=lambda mount: mount.point):
        hidden = [top / name for name in OWN]
        inside = any(mount.point.is_relative_to(path) for path in (*hidden, *handed_in, *remote))
        if mount.kind in _NO_LAYER or inside or mount.point == top or not mount.point.is_dir():
            continue
        if mount.point not in {*found.plain, *found.overlays} and mount.point.is_relative_to(top):
            found.overlays.append(mount.point)
    found.overlays = sorted(dict.fromkeys(found.overlays))
    views = (top / "proc", top / "dev")
    points = (mount.point for mount in mounts if any(mount.point.is_relative_to(view) for view in views))
    found.files = [point for point in points if not point.is_dir()]
    return found


def hidden_by(path: Path, own: Collection[str] = ()) -> str:
    """Return which directory or file the machine would lack if this path were the host's; empty when there is none.

    `own` are further directories that the machine must have for itself.
    """
    path = path.resolve()
    if any(path.is_relative_to(view) for view in _OF_THE_KERNEL):
        return str(path)
    return next((one for one in (*_NEEDED, *own) if Path(one).is_relative_to(path)), "")


def layer(directory: Path) -> str:
    """Return the name, below KEPT, of the directory with the machine's own layer of this directory of the host."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "_", str(directory).strip("/"))[:40]
    return f"{plain}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]}"


def make(state: Path, what: Plan) -> None:
    """Make what the plan needs below the state: plain directories, links, copies, empty layers. Keep what is there.

    Raise OSError when that fails.
    """
    top, kept = state / TOP, state / KEPT
    for name in OWN:
        place = top / name
        if not place.is_dir():
            place.mkdir(parents=True)
            place.chmod(0o1777 if name == "tmp" else 0o755)
    for directory in what.plain:
        _directory(_in(top, directory), directory)
    for path in what.links:
        if not os.path.lexists(_in(top, path)):
            _in(top, path).symlink_to(path.readlink())
    for path in what.copies:
        if not os.path.lexists(_in(top, path)):
            _copy(path, _in(top, path))
    for path in what.read_only:
        _in(top, path).touch()
    for directory in what.overlays:
        if any(directory.parent == plain for plain in what.plain):
            _directory(_in(top, directory), directory)
        mine = kept / layer(directory)
        mine.mkdir(mode=0o700, parents=True, exist_ok=True)
        (mine / "work").mkdir(exist_ok=True)
        _directory(mine / "upper", directory)


def _in(top: Path, path: Path) -> Path:
    return Path(f"{top}{path}")


def _directory(place: Path, like: Path) -> None:
    """Make a directory with the mode and owner of another, if there is none: an overlay has its upper layer's."""
    if place.is_dir():
        return
    place.mkdir(parents=True)
    status = like.stat()
    place.chmod(stat.S_IMODE(status.st_mode))
    if os.geteuid() == 0:
        os.chown(place, status.st_uid, status.st_gid)


def _copy(file: Path, place: Path) -> None:
    try:
        shutil.copy2(file, place)
    except (FileNotFoundError, PermissionError):  # gone meanwhile; or on a network, where root has no rights
        return
    status = file.stat()
    if os.geteuid() == 0:
        os.chown(place, status.st_uid, status.st_gid)


def script(state: Path, what: Plan) -> Iterator[str]:
    """Yield the lines of a shell script that mounts the plan at /sys/new, in a mount namespace of its own.

    /sys is where it can be built: no path that matters is there, and the machine's own is mounted later. For each
    directory that cannot be as planned the script prints a line: `lost DIRECTORY` when its layer ends with the machine,
    `read-only DIRECTORY` when it has none.
    """
    q = shlex.quote
    yield from (
        "mount -t tmpfs -o mode=755 tmpfs /sys",
        "mkdir /sys/new /sys/kept /sys/lost",
        f"cd {q(str(state))}",
        f"mount --no-canonicalize --bind {TOP} /sys/new",
        f"mount --no-canonicalize --bind {KEPT} /sys/kept",
        "overlay() {  # DIRECTORY LAYER: the names of layers have no character that mount(8) takes for its own",
        '  cd "$1"  # its name may have one',
        "  upper=/sys/kept/$2 options=lowerdir=.,upperdir=/sys/kept/$2/upper,workdir=/sys/kept/$2/work",
        '  mount --no-canonicalize -t overlay -o "$options" overlay "/sys/new$1" && return',
        '  mkdir -p "/sys/lost/$2/upper" "/sys/lost/$2/work"  # where the state\'s file system can be no upper layer',
        '  chmod --reference=. "/sys/lost/$2/upper"; chown --reference=. "/sys/lost/$2/upper"',
        "  options=lowerdir=.,upperdir=/sys/lost/$2/upper,workdir=/sys/lost/$2/work",
        '  if mount --no-canonicalize -t overlay -o "$options" overlay "/sys/new$1"; then echo "lost $1"; return; fi',
        '  read_only "$1"; echo "read-only $1"',
        "}",
        "read_only() {",
        '  mount --no-canonicalize --bind "$1" "/sys/new$1"',
        '  mount --no-canonicalize -o remount,bind,ro "/sys/new$1"',
        "}",
    )
    yield from (f"overlay {q(str(directory))} {layer(directory)}" for directory in what.overlays)
    yield from (f"read_only {q(str(path))}" for path in what.read_only)
