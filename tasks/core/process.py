"""A process that outlives us: the file that remembers it, and how we tell that it still is the one we started.

A pid alone proves nothing: it may have been given to another process since. The file holds the pid (first line, so that
`kill $(head -1 FILE)` works) and, as JSON, the process's start time in clock ticks since boot (field 22 of
/proc/PID/stat, see proc(5)), the boot it belongs to, and the command line and inputs it was started with.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .files import write_atomic

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Marks in a process's environment. Their names do not begin like settings' (DMUC_): an unknown one of those is refused.
_DAEMON, _PROGRAM = "OF_DMUC_DAEMON", "OF_DMUC_PROGRAM"


def start_time(pid: int) -> int | None:
    """Give the start time of process `pid` in clock ticks since boot; None when it is gone (or a zombie)."""
    try:
        # The name (field 2) may hold anything, so count from the last parenthesis.
        rest = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if rest[0] in "ZX" else int(rest[19])


def marks(record: Path, program: str) -> dict[str, str]:
    """Give the environment variables by which a process is found even when its file was never written."""
    return {_DAEMON: str(record), _PROGRAM: program}


def find(record: Path) -> list[int]:
    """Give the pids of the processes that were started with `marks` of this file. Their children inherit the marks, but
    are other programs, and are not meant.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = entry.read_bytes().split(b"\0")
            if f"{_DAEMON}={record}".encode() in variables:
                program = (entry.parent / "cmdline").read_bytes().split(b"\0")[0]
                if f"{_PROGRAM}=".encode() + program in variables:
                    found.append(int(entry.parent.name))
    return found


@dataclass(frozen=True)
class Record:
    """A process that we started."""

    pid: int
    started: int  # clock ticks since boot
    boot: str
    since: float  # seconds since the epoch
    command: Sequence[str]
    inputs: Mapping[str, str] = field(default_factory=dict)  # what it was started from: file or program -> fingerprint
    log_start: int = 0  # where in its log file this start begins, in bytes

    @classmethod
    def of(cls, pid: int, command: Sequence[str], inputs: Mapping[str, str], log_start: int = 0) -> Record:
        """Take down the live process `pid`; one that is gone already gives a record that is never alive."""
        boot = _BOOT_ID.read_text("utf-8").strip()
        return cls(pid, start_time(pid) or -1, boot, time.time(), list(command), dict(inputs), log_start)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """Read a record; None when there is none, or the file is not one of ours."""
        try:
            record = cls(**json.loads(path.read_text("utf-8").split("\n", 1)[1]))
        except (OSError, ValueError, TypeError, IndexError):
            return None
        return record if isinstance(record.pid, int) and isinstance(record.started, int) else None

    def save(self, path: Path) -> None:
        """Write the record whole or not at all."""
        write_atomic(path, f"{self.pid}\n{json.dumps(asdict(self), indent=1)}\n")

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return start_time(self.pid) == self.started and _BOOT_ID.read_text("utf-8").strip() == self.boot

    def stop(self, grace: float) -> None:
        """End the process: SIGTERM, and SIGKILL when it is still there after `grace` seconds. Returns when it is."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            if patience and self.alive():
                self._signal_and_wait(number, patience)

    def _signal_and_wait(self, number: signal.Signals, patience: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)  # holds on to this process, whatever happens to its number
            try:
                if self.alive():
                    signal.pidfd_send_signal(handle, number)
                    signal.pidfd_send_signal(handle, signal.SIGCONT)  # a stopped process ends only when it goes on
                    select.select([handle], [], [], patience)  # readable when it has ended
            finally:
                os.close(handle)
