"""A machine of its own, in six Linux namespaces.

One anchor process, pid 1 of the machine, holds the namespaces: mount, UTS, network, IPC, PID and cgroup
(namespaces(7)). All other processes enter them with nsenter(1). Killing the anchor ends every process in the machine at
once (see pid_namespaces(7)) and removes its mounts, links, routes and iptables rules; only the cgroup directories and
the host's end of the link must be removed explicitly. It has a root file system of its own (mounts.py), in which the
checkout, the cache and what the user shares are as they are on the host (hand_in.py).

    down --power_on--> cgroups, anchor, link, addresses --> up
     ^                                                       |
     +---------- power_off (from any of these states) -------+
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cgroups, mounts
from .errors import DmucError
from .first_process import setup_script
from .machine import Local, Spawned, connected, is_root, spawn
from .process import Record
from .progress import Progress
from .result import Result

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_MARK = "dmuc-machine"  # on the anchor's command line, before its state directory: tells which checkout owns it
_ROUTES = Path("/proc/net/route")
# What the script says about a directory that cannot be as planned -> in words, before the directory.
_LOST = {"lost": "changes last only until the machine is off in", "read-only": "the host's, read-only:"}
_FEW = 3  # directories that are named


@dataclass(frozen=True)
class Namespaces(Local):
    """The machine `name`, with its state (pidfile, log) under `state`.

    `link` is the range of the link to the host; the host reaches `services` and `pods` through it. `disk` are the
    directories that outlive the machine: path inside -> directory under `state`. `kernel` are settings of the host's
    kernel that daemons write and that belong to no namespace: the machine has plain files in their place, and the
    kernel's settings stay. Some of them exist only with the kernel's `modules`, which are therefore loaded first: the
    files of a module that is loaded later would be the kernel's own.
    """

    name: str
    state: Path
    link: str
    services: str
    pods: str
    disk: Mapping[str, str]
    kernel: Sequence[str] = ()
    modules: Sequence[str] = ()
    handed_in: Sequence[Path] = ()  # files and directories that are in the machine as they are on the host, if there
    shared: Sequence[Path] = ()  # the same, by the user's wish: they must be there
    disposable: bool = True
    stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    # Files

    @property
    def _record(self) -> Path:
        return self.state / "run" / "machine.pid"

    @property
    def _log(self) -> Path:
        return self.state / "logs" / "machine.log"

    def _anchor(self) -> int:
        record = Record.load(self._record)
        if record is None or not record.alive():
            raise DmucError(f"entering {self.name}", "The machine is not powered on.", "Run: scripts/doit machine")
        return record.pid

    # Machine: check

    def is_up(self) -> Result:
        """Return whether the machine is up as it must be: process, configuration, link, routes."""
        record = Record.load(self._record)
        if record is None:
            return Result(False, f"{self.name} was never powered on")
        if not record.alive():
            return Result(False, f"{self.name} is off: its first process (pid {record.pid}) is gone")
        if record.command != self._wanted():
            return Result(False, f"{self.name} is powered on with other settings")
        missing = set(self._host_routes()) - set(_routes_of(self.name))
        if missing:
            return Result(False, f"the host has no route through the link {self.name} to {', '.join(sorted(missing))}")
        unseen = ", ".join(map(str, self._unseen(self._shown)))
        why = self._missing() or (f"{self.name} does not show {unseen} of the host yet" if unseen else "")
        return Result(not why, why or "on")

    @property
    def _shown(self) -> list[Path]:
        """What is in the machine as it is on the host. The state need not be below the checkout."""
        return [*self.handed_in, *self.shared, self.state]

    def _missing(self) -> str:
        """Return a line about a shared directory that the host does not have, if there is one."""
        return next((f"share={path}: there is no such directory." for path in self.shared if not path.exists()), "")

    def _unseen(self, paths: Iterable[Path]) -> list[Path]:
        """Return which of these files and directories of the host are not there in the machine, at the same path."""
        root = f"/proc/{self._anchor()}/root"
        return [path for path in _with_targets(paths) if not _is_same(path, f"{root}{path}")]

    def _wanted(self) -> list[str]:
        return [
            self.name,
            str(self.state),
            self.link,
            self.services,
            self.pods,
            *(f"{k}={v}" for k, v in self.disk.items()),
            *self.kernel,
        ]

    def _host_routes(self) -> list[str]:
        return [self.link, self.services, self.pods]

    # Machine: use

    def enter(self) -> Sequence[str]:
        """Return the words before a command that put it into the machine's cgroups and (nsenter) its namespaces."""
        anchor = self._anchor()
        joining = cgroups.joining(h.procs(self.name) for h in cgroups.mounted())
        return (*joining, "nsenter", "-t", str(anchor), "-m", "-u", "-n", "-i", "-p", "-C", "--")

    def show(self, paths: Iterable[Path]) -> None:
        """Have these files and directories of the host in the machine, at the same path; see Machine."""
        unseen = self._unseen(paths)
        if not unseen:
            return
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("hand_in.py"))]
        done = subprocess.run(
            [*program, str(self._anchor()), *map(str, unseen)], capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            raise DmucError(
                f"showing files of the host on {self.name}: {', '.join(map(str, unseen))}",
                done.stderr.strip(),
                "Choose another place for this file or directory.",
            )

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon in the namespaces and cgroups of the machine; see Machine."""
        started = spawn(self.start_line(command, cwd=cwd, environment=environment), log)
        # nsenter stays as the parent of the daemon, which is the process in the machine.
        child = _only_child(started.handle)
        return Spawned(child or started.pid, started.handle)

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a connection in the machine's network namespace; see Machine. Other threads of dmuc are not affected."""
        try:
            pid = self._anchor()
        except DmucError as error:
            raise OSError(error.seen) from None
        with _network_of(pid):
            stream = socket.socket(type=kind)
        return connected(stream, (host, port), timeout)

    def on_host(self, inside: str | Path) -> str:
        """Return the machine's file: below the cluster's state a file of the host, else one below /proc/PID/root."""
        if Path(inside).is_relative_to(self.state):
            return str(inside)
        try:
            return f"/proc/{self._anchor()}/root{inside}"
        except DmucError as error:
            raise OSError(error.seen) from None

    # Machine: on and off

    def power_on(self, progress: Progress) -> None:
        """Power the machine on, after removing what is left of an earlier machine with this name; see Machine."""
        if not is_root():
            raise DmucError(
                f"powering on {self.name}",
                "A machine of its own needs namespaces, links and mounts, and these need root.",
                "Run dmuc as root; or use machine=host, where components that need no root can run.",
            )
        self.refuse_shares()
        if self._is_on():
            self.show(self._shown)
            return
        foreign = self._foreign()
        if foreign:
            raise DmucError(
                f"powering on {self.name}",
                f"Another machine with this name is powered on (pid {foreign[0]}), with its state in {foreign[1]}.",
                "Power off the other machine, or choose another name: machine=NAME, with ranges of its own.",
            )
        self.power_off()
        if self._link_alias() is not None:
            raise DmucError(
                f"powering on {self.name}",
                f"The host has a network link called {self.name}, which was not created by dmuc.",
                "Choose another name for the machine: machine=NAME.",
            )
        self.refuse_overlaps()
        for directory in ("run", "logs", "home", *self.disk.values()):
            (self.state / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            progress.note("its cgroups")
            cgroups.make(self.name)
            progress.note("its namespaces and mounts")
            lost = self._start_anchor()
            progress.note("its link to the host")
            self._make_link()
            self.show(self._shown)
            progress.note(_in_words(lost) or "its link to the host")
        except (DmucError, OSError) as error:
            self.power_off()
            if isinstance(error, DmucError):
                raise
            raise DmucError(f"powering on {self.name}", str(error)) from error

    def power_off(self) -> None:
        """Kill the anchor and all processes in the machine's cgroups; remove the cgroups and the link.

        A machine with the same name that another checkout has powered on is not affected.
        """
        if self._foreign():
            self._record.unlink(missing_ok=True)
            return
        # Kill all at once, not the anchor first: the anchor ends only after each process in the machine was reaped. A
        # parent outside of the machine (nsenter, which stops when its child stops) may not reap before it is killed
        # itself; then the host's init reaps, at some time. No process runs any more by then, so dmuc does not wait.
        groups = [h.group(self.name) for h in cgroups.mounted() if h.group(self.name).is_dir()]
        cgroups.kill_all_in(groups)
        record = Record.load(self._record)
        if record is not None and not groups:
            record.stop(0)
        if is_root() and self._link_alias() == self._alias:
            subprocess.run(["ip", "link", "delete", "dev", self.name], check=False, capture_output=True)
        for group in groups:
            cgroups.remove(group)
        self._record.unlink(missing_ok=True)

    @property
    def _alias(self) -> str:
        """The alias of the link, which says that this machine has made it: another link may have the same name."""
        return f"dmuc-{hashlib.sha256(str(self.state).encode()).hexdigest()[:16]}"

    def _link_alias(self) -> str | None:
        try:
            return Path("/sys/class/net", self.name, "ifalias").read_text("utf-8").strip()
        except FileNotFoundError:
            return None

    def _foreign(self) -> tuple[int, str] | None:
        """Return a pid and the state directory of a running machine of another checkout with this name, if any."""
        for pid in sorted({p for h in cgroups.mounted() for p in cgroups.pids_in(h.group(self.name))}):
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if _MARK in argv and (state := argv[argv.index(_MARK) + 1]) != str(self.state):
                    return pid, state
        return None

    def refuse_overlaps(self) -> None:
        """Raise DmucError when a range of this machine overlaps another one, or a range that the host already uses."""
        ours = [("link_range", self.link), ("service_range", self.services), ("pod_range", self.pods)]
        taken = ranges_on_host()
        for number, (setting, text) in enumerate(ours):
            taken_by_ours = [(ipaddress.IPv4Network(t), s) for s, t in ours[:number]]
            for network, where in taken + taken_by_ours:
                if ipaddress.IPv4Network(text).overlaps(network):
                    raise DmucError(
                        f"powering on {self.name}",
                        f"{setting}={text} overlaps {network}, which is already in use ({where}).",
                        f"Choose another range with {setting}=…",
                    )

    def refuse_shares(self) -> None:
        """Raise DmucError when what the machine shares is missing, or would take the place of what it needs itself."""
        tried = f"powering on {self.name}"
        for path in (*self.handed_in, *self.shared):
            if own := mounts.hidden_by(path, self.disk):
                seen = (
                    f"{path} cannot be the host's: the machine needs {'that' if own == str(path) else own} for itself."
                )
                raise DmucError(
                    tried, seen, "Name a directory below it, or another one (in share=, cache= or bin_dir=)."
                )
        if missing := self._missing():
            raise DmucError(tried, missing, "Create the directory, or correct share=.")

    def _is_on(self) -> bool:
        """Return whether the machine is up, except that it may not show everything of the host that it must."""
        record = Record.load(self._record)
        if record is None or not record.alive() or record.command != self._wanted():
            return False
        return not {*self._host_routes()} - {*_routes_of(self.name)}

    def _start_anchor(self) -> dict[str, list[str]]:
        """Start the first process; return the directories that are not as planned. Raise DmucError when it ends."""
        what = mounts.plan(self.state, self._shown, mounts.mounted())
        mounts.make(self.state, what)
        unshare = ("unshare", "--mount", "--uts", "--net", "--ipc", "--pid", "--cgroup", "--fork")
        script = setup_script(self, cgroups.mounted(), what)
        script_file = self.state / "run" / "machine.sh"
        script_file.write_text(script + "\n", "utf-8", errors="surrogateescape")
        self._log.touch(mode=0o600)
        with self._log.open("ab") as log:
            launcher = subprocess.Popen(
                [
                    *cgroups.joining(h.group(self.name) / "cgroup.procs" for h in cgroups.mounted()),
                    *unshare,
                    "sh",
                    "-eu",
                    str(script_file),
                    _MARK,
                    str(self.state),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        pid = _only_child(launcher)
        if pid:
            Record.of(pid, self._wanted(), {}).save(self._record)
        assert launcher.stdout is not None
        lost: dict[str, list[str]] = {}
        with launcher.stdout as said:  # the script says "up", or ends and closes its output
            for line in said:
                what_so, _, directory = line.decode(errors="replace").strip().partition(" ")
                if what_so == "up":
                    cgroups.make_leaves(self.name)
                    return lost
                lost.setdefault(what_so, []).append(directory)
        raise DmucError(
            f"powering on {self.name}",
            f"its first process ended with exit code {launcher.wait()}; the last lines of {self._log}:\n"
            + "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-10:]),
            "Find out what this host lacks (namespaces, overlayfs, or the permission to mount): scripts/doit preflight",
        )

    def _make_link(self) -> None:
        network = ipaddress.ip_network(self.link)
        host, own, bits = network[1], network[2], network.prefixlen
        _ip(
            (),
            f"link add name {self.name} type veth peer name eth0 netns {self._anchor()}",
            f"link set dev {self.name} alias {self._alias}",
            f"address add {host}/{bits} dev {self.name}",
            f"link set dev {self.name} up",
        )
        _ip(
            ("nsenter", "-t", str(self._anchor()), "-n", "--"),
            "link set dev lo up",
            f"address add {own}/{bits} dev eth0",
            "link set dev eth0 up",
            # kube-apiserver and the kubelet read their own address from the default route, but the rules never use
            # this route: a packet to an address that is not on a link of the machine fails at once.
            f"route add default via {host}",
            "rule add pref 100 lookup main suppress_prefixlength 0",
            "rule add pref 200 unreachable",
            # A packet to a ClusterIP needs a route before iptables replaces its address.
            f"route add {self.services} dev eth0",
        )
        _ip((), *(f"route add {ranges} via {own} dev {self.name}" for ranges in (self.services, self.pods)))


def _in_words(lost: Mapping[str, Sequence[str]]) -> str:
    """Return which directories are not as planned: what the script says about them -> the directories."""
    said = []
    for what_so, directories in lost.items():
        more = f" and {len(directories) - _FEW} more" if len(directories) > _FEW else ""
        said.append(f"{_LOST[what_so]} {', '.join(directories[:_FEW])}{more}")
    return "; ".join(said)


def _with_targets(paths: Iterable[Path]) -> list[Path]:
    """Return these paths, each also as it is without links."""
    return [*dict.fromkeys(one for path in paths for one in (path.resolve(), path) if path.exists())]


def _is_same(path: Path, other: str) -> bool:
    """Return whether both are the same directory, or files of the same size and time of change."""
    try:
        one, two = path.stat(), os.stat(other)  # noqa: PTH116
    except OSError:
        return False
    if path.is_dir():
        return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
    return (one.st_size, one.st_mtime_ns) == (two.st_size, two.st_mtime_ns)


# Calls to the kernel


def _ip(prefix: Sequence[str], *commands: str) -> None:
    done = subprocess.run(
        [*prefix, "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise DmucError(shlex.join([*prefix, "ip", "-batch", "-"]), done.stderr.strip(), "")


def _only_child(parent: subprocess.Popen[Any]) -> int | None:
    """Return the pid of the one child that `unshare --fork` or `nsenter` starts; None if there is none after 10 s."""
    import tenacity

    def child() -> int | None:
        try:
            pids = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text("utf-8").split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(pids[0]) if pids else (0 if parent.poll() is not None else None)

    found: int | None = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda pid: pid is None),
        wait=tenacity.wait_fixed(0.002),
        stop=tenacity.stop_after_delay(10),
        retry_error_callback=lambda _: None,
    )(child)
    return found or None


@contextlib.contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Move this thread alone (setns(2)) into the network namespace of process `pid`, while the body runs.

    Python has os.setns only since 3.12.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: int) -> None:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            enter(other)
        finally:
            os.close(other)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)


def _routes_of(link: str) -> list[str]:
    """Return the ranges that the host routes to `link`, from the kernel's table (no process needed)."""
    found = []
    for line in _ROUTES.read_text("utf-8").splitlines()[1:]:
        device, destination, _, _, _, _, _, mask, *_ = line.split()
        if device == link:
            address, bits = (socket.inet_ntoa(struct.pack("=I", int(x, 16))) for x in (destination, mask))
            found.append(str(ipaddress.ip_network(f"{address}/{bits}")))
    return found


def ranges_on_host() -> list[tuple[ipaddress.IPv4Network, str]]:
    """Return every IPv4 range that the host routes or has an address in, except the default route, and its source."""
    found = []
    for arguments in (["route", "show", "table", "all"], ["address", "show"]):
        done = subprocess.run(["ip", "-json", "-4", *arguments], capture_output=True, encoding="utf-8", check=True)
        for entry in json.loads(done.stdout or "[]"):
            device = entry.get("dev") or entry.get("ifname", "")
            ranges = [entry.get("dst", "")] + [f"{a['local']}/{a['prefixlen']}" for a in entry.get("addr_info", [])]
            for text in ranges:
                if text and text != "default":
                    network = ipaddress.ip_network(text, strict=False)
                    if network.prefixlen and not network.is_loopback and isinstance(network, ipaddress.IPv4Network):
                        found.append((network, f"ip {arguments[0]}: {text} {device}".strip()))
    return found
