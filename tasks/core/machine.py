"""The machine of a node: the interface, and one of its two implementations, the host. The other is in namespaces.py."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import DmucError, Interrupted
from .files import content_digest, fingerprint, write_atomic
from .process import LocalProcesses, Record
from .progress import Progress
from .result import Result

if TYPE_CHECKING:
    from plumbum.commands.base import BaseCommand
    from plumbum.path.base import Path as PlumbumPath

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # PATH, without what a user adds
# The kernel's name of an architecture -> Go's name, which release sites and container images use.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PAUSE = 0.1  # seconds between two checks of the stop signal while a command runs


@dataclass(frozen=True)
class Spawned:
    """A process started in the background: its pid on the host, and the handle from which its exit code comes."""

    pid: int
    handle: subprocess.Popen[Any]

    def exit_code(self) -> int | None:
        """Return the exit code, 128 + N after signal N; wait up to 1 s for it, and return None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.handle.wait(1)  # nsenter takes a moment to end after the process in the machine
        code = self.handle.poll()
        return code if code is None or code >= 0 else 128 - code


class Processes(Protocol):
    """The processes of a machine's daemons; a pidfile records each one (see process.py)."""

    def recorded(self, pidfile: Path) -> Record | None:
        """Return the process that the pidfile records; None when there is no such file, or dmuc did not write it."""

    def all_recorded(self, directory: Path) -> list[Record]:
        """Return the processes that the pidfiles in the directory record."""

    def save(self, pidfile: Path, pid: int, command: Sequence[str], inputs: Mapping[str, str], log_start: int) -> None:
        """Record the running process `pid` in the pidfile."""

    def is_alive(self, record: Record) -> bool:
        """Return whether the recorded process still runs; another process with the same pid does not count."""

    def stop(self, pidfile: Path, grace: float, outlived_by: Collection[str]) -> None:
        """End all processes of the daemon with this pidfile, even if the file was never written: SIGTERM, and SIGKILL
        after `grace` seconds. The programs called `outlived_by` go on. Raise DmucError when some do not end.
        """

    def kill_heirs(self, pidfile: Path) -> None:
        """SIGKILL all processes that an ended daemon has left running. Raise DmucError when some do not end."""

    def boot(self) -> str:
        """Return the id of the current boot of the machine's kernel."""


class Machine(Protocol):
    """The machine on which a node's commands run and its files are; commands and paths are plumbum's."""

    @property
    def stop(self) -> threading.Event:
        """The run's stop signal: when it is set, commands that run in the machine are ended."""

    @property
    def name(self) -> str:
        """The machine's name: also its host name, and the name of the link to it."""

    @property
    def disposable(self) -> bool:
        """Whether powering off the machine ends and removes everything on it."""

    @property
    def processes(self) -> Processes:
        """The processes of the machine's daemons."""

    def is_up(self) -> Result:
        """Return, within milliseconds, whether the machine is up and configured as it must be, or why not."""

    def power_on(self, progress: Progress) -> None:
        """Power the machine on, from any state. Raise DmucError when that fails."""

    def power_off(self) -> None:
        """Kill every process in the machine and undo the power-on. Can be repeated."""

    def show(self, paths: Iterable[Path]) -> None:
        """Have these files and directories of the host in the machine, at the same path. Raise DmucError on failure."""

    def command(self, *words: str) -> BaseCommand:
        """Return the command, bound to the machine but not run yet. Raise DmucError when the machine is off."""

    def start_line(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> Sequence[str]:
        """Return the command line of the host that runs `command` in the machine, in the directory `cwd`, with exactly
        this environment. Raise DmucError when the machine is off.
        """

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon in a session of its own, without input, with its output appended to `log`."""

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a TCP connection, or with SOCK_DGRAM a UDP socket, from inside the machine. Raise OSError on failure."""

    def connect_unix(self, path: str, timeout: float) -> socket.socket:
        """Open a connection to a socket file of the machine. Raise OSError on failure."""

    def path(self, inside: str | Path) -> PlumbumPath:
        """Return the file or directory with this path in the machine. Raise OSError when the machine is off."""

    def write(self, file: Path, text: str, mode: int) -> None:
        """Write one of the cluster's files atomically."""

    def fingerprints(self, programs: Collection[Path], files: Collection[Path]) -> dict[str, str]:
        """Return a fingerprint of each file: of programs the size and time of change, of other files the content."""


def run(machine: Machine, *command: str, stdin: str = "", timeout: float = 30.0) -> str:
    """Run a command in the machine to its end and return its output.

    Raise DmucError with the command, exit code and output when it fails, or has not ended after `timeout` seconds;
    raise Interrupted when the run ends meanwhile. The command's whole process group is then killed.
    """
    from plumbum import CommandNotFound

    tried = f"on {machine.name}: {shlex.join(command)}"
    pipe = subprocess.PIPE
    try:
        # In a session of its own, because nsenter and sh have children, which would outlive them and hold the pipes.
        process = machine.command(*command).popen(stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except CommandNotFound as error:
        raise DmucError(tried, f"there is no program {error.program}", f"Install {error.program}.") from None
    try:
        out, errors = _communicate(process, stdin.encode(), timeout, machine.stop)
    except subprocess.TimeoutExpired:
        if machine.stop.is_set():
            raise Interrupted(tried, "the run was interrupted") from None
        raise DmucError(tried, f"not done after {timeout:g} s; stopped") from None
    finally:
        _end_group(process)
    if process.returncode:
        raise DmucError(tried, f"exit code {process.returncode}: {(errors or out).strip()}")
    return out


def _communicate(process: Any, stdin: bytes, timeout: float, stop: threading.Event) -> tuple[str, str]:
    """Return the process's output and error output. Raise subprocess.TimeoutExpired after `timeout`, or on `stop`."""
    end = time.monotonic() + timeout
    given: bytes | None = stdin
    while True:
        try:
            out, errors = process.communicate(given, timeout=min(_PAUSE, max(end - time.monotonic(), 0)))
            return out.decode(errors="replace"), errors.decode(errors="replace")
        except subprocess.TimeoutExpired:
            if stop.is_set() or time.monotonic() >= end:
                raise
            given = None  # the next call of communicate sends the rest


def _end_group(process: Any) -> None:
    """SIGKILL what is left of the process group, including the process itself, and wait for the process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError, ValueError):
            pipe.close()


def spawn(line: Sequence[str], log: Path) -> Spawned:
    """Start the command line of a daemon in the background; see Machine.spawn."""
    from plumbum import local

    with log.open("ab") as out:
        # In a session of its own and with its own log: a child that kept doit's pipes open would keep doit waiting.
        # Not by plumbum's popen: when doit ends, each of its handles waits 0.2 s for a process that goes on.
        argv = local[line[0]][[*line[1:]]].formulate()
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    return Spawned(child.pid, child)


def connected(stream: socket.socket, address: str | tuple[str, int], timeout: float) -> socket.socket:
    """Connect the socket and return it. Close it and raise OSError on failure."""
    try:
        stream.settimeout(timeout)
        stream.connect(address)
    except OSError:
        stream.close()
        raise
    return stream


class Local:
    """The base of machines on this host, which have its kernel and the directory of the cluster's state in common."""

    def enter(self) -> Sequence[str]:
        """Return the words before a command that make the command run in the machine."""
        return ()

    def command(self, *words: str) -> BaseCommand:
        """Return the command, bound to the machine; see Machine."""
        from plumbum import local

        program, *arguments = (*self.enter(), *words)
        return local[program][arguments]

    def start_line(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> Sequence[str]:
        """Return the command line of a daemon; see Machine."""
        # env(1) rather than Popen's cwd and env: it acts inside the machine's namespaces.
        return (
            *self.enter(),
            "env",
            "-i",
            "-C",
            str(cwd),
            "--",
            *(f"{k}={v}" for k, v in environment.items()),
            *command,
        )

    @property
    def processes(self) -> Processes:
        """The processes of the machine's daemons; see Machine."""
        return LocalProcesses()

    def show(self, paths: Iterable[Path]) -> None:
        """Do nothing: the files are the machine's, too; see Machine."""

    def on_host(self, inside: str | Path) -> str:
        """Return where the host has the machine's file. Raise OSError when the machine is off."""
        return str(inside)

    def path(self, inside: str | Path) -> PlumbumPath:
        """Return the file with this path in the machine; see Machine."""
        from plumbum import LocalPath

        return LocalPath(self.on_host(inside))

    def connect_unix(self, path: str, timeout: float) -> socket.socket:
        """Open a connection to a socket file of the machine; see Machine."""
        return connected(socket.socket(socket.AF_UNIX), self.on_host(path), timeout)

    def write(self, file: Path, text: str, mode: int) -> None:
        """Write a file; see Machine."""
        write_atomic(file, text, mode)

    def fingerprints(self, programs: Collection[Path], files: Collection[Path]) -> dict[str, str]:
        """Return a fingerprint of each file; see Machine."""
        return {str(p): fingerprint(p) for p in programs} | {str(file): content_digest(file) for file in files}


@dataclass(frozen=True)
class Host(Local):
    """The host as a machine. It is always up, and dmuc never powers it off.

    It is `disposable` for a cluster that has nothing outside of its state directory.
    """

    name: str = "host"
    disposable: bool = False
    stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    def is_up(self) -> Result:
        """Return yes: the host is always up."""
        return Result(True, "on")

    def power_on(self, progress: Progress) -> None:
        """Do nothing: the host is always up."""

    def power_off(self) -> None:
        """Do nothing: each daemon is ended by its pid."""

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon; see Machine."""
        return spawn(self.start_line(command, cwd=cwd, environment=environment), log)

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a TCP connection or a UDP socket; see Machine."""
        return connected(socket.socket(type=kind), (host, port), timeout)


def is_root() -> bool:
    """Return whether this process runs as root."""
    return os.geteuid() == 0
