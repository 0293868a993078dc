"""The host as root sees it, as lists of lines: what a run left behind is the difference of two such pictures.

    before = take(roots=[Path("/tmp")])
    ...
    assert not difference_settled(before, lambda: take(roots=[Path("/tmp")]), deadline=10)

A picture is a plain dict: drop a section that does not matter to a test, or store it as JSON. It does not show what no
namespace holds and so may be another program's: the kernel's modules (and the keys in /proc/sys that they bring), loop
devices and swap.
"""

import contextlib
import json
import os
import re
import select
import socket
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from plumbum import CommandNotFound, local
from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_delay, wait_fixed

Picture: TypeAlias = dict[str, list[str]]
Changes: TypeAlias = dict[str, tuple[Counter[str], Counter[str]]]

# File systems whose contents are not files of this host; autofs would even mount something because we look.
NOT_FILES = re.compile(r"proc|sysfs|cgroup2?|devpts|debugfs|tracefs|securityfs|bpf|autofs|nfs\d?|cifs|fuse.*")

# Keys of /proc/sys whose value changes by itself (the key itself still counts).
VOLATILE_SYSCTLS = re.compile(
    r"fs/(aio-nr|dentry-state|file-nr|inode-nr|inode-state|quota/.*)"  # caches and open files
    r"|kernel/(ns_last_pid|pty/nr|random/.*)"  # any fork, any terminal, any read of random bytes
    r"|kernel/(hung_task_warnings|hung_task_detect_count|perf_event_max_sample_rate)"  # kernel under load
    r"|net/netfilter/nf_conntrack_count"
    r"|net/ipv4/tcp_fastopen_key"  # a secret
    r"|net/ipv6/conf/.*/stable_secret"  # another
    r"|vm/stat_refresh"  # reading it does something
)
AUTOMOUNT = "/proc/sys/fs/binfmt_misc"  # with systemd: looking at it mounts it

SYSCTLS = "sysctls"
COUNTERS = re.compile(r" ?\[\d+:\d+\]")
REMAINING_TIME = re.compile(r" expires [^\s,]+")
KERNEL_THREAD = 0x00200000  # PF_KTHREAD
LISTENING = 0x10000  # SO_ACCEPTCON


@dataclass(frozen=True)
class Layer:
    """An overlay (mount(8)) on `directory`: what was written there is in `upper`, what was there before in `lower`."""

    directory: Path
    upper: Path
    lower: Path


def take(roots: Sequence[Path] = (), layers: Sequence[Layer] = (), ignore_files: Sequence[Path] = ()) -> Picture:
    """Everything there is now: a list of sorted lines per section.

    The files are all below `roots`, those that were written in `layers`, and what is right below /.
    """
    # First what starts programs: to run them may mount and bring sysctl keys.
    picture = {
        "links": _links(),
        "addresses": _addresses(),
        "routes": _routes("route", "show", "table", "all"),
        "rules": _routes("rule"),
        "packet filter": _packet_filter(),
        "listening sockets": _listening(),
        "cgroups": [folder for folder, _, _ in os.walk("/sys/fs/cgroup")],
        "hostname": [socket.gethostname()],
        "files": [*_files(roots, layers, ignore_files)],
    }
    picture["processes"], picture["namespaces"] = _processes()
    picture[SYSCTLS] = _sysctls()
    picture["mounts"] = [" ".join(mount) for mount in _mounts()]
    return {section: sorted(lines) for section, lines in picture.items()}


def difference(before: Picture, after: Picture) -> str:
    """What differs, as text for people: section, `- gone`, `+ new`. Empty when nothing does."""
    return _text(_changes(before, after))


def difference_settled(before: Picture, retake: Callable[[], Picture], deadline: float) -> str:
    """Take pictures until one is like `before`, at most for `deadline` seconds; the last difference.

    What comes and goes meanwhile is no trace: from the second picture on only what two in a row show counts.
    """
    last: Changes | None = None

    def lasting_changes() -> Changes:
        nonlocal last
        previous, last = last, _changes(before, retake())
        return last if previous is None else _in_both(previous, last)

    def last_result(state: RetryCallState) -> Any:
        return state.outcome and state.outcome.result()

    retry = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(deadline),
        retry_error_callback=last_result,
    )
    return _text(retry(lasting_changes))


def _changes(before: Picture, after: Picture) -> Changes:
    changes: Changes = {}
    for section in before | after:
        old, new = before.get(section, []), after.get(section, [])
        if section == SYSCTLS:  # a key that only one of them has came with a link, or with a module of the kernel
            keys = {_key(line) for line in old} & {_key(line) for line in new}
            old, new = ([line for line in lines if _key(line) in keys] for lines in (old, new))
        if old != new:
            had, has = Counter(old), Counter(new)
            changes[section] = (had - has, has - had)
    return changes


def _key(sysctl: str) -> str:
    return sysctl.partition(" = ")[0]


def _in_both(one: Changes, other: Changes) -> Changes:
    both = {
        section: (one[section][0] & other[section][0], one[section][1] & other[section][1])
        for section in one
        if section in other
    }
    return {section: changes for section, changes in both.items() if any(changes)}


def _text(changes: Changes) -> str:
    lines = []
    for section, (gone, new) in changes.items():
        lines.append(f"{section}:")
        lines += [f"  - {line}" for line in sorted(gone.elements())]
        lines += [f"  + {line}" for line in sorted(new.elements())]
    return "\n".join(lines)


def _run(program: str, *arguments: str) -> list[str]:
    """The lines a program prints; that it is missing or fails is a line too, so that it is not taken for emptiness."""
    try:
        code, out, err = local[program][arguments].run(retcode=None)
    except CommandNotFound:
        return ["(not installed)"]
    if code:
        return [f"(exit status {code}: {' '.join(err.split())})"]
    return [line.rstrip() for line in out.splitlines()]


def _read(file: Path | str) -> str:
    """What a file of /proc or /sys says, nothing if it is not there (any more) or not for us."""
    try:
        return Path(file).read_text(errors="replace").strip()
    except OSError:
        return ""


def _ip(*arguments: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(local["ip"]["-details", "-json"][arguments]() or "[]")
    return entries


def _links() -> list[str]:
    told = ("link_type", "address", "mtu", "qdisc", "master", "link", "ifalias")
    return [
        " ".join(
            [link["ifname"], link.get("linkinfo", {}).get("info_kind", ""), *sorted(link["flags"])]
            + [f"{key} {link[key]}" for key in told if key in link]
        )
        for link in _ip("link")
    ]


def _addresses() -> list[str]:
    """Without lifetimes, and without the temporary addresses that IPv6 privacy makes and drops."""
    told = ("family", "local", "prefixlen", "scope", "peer", "label")
    return [
        " ".join([link["ifname"], *(f"{key} {address[key]}" for key in told if key in address)])
        for link in _ip("address")
        for address in link["addr_info"]
        if "local" in address and not address.get("temporary")
    ]


def _routes(*question: str) -> list[str]:
    """Without the remaining time, which router advertisements renew."""
    return [
        f"{family} {REMAINING_TIME.sub('', line)}"
        for family, option in (("IPv4", "-4"), ("IPv6", "-6"))
        for line in _run("ip", option, "-o", *question)
    ]


def _packet_filter() -> list[str]:
    """Rules of nftables and of both kinds of iptables, each with its table, without counters and dates."""
    lines = []
    for program in [f"ip{v}tables-{kind}-save" for v in ("", "6") for kind in ("nft", "legacy")]:
        table = ""
        for line in _run(program):
            if line.startswith("*"):
                table = line
            elif line and not line.startswith(("COMMIT", "# Generated by", "# Completed on")):
                lines.append(" ".join([program, table, COUNTERS.sub("", line)]))
    within: list[str] = []  # table, chain
    for line in map(str.strip, _run("nft", "--stateless", "list", "ruleset")):
        if line == "}":
            within.pop()
        elif line:
            lines.append(" ".join(["nft", *within, REMAINING_TIME.sub("", line.removesuffix(" {"))]))
            if line.endswith("{"):
                within.append(line.removesuffix(" {"))
    return lines


def _listening() -> list[str]:
    """TCP and UDP sockets with the names of their programs; unix sockets, abstract ones with an @."""
    lines = []
    for line in _run("ss", "-Hltnup"):
        columns = line.split(maxsplit=6)
        if line.startswith("("):
            lines.append(line)
            continue
        programs = sorted(set(re.findall(r'"([^"]*)"', columns[6]))) if len(columns) > 6 else []
        lines.append(" ".join([columns[0], columns[4], *programs]))
    for line in _read("/proc/net/unix").splitlines()[1:]:
        columns = line.split(maxsplit=7)
        if int(columns[3], 16) & LISTENING:
            lines.append(f"unix {columns[7] if len(columns) > 7 else '(unnamed)'}")
    return lines


def _mounts() -> Iterator[tuple[str, ...]]:
    """Mount point, type, source, root, options, propagation, options of the file system; without the ids."""
    for line in _read("/proc/self/mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        _, _, _, root, point, options, *propagation = mount.split()
        kind, source, *more = file_system.split(" ")
        yield (point, kind, source, root, options, *(word.split(":")[0] for word in propagation), *more)


def _processes() -> tuple[list[str], list[str]]:
    """Processes but for kernel threads, ourselves and our ancestors; the namespaces of them all, and the named ones."""
    processes: dict[int, str] = {}
    parents: dict[int, int] = {}
    namespaces: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        name, _, rest = _read(folder / "stat").partition(" (")[2].rpartition(") ")
        numbers = rest.split()
        if not numbers or int(numbers[6]) & KERNEL_THREAD:
            continue
        command = " ".join(_read(folder / "cmdline").replace("\0", " ").split())[:300]
        what = f"{name}: {'(zombie)' if numbers[0] == 'Z' else command}"
        pid = int(folder.name)
        processes[pid] = f"{what} (process {pid} since tick {numbers[19]})"
        parents[pid] = int(numbers[1])
        namespaces |= _namespaces(folder / "ns")
    pid = os.getpid()
    while processes.pop(pid, None):
        pid = parents[pid]
    named = [f"named {file}" for file in Path("/run/netns").glob("*")]
    return list(processes.values()), [*namespaces, *named]


def _namespaces(folder: Path) -> set[str]:
    try:
        return {str(entry.readlink()) for entry in folder.iterdir()}
    except OSError:  # gone meanwhile, or not for us
        return set()


def _sysctls() -> list[str]:
    values = []
    for folder, folders, files in os.walk("/proc/sys"):
        if AUTOMOUNT in (f"{folder}/{name}" for name in folders):
            folders.remove(Path(AUTOMOUNT).name)
        for file in files:
            key = f"{folder}/{file}".removeprefix("/proc/sys/")
            if not VOLATILE_SYSCTLS.fullmatch(key):
                values.append(f"{key} = {' '.join(_read(f'{folder}/{file}').split())}")
    return values


def _files(roots: Sequence[Path], layers: Sequence[Layer], ignore: Sequence[Path]) -> Iterator[str]:
    """Type, mode and owner of everything; size and time of files, target of links, number of devices.

    A folder's time and size tell of what was there once, so they are left out. Compiled Python appears wherever a
    Python is run first, so `__pycache__` is left out, too.
    """
    left_out = {str(path) for path in ignore} | {point for point, kind, *_ in _mounts() if NOT_FILES.fullmatch(kind)}
    with os.scandir("/") as entries:
        yield from (line for entry in entries if (line := _file(entry.path)))
    for root in roots:
        yield from (line for path in _below(str(root), left_out, str(root)) if (line := _file(path)))
    for layer in layers:
        upper, lower, directory = map(str, (layer.upper, layer.lower, layer.directory))
        for path in _below(upper, left_out, directory):
            name, before = directory + path.removeprefix(upper), lower + path.removeprefix(upper)
            line, line_before = _file(path, name), _file(before, name)
            # A folder in which something was written is in the upper layer, and so is a file that was opened for it.
            if line != line_before:
                yield line or f"{name} is gone"
            elif _is_opaque(path):
                yield f"{name} is gone, and another one there"


def _below(root: str, left_out: Collection[str], known_as: str) -> Iterator[str]:
    """Every path below `root`; those to be left out have `known_as` in its place."""
    for folder, folders, files in os.walk(root):
        there = known_as + folder.removeprefix(root)
        folders[:] = [name for name in folders if name != "__pycache__" and f"{there}/{name}" not in left_out]
        yield from (f"{folder}/{name}" for name in [*folders, *files] if f"{there}/{name}" not in left_out)


def _file(path: str, name: str = "") -> str | None:
    """The line for what is at `path`, under another name if there is one; None when nothing is."""
    try:
        status = Path(path).lstat()
        mode = status.st_mode
        line = f"{name or path} {stat.filemode(mode)} {status.st_uid}:{status.st_gid}"
        if stat.S_ISREG(mode):
            line += f" size {status.st_size} time {status.st_mtime_ns}"
        elif stat.S_ISLNK(mode):
            line += f" -> {Path(path).readlink()}"
        elif stat.S_ISCHR(mode) and not status.st_rdev:  # in an upper layer: what was there is removed
            return None
        elif status.st_rdev:
            line += f" device {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{name or path} {error.strerror}"
    return line


def _is_opaque(path: str) -> bool:
    """Whether, in an upper layer, this folder hides the one below it."""
    try:
        return os.getxattr(path, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


def wait_gone(pid: int, deadline: float = 10.0) -> None:
    """Wait until the process `pid` is gone, at most `deadline` seconds; then fail."""
    handle = None
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
    if handle is not None:
        try:
            assert select.select([handle], [], [], deadline)[0], f"process {pid} is still there after {deadline} s"
        finally:
            os.close(handle)
