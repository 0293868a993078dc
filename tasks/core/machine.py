"""Where commands run: the protocol. Two machines speak it: a machine of its own (namespaces.py) and the host (here)."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from .errors import DmucError, Interrupted
from .progress import Progress

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


class Machine(Protocol):
    """Runs commands, starts daemons, opens connections. Files are read and written directly: the disk is the host's."""

    @property
    def stop(self) -> threading.Event:
        """The run's stop signal: a command that runs in the machine is then ended."""

    @property
    def name(self) -> str:
        """Its name: also its host name, and the link's."""

    @property
    def whole(self) -> bool:
        """Whether powering it off ends, and removes, all that was done on it."""

    def down(self) -> str | None:
        """Say in milliseconds why the machine is not up as wanted; None when it is."""

    def power_on(self, progress: Progress) -> None:
        """Bring it up, from any state. Raises DmucError when that cannot be."""

    def power_off(self) -> None:
        """End every process on it and take back what powering on made. Asks nobody, and can be repeated."""

    def enter(self) -> Sequence[str]:
        """The command prefix that runs a command in the machine."""

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon: a session of its own, no input, its output appended to `log`."""

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a TCP connection, or with SOCK_DGRAM a socket of UDP, from inside the machine. Raises OSError."""

    def path(self, inside: str) -> Path:
        """Where the host finds the machine's own file `inside`, such as a socket in /run."""


def run(machine: Machine, *command: str, stdin: str = "", timeout: float = 30.0) -> str:
    """Run a command in the machine to its end and return its output.

    Raises DmucError with the command, exit code and output when it fails, or has not ended after `timeout` seconds;
    Interrupted when the run ends meanwhile. The command is then ended with all that it has started.
    """
    from plumbum import CommandNotFound, local

    argv = [*machine.enter(), *command]
    tried = f"on {machine.name}: {shlex.join(command)}"
    pipe = subprocess.PIPE
    try:
        # A session of its own: nsenter and sh have children, which would otherwise outlive them and hold the pipes.
        process = local[argv[0]][argv[1:]].popen(stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except CommandNotFound:
        raise DmucError(tried, f"there is no program {argv[0]}", f"Install {argv[0]}.") from None
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


@dataclass(frozen=True)
class Host:
    """The machine that you are on. It is always up, and powering it off is not ours to do.

    It is `whole` for a cluster of which nothing is outside of its state.
    """

    name: str = "host"
    whole: bool = False
    stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    def down(self) -> str | None:
        """Nothing: it is up."""
        return None

    def power_on(self, progress: Progress) -> None:
        """Do nothing: it is up."""

    def power_off(self) -> None:
        """Do nothing: each daemon is ended by its pid."""

    def enter(self) -> Sequence[str]:
        """No prefix."""
        return ()

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        """Start a daemon; see Machine."""
        return spawn((), command, log, cwd, environment)

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """Open a TCP connection or a socket of UDP; see Machine."""
        return connected(socket.socket(type=kind), host, port, timeout)

    def path(self, inside: str) -> Path:
        """The path itself."""
        return Path(inside)


def is_root() -> bool:
    """Whether we may do what only root may."""
    return os.geteuid() == 0
