"""The machine of a node: its interface. There are two: a machine of its own (namespaces.py), and the host (here)."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from .errors import DmucError, Interrupted
from .files import content_digest, fingerprint, write_atomic
from .process import LocalProcesses, Record
from .progress import Progress
from .result import Result

if TYPE_CHECKING:
    from plumbum.commands.base import BaseCommand
    from plumbum.path.base import Path as PlumbumPath

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # PATH, but for what a user adds
# What the kernel calls a processor -> what Go, and so the sites of releases and container images, call it.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PAUSE = 0.1  # seconds between two looks at the stop signal while a command runs


@dataclass(frozen=True)
class Spawned:
    """A process started in the background: its pid as the host sees it, and how to ask for its exit code."""

    pid: int
    handle: subprocess.Popen[Any]

    def exit_code(self) -> int | None:
        """The exit code (128 + N when signal N ended it); waits a second for it, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.handle.wait(1)  # nsenter takes a moment to end after the process in the machine
        code = self.handle.poll()
        return code if code is None or code >= 0 else 128 - code


class Processes(Protocol):
    """The daemons of a machine: each has a file that remembers its process (see process.py)."""

    def recorded(self, pidfile: Path) -> Record | None:
        """Return the process that the file remembers; None when there is no such file, or it is not one of ours."""

    def all_recorded(self, directory: Path) -> list[Record]:
        """Return the processes that the files in the directory remember."""

    def save(self, pidfile: Path, pid: int, command: Sequence[str], inputs: Mapping[str, str], log_start: int) -> None:
        """Remember the live process `pid` in the file."""

    def is_alive(self, record: Record) -> bool:
        """Return whether this very process still runs: not another one with its pid."""

    def stop(self, record: Record, grace: float) -> None:
        """SIGTERM the process, and SIGKILL it after `grace` seconds. Raise DmucError when it does not end."""

    def find(self, pidfile: Path) -> list[Record]:
        """Return the processes that were started for this file, whatever is in it."""

    def kill_heirs(self, pidfile: Path) -> None:
        """SIGKILL what a daemon that has ended has left running. Raise DmucError when some do not end."""

    def boot(self) -> str:
        """Return the id of this boot of the machine's kernel."""


class Machine(Protocol):
    """Where a node's commands run and its files are: plumbum's bound commands, and plumbum's paths."""

    @property
    def stop(self) -> threading.Event:
        """The run's stop signal: a command that runs in the machine is then ended."""

    @property
    def name(self) -> str:
        """Its name: also its host name, and the link's."""

    @property
    def disposable(self) -> bool:
        """Whether powering it off ends, and removes, all that was done on it."""

    @property
    def processes(self) -> Processes:
        """Its daemons."""

    def is_up(self) -> Result:
        """Return in milliseconds whether the machine is up as it must be, or why not."""

    def power_on(self, progress: Progress) -> None:
        """Bring it up, from any state. Raise DmucError when that cannot be."""

    def power_off(self) -> None:
        """End every process on it and undo the power-on. Ask no process to end, and allow repetition."""

    def command(self, *words: str) -> BaseCommand:
        """Return the command, bound to the machine: it is not run yet. Raise DmucError when the machine is off."""

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon: a session of its own, no input, its output appended to `log`."""

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a TCP connection, or with SOCK_DGRAM a socket of UDP, from inside the machine. Raise OSError."""

    def path(self, inside: str | Path) -> PlumbumPath:
        """Return the file or directory that the machine sees under this name. Raise OSError when it is off."""

    def write(self, file: Path, text: str, mode: int) -> None:
        """Write one of the cluster's files, whole or not at all."""

    def fingerprints(self, programs: Collection[Path], files: Collection[Path]) -> dict[str, str]:
        """Return what tells versions of a file apart: size and time of programs, the content of other files."""


def run(machine: Machine, *command: str, stdin: str = "", timeout: float = 30.0) -> str:
    """Run a command in the machine to its end and return its output.

    Raises DmucError with the command, exit code and output when it fails, or has not ended after `timeout` seconds;
    Interrupted when the run ends meanwhile. The command is then ended with all that it has started.
    """
    from plumbum import CommandNotFound

    tried = f"on {machine.name}: {shlex.join(command)}"
    pipe = subprocess.PIPE
    try:
        # A session of its own: nsenter and sh have children, which would otherwise outlive them and hold the pipes.
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
    """Return what the process prints. Raises subprocess.TimeoutExpired when that takes too long, or `stop` is set."""
    end = time.monotonic() + timeout
    given: bytes | None = stdin
    while True:
        try:
            out, errors = process.communicate(given, timeout=min(_PAUSE, max(end - time.monotonic(), 0)))
            return out.decode(errors="replace"), errors.decode(errors="replace")
        except subprocess.TimeoutExpired:
            if stop.is_set() or time.monotonic() >= end:
                raise
            given = None  # communicate goes on with the rest


def _end_group(process: Any) -> None:
    """SIGKILL what is left of the process's group, the process itself among it, and wait for the process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError, ValueError):
            pipe.close()


def spawn(prefix: Sequence[str], command: Sequence[str], log: Path, cwd: Path, env: Mapping[str, str]) -> Spawned:
    """Start `prefix` + `command` in the background with exactly the environment `env`; what `spawn` stands on."""
    from plumbum import local

    # env(1) rather than our own chdir and environ: it acts behind the prefix, on the other side of a namespace.
    argv = [*prefix, "env", "-i", "-C", str(cwd), *(f"{k}={v}" for k, v in env.items()), *command]
    with log.open("ab") as out:
        # A session and a log of its own: a child that kept doit's pipes would keep doit waiting.
        child = local[argv[0]][argv[1:]].popen(stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    return Spawned(cast(int, child.pid), cast("subprocess.Popen[Any]", child))


def connected(stream: socket.socket, host: str, port: int, timeout: float) -> socket.socket:
    """Connect it, and give it. Raises OSError; then it is closed."""
    try:
        stream.settimeout(timeout)
        stream.connect((host, port))
    except OSError:
        stream.close()
        raise
    return stream


class Local:
    """What the machines on this host have in common: its kernel, and the directory of the cluster's state."""

    def enter(self) -> Sequence[str]:
        """Return the words before a command that make it run in the machine."""
        return ()

    def command(self, *words: str) -> BaseCommand:
        """Return the command, bound to the machine; see Machine."""
        from plumbum import local

        program, *arguments = (*self.enter(), *words)
        return local[program][arguments]

    @property
    def processes(self) -> Processes:
        """Its daemons; see Machine."""
        return LocalProcesses()

    def path(self, inside: str | Path) -> PlumbumPath:
        """Return the file that the machine sees under this name; see Machine."""
        from plumbum import LocalPath

        return LocalPath(str(inside))

    def write(self, file: Path, text: str, mode: int) -> None:
        """Write a file; see Machine."""
        write_atomic(file, text, mode)

    def fingerprints(self, programs: Collection[Path], files: Collection[Path]) -> dict[str, str]:
        """Return what tells each of these from another version; see Machine."""
        return {str(p): fingerprint(p) for p in programs} | {str(file): content_digest(file) for file in files}


@dataclass(frozen=True)
class Host(Local):
    """The machine that you are on. It is always up, and powering it off is not ours to do.

    It is `disposable` for a cluster of which nothing is outside of its state.
    """

    name: str = "host"
    disposable: bool = False
    stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    def is_up(self) -> Result:
        """Return that it is up."""
        return Result(True, "on")

    def power_on(self, progress: Progress) -> None:
        """Do nothing: it is up."""

    def power_off(self) -> None:
        """Do nothing: each daemon is ended by its pid."""

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon; see Machine."""
        return spawn(self.enter(), command, log, cwd, environment)

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a TCP connection or a socket of UDP; see Machine."""
        return connected(socket.socket(type=kind), host, port, timeout)


def is_root() -> bool:
    """Whether we may do what only root may."""
    return os.geteuid() == 0
