"""Processes that outlive the run: the pidfile that records a process, and how to recognize the process again.

A pid alone proves nothing, because the kernel may have reused it. The pidfile contains the pid (first line, so that
`kill $(head -1 FILE)` works) and, as JSON, the process's start time in clock ticks since boot (field 22 of
/proc/PID/stat, see proc(5)), the id of that boot, and the command line and inputs with which it was started.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import DmucError
from .files import write_atomic

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A mark in a process's environment. It does not begin with DMUC_ like settings: an unknown setting is an error.
_DAEMON = "OF_DMUC_DAEMON"
_KILLED_WITHIN = 10.0  # seconds after SIGKILL; a process that exists longer is stuck in the kernel


def boot() -> str:
    """Return the id of the host's current boot."""
    return _BOOT_ID.read_text("utf-8").strip()


def start_time(pid: int) -> int | None:
    """Return the start time of process `pid` in clock ticks since boot; None when it is gone (or a zombie)."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third (the state) on. Raise OSError if there is no such process."""
    # The name (field 2) may contain any character, so count from the last parenthesis.
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def marks(record: Path) -> dict[str, str]:
    """Return the environment variables by which the processes of a daemon can be found, whatever its pidfile says."""
    return {_DAEMON: str(record)}


def _is_marked(pid: int, record: Path) -> bool:
    """Return whether the process has the `marks` of this pidfile."""
    try:
        return f"{_DAEMON}={record}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _is_program(pid: int, names: Collection[str]) -> bool:
    try:
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False
    return os.path.basename(os.fsdecode(program)) in names  # noqa: PTH119


def _pids() -> Iterable[int]:
    return (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))


@dataclass(frozen=True)
class _Process:
    started: int  # clock ticks since boot
    parent: int
    group: int


def _table() -> dict[int, _Process]:
    """Return all processes that run, by pid."""
    found = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            state, parent, group, *rest = _stat(pid)
            if state not in "ZX":
                found[pid] = _Process(int(rest[16]), int(parent), int(group))
    return found


def _with_descendants(pids: Iterable[int], table: Mapping[int, _Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found, left = set[int](), [*pids]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return found


def _members(record: Path, outlived_by: Collection[str], table: Mapping[int, _Process]) -> set[int]:
    """Return the pids of the processes that a daemon consists of: see `members`."""
    # The marks are read after the start times in `table`, which therefore belong to the processes with the marks.
    marked = {pid for pid in table if _is_marked(pid, record)}
    if not marked:
        return marked
    stay = {pid for pid in marked if _is_program(pid, outlived_by)} if outlived_by else set[int]()
    return _with_descendants(marked - stay, table) - _with_descendants(stay, table)


def members(record: Path, outlived_by: Collection[str] = ()) -> dict[int, int]:
    """Return the start times, by pid, of all processes of the daemon with this pidfile.

    These are the processes with its `marks`, such as a wrapper and the program that it runs, and their descendants;
    but not the programs called `outlived_by`, and what is below these.
    """
    table = _table()
    return {pid: table[pid].started for pid in _members(record, outlived_by, table)}


def end(record: Path, grace: float, outlived_by: Collection[str] = ()) -> None:
    """End all `members` of a daemon: SIGTERM, and SIGKILL those that still run after `grace` seconds.

    SIGTERM goes to each process that no other member has started, with its process group: to a wrapper and what it
    runs, as by Ctrl-C on a terminal, but not to a part that the program has put into a group of its own and ends
    itself. What is left of such parts gets it afterwards. Raise DmucError when some processes do not end.
    """
    until = time.monotonic() + grace
    asked = set[tuple[int, int]]()
    while time.monotonic() < until:
        table = _table()
        there = _members(record, outlived_by, table)
        if not there:
            return
        groups = {table[pid].group for pid in there if table[pid].parent not in there}
        first = {pid: table[pid].started for pid in there if table[pid].group in groups}
        for pid, started in first.items():
            if (pid, started) not in asked:
                asked.add((pid, started))
                _signal(pid, started, signal.SIGTERM)
        _await_end(first, until)
    kill_all(lambda: members(record, outlived_by))


def _await_end(processes: Mapping[int, int], until: float) -> None:
    """Return when all of these processes (pid -> start time) have ended, or at `until` (monotonic)."""
    for pid, started in processes.items():
        with contextlib.suppress(OSError):  # it has ended
            handle = os.pidfd_open(pid)
            try:
                if start_time(pid) == started:
                    select.select([handle], [], [], max(until - time.monotonic(), 0))
            finally:
                os.close(handle)


def kill_heirs(record: Path) -> None:
    """SIGKILL what a daemon has left running: all processes that inherited its `marks`, and their descendants.

    For a container engine that has ended these are the shims, and below them the containers, whose environment has no
    marks. Raise DmucError when some processes do not end.
    """
    # The containers first: while the shim lives, an orphan in a container remains its descendant and is found.
    kill_all(lambda: _heirs(record, marked=False))
    kill_all(lambda: _heirs(record, marked=True))


def _heirs(record: Path, *, marked: bool) -> dict[int, int]:
    """Return the start times, by pid, of the processes with the marks, or of their descendants without the marks."""
    table = _table()
    with_marks = {pid for pid in table if _is_marked(pid, record)}
    below = _with_descendants(with_marks, table) - with_marks
    return {pid: table[pid].started for pid in (with_marks if marked else below)}


def kill_all(processes: Callable[[], Mapping[int, int]]) -> None:
    """SIGKILL the processes that `processes` returns (pid -> start time), until it returns none.

    Raise DmucError when it still returns some after 10 s.
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
    """Send the signal to the process with this pid and start time; wait up to `patience` seconds for its end."""
    with contextlib.suppress(ProcessLookupError):
        try:
            handle = os.pidfd_open(pid)  # refers to this process, even if the kernel reuses its pid
        except OSError as error:
            if error.errno == errno.EINVAL:  # it has ended, and a thread of another process has its number
                return
            raise
        try:
            if start_time(pid) == started:
                signal.pidfd_send_signal(handle, number)
                signal.pidfd_send_signal(handle, signal.SIGCONT)  # a stopped process ends only when it continues
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
    """A process that dmuc started, as its pidfile records it."""

    pid: int
    started: int  # clock ticks since boot
    boot: str
    since: float  # seconds since the epoch
    command: Sequence[str]
    inputs: Mapping[str, str] = field(default_factory=dict)  # file or program -> its fingerprint at the start
    log_start: int = 0  # the offset in its log file, in bytes, at which this start begins

    @classmethod
    def of(cls, pid: int, command: Sequence[str], inputs: Mapping[str, str], log_start: int = 0) -> Record:
        """Return a record of the running process `pid`; of a process that is already gone, one that is never alive."""
        return cls(pid, start_time(pid) or -1, boot(), time.time(), list(command), dict(inputs), log_start)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """Return the record in a pidfile; None when there is no such file, or dmuc did not write it."""
        try:
            record = cls(**json.loads(path.read_text("utf-8").split("\n", 1)[1]))
        except (OSError, ValueError, TypeError, IndexError):
            return None
        return record if isinstance(record.pid, int) and isinstance(record.started, int) else None

    def save(self, path: Path) -> None:
        """Write the record into a pidfile, atomically."""
        write_atomic(path, f"{self.pid}\n{json.dumps(asdict(self), indent=1)}\n")

    def alive(self) -> bool:
        """Return whether the recorded process still runs; another process with the same pid does not count."""
        return start_time(self.pid) == self.started and boot() == self.boot

    def stop(self, grace: float) -> None:
        """End the process: send SIGTERM, and SIGKILL when it still runs after `grace` seconds.

        Raise DmucError when it still exists 10 s later.
        """
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILLED_WITHIN)):
            if patience and self.alive():
                _signal(self.pid, self.started, number, patience)
        if self.alive():
            raise _does_not_end([self.pid])


class LocalProcesses:
    """The processes of a machine on this host, which are all in the host's /proc; see Processes in machine.py."""

    def recorded(self, pidfile: Path) -> Record | None:
        """Return the process that the pidfile records; see Processes."""
        return Record.load(pidfile)

    def all_recorded(self, directory: Path) -> list[Record]:
        """Return the processes that the pidfiles in the directory record."""
        return [record for path in directory.glob("*.pid") if (record := Record.load(path))]

    def save(self, pidfile: Path, pid: int, command: Sequence[str], inputs: Mapping[str, str], log_start: int) -> None:
        """Record the running process `pid` in the pidfile."""
        Record.of(pid, command, inputs, log_start).save(pidfile)

    def is_alive(self, record: Record) -> bool:
        """Return whether the recorded process still runs."""
        return record.alive()

    def stop(self, pidfile: Path, grace: float, outlived_by: Collection[str]) -> None:
        """End all processes of the daemon with this pidfile; see Processes."""
        record = Record.load(pidfile)
        if record is not None and not _is_marked(record.pid, pidfile):
            record.stop(grace)
        end(pidfile, grace, outlived_by)

    def kill_heirs(self, pidfile: Path) -> None:
        """SIGKILL all processes that an ended daemon has left running."""
        kill_heirs(pidfile)

    def boot(self) -> str:
        """Return the id of the host's current boot."""
        return boot()
