"""Where commands run: the protocol. Two machines speak it: a machine of its own (namespaces.py) and the host (here)."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from .errors import DmucError
from .progress import Progress


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
    """Run a command in the machine to its end and give its output.

    Raises DmucError with the command, exit code and output when it fails, or has not ended after `timeout` seconds.
    """
    from plumbum import CommandNotFound, ProcessExecutionError, ProcessTimedOut, local

    argv = [*machine.enter(), *command]
    tried = f"on {machine.name}: {shlex.join(command)}"
    try:
        output: str = (local[argv[0]][argv[1:]] << stdin)(timeout=timeout)
    except ProcessExecutionError as error:
        raise DmucError(tried, f"exit code {error.retcode}: {(error.stderr or error.stdout).strip()}") from None
    except ProcessTimedOut:
        raise DmucError(tried, f"not done after {timeout:g} s; stopped") from None
    except CommandNotFound:
        raise DmucError(tried, f"there is no program {argv[0]}", f"Install {argv[0]}.") from None
    return output


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
