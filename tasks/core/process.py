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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import DmucError
from .files import write_atomic

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Marks in a process's environment. Their names do not begin like settings' (DMUC_): an unknown one of those is refused.
_DAEMON, _PROGRAM = "OF_DMUC_DAEMON", "OF_DMUC_PROGRAM"
_KILLED_WITHIN = 10.0  # seconds after SIGKILL; what is there longer is held by the kernel


def boot() -> str:
    """Return the id of this boot of the host."""
    return _BOOT_ID.read_text("utf-8").strip()


def start_time(pid: int) -> int | None:
    """Give the start time of process `pid` in clock ticks since boot; None when it is gone (or a zombie)."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state. Raises OSError when there is no such process."""
    # The name (field 2) may hold anything, so count from the last parenthesis.
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def marks(record: Path, program: str) -> dict[str, str]:
    """Give the environment variables by which a process is found even when its file was never written."""
    return {_DAEMON: str(record), _PROGRAM: program}


def _is_marked(pid: int, record: Path, *, as_daemon: bool = False) -> bool:
    """Whether the process has the `marks` of this file; `as_daemon`: and is the program that they name."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"{_DAEMON}={record}".encode() not in variables:
            return False
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False
    return not as_daemon or f"{_PROGRAM}=".encode() + program in variables


def _pids() -> Iterable[int]:
    return (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))


def find(record: Path) -> list[Record]:
    """Return the processes that were started with `marks` of this file. Their children inherit the marks, but are
    other programs, and are not meant.
    """
    # The start time is read before the marks are read once more: so it belongs to the process that has them.
    found = [Record.of(pid, (), {}) for pid in _pids() if _is_marked(pid, record, as_daemon=True)]
    return [process for process in found if _is_marked(process.pid, record, as_daemon=True) and process.alive()]


def kill_heirs(record: Path) -> None:
    """SIGKILL what a daemon has left running: all that inherited its `marks`, and all that descends from those.

    For a container engine that has ended these are the shims, and the containers below them, whose environment is
    their own. Raises DmucError when some do not end.
    """
    # The containers first: as long as its shim lives, an orphan of a container stays below it and is found.
    kill_all(lambda: _heirs(record, marked=False))
    kill_all(lambda: _heirs(record, marked=True))


def _heirs(record: Path, *, marked: bool) -> dict[int, int]:
    """The start times, by pid, of the processes that have the marks, or of those below them that have not."""
    started: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            if fields[0] not in "ZX":
                started[pid] = int(fields[19])
                children.setdefault(int(fields[1]), []).append(pid)
    ours = {pid for pid in started if _is_marked(pid, record)}
    below, left = set[int](), [*ours]
    while left:
        new = set(children.get(left.pop(), ())) - ours - below
        below |= new
        left += new
    return {pid: started[pid] for pid in (ours if marked else below)}


def kill_all(processes: Callable[[], Mapping[int, int]]) -> None:
    """SIGKILL the processes that `processes` returns, by pid with their start times, until it returns none.

    Raises DmucError when there are some after 10 s.
    """
    import tenacity

    def kill() -> Mapping[int, int]:
        left = processes()
        for pid, started in left.items():
            _signal(pid, started, signal.SIGKILL)
        return left

    left: Mapping[int, int] = tenacity.Retrying(
        retry=tenacity.retry_if_result(bool),
        wait=tenacity.wait_fixed(0.005),
        stop=tenacity.stop_after_delay(_KILLED_WITHIN),
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )(kill)
    if left:
        raise _does_not_end(left)


def _signal(pid: int, started: int, number: signal.Signals, patience: float = 0.0) -> None:
    """Send the signal to this very process, and wait up to `patience` seconds for its end."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)  # holds on to this process, whatever happens to its number
        try:
            if start_time(pid) == started:
                signal.pidfd_send_signal(handle, number)
                signal.pidfd_send_signal(handle, signal.SIGCONT)  # a stopped process ends only when it goes on
                select.select([handle], [], [], patience)  # readable when it has ended
        finally:
            os.close(handle)


def _does_not_end(pids: Iterable[int]) -> DmucError:
    return DmucError(
        f"ending {', '.join(_named(pid) for pid in sorted(pids))}",
        f"Still there {_KILLED_WITHIN:g} s after SIGKILL: the kernel holds on to it, as when a disk does not answer.",
        "What it waits for: cat /proc/PID/stack. When it has ended, or after a reboot, do the same again.",
    )


def _named(pid: int) -> str:
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text('utf-8', 'replace').strip()} (pid {pid})"
    except OSError:
        return f"pid {pid}"


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
        return cls(pid, start_time(pid) or -1, boot(), time.time(), list(command), dict(inputs), log_start)

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
        return start_time(self.pid) == self.started and boot() == self.boot

    def stop(self, grace: float) -> None:
        """End the process: SIGTERM, and SIGKILL when it is still there after `grace` seconds.

        Raises DmucError when it is there even 10 s after that.
        """
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILLED_WITHIN)):
            if patience and self.alive():
                _signal(self.pid, self.started, number, patience)
        if self.alive():
            raise _does_not_end([self.pid])


class LocalProcesses:
    """The daemons of a machine on this host (see Processes in machine.py): all are in the host's /proc."""

    def recorded(self, pidfile: Path) -> Record | None:
        """Return the process that the file remembers."""
        return Record.load(pidfile)

    def all_recorded(self, directory: Path) -> list[Record]:
        """Return the processes that the files in the directory remember."""
        return [record for path in directory.glob("*.pid") if (record := Record.load(path))]

    def save(self, pidfile: Path, pid: int, command: Sequence[str], inputs: Mapping[str, str], log_start: int) -> None:
        """Remember the live process `pid` in the file."""
        Record.of(pid, command, inputs, log_start).save(pidfile)

    def is_alive(self, record: Record) -> bool:
        """Return whether this very process still runs."""
        return record.alive()

    def stop(self, record: Record, grace: float) -> None:
        """SIGTERM the process, and SIGKILL it after `grace` seconds."""
        record.stop(grace)

    def find(self, pidfile: Path) -> list[Record]:
        """Return the processes that were started for this file."""
        return find(pidfile)

    def kill_heirs(self, pidfile: Path) -> None:
        """SIGKILL what a daemon that has ended has left running."""
        kill_heirs(pidfile)

    def boot(self) -> str:
        """Return the id of this boot."""
        return boot()
