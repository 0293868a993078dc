"""A process that is taken down is told from every other, and only it is ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tasks.core import process as process_module
from tasks.core.errors import DmucError
from tasks.core.process import Record, end, kill_heirs, marks, members, start_time
from tests.unit.support import eventually

Start = Callable[..., "subprocess.Popen[bytes]"]

GRACEFUL = "print(flush=True); input()"  # ends by SIGTERM, as by default
LINGERING = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a Python script, and returns it when it is ready. All scripts end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str = GRACEFUL, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def taken_down(process: subprocess.Popen[bytes]) -> Record:
    return Record.of(process.pid, ["program"], {})


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


# Ending it


def test_a_graceful_process_ends_by_sigterm_and_at_once(start: Start) -> None:
    process = start()
    record = taken_down(process)
    assert record.alive()
    begun = time.monotonic()
    record.stop(60)
    assert not record.alive()
    assert process.wait(0.1) == -signal.SIGTERM
    assert time.monotonic() - begun < 20


def test_a_lingering_process_is_killed_after_its_grace(start: Start) -> None:
    process = start(LINGERING)
    record = taken_down(process)
    begun = time.monotonic()
    record.stop(0.3)
    assert time.monotonic() - begun >= 0.3
    assert not record.alive()
    assert process.wait(0.1) == -signal.SIGKILL


def test_a_process_without_grace_is_killed_at_once(start: Start) -> None:
    process = start()
    taken_down(process).stop(0)
    assert process.wait(0.1) == -signal.SIGKILL


def test_ending_it_while_it_goes_down_by_itself_waits_for_its_end(start: Start) -> None:
    process = start()
    record = taken_down(process)
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    record.stop(60)
    assert not record.alive()


def test_ending_it_again_is_nothing(start: Start) -> None:
    record = taken_down(start())
    record.stop(60)
    record.stop(60)
    assert not record.alive()


# Telling it from others


def not_ours(process: subprocess.Popen[bytes]) -> list[Record]:
    ours = taken_down(process)
    return [
        replace(ours, started=ours.started - 1),
        replace(ours, started=ours.started + 1),
        replace(ours, started=-1),
        replace(ours, boot="00000000-0000-0000-0000-000000000000"),
    ]


@pytest.mark.parametrize("case", range(4), ids=["started before", "started after", "never seen alive", "another boot"])
def test_a_foreign_process_with_the_same_pid_is_neither_alive_nor_signalled(start: Start, case: int) -> None:
    process = start()
    record = not_ours(process)[case]
    assert not record.alive()
    begun = time.monotonic()
    record.stop(60)
    assert time.monotonic() - begun < 10
    process.communicate(b"\n")  # only this makes it end well: any signal would show
    assert process.returncode == 0


def test_a_process_that_is_gone_is_not_alive_and_its_end_is_nothing(start: Start) -> None:
    process = start()
    record = taken_down(process)
    process.kill()
    process.wait()
    assert not record.alive()
    record.stop(60)


def test_a_zombie_is_dead(start: Start) -> None:
    process = start()
    record = taken_down(process)
    process.kill()
    eventually(lambda: is_zombie(process.pid), "the killed process is a zombie")
    assert start_time(process.pid) is None
    assert not record.alive()
    record.stop(60)
    assert not taken_down(process).alive()  # taken down too late: never alive


def test_a_process_with_a_name_that_looks_like_its_state_is_read_right(start: Start) -> None:
    name = ") Z 1 (x"
    process = start(f"open('/proc/self/comm', 'w').write({name!r}); {GRACEFUL}")
    assert Path(f"/proc/{process.pid}/comm").read_text() == f"{name}\n"
    record = taken_down(process)
    assert record.alive()
    record.stop(60)
    assert process.wait(0.1) == -signal.SIGTERM


def test_a_pid_that_cannot_be_is_not_alive() -> None:
    for pid in (0, -1, 2**31 - 1):
        record = Record.of(pid, [], {})
        assert not record.alive()
        record.stop(1)


# The file


def test_a_record_is_read_as_it_was_written(start: Start, tmp_path: Path) -> None:
    process = start()
    record = Record.of(process.pid, ["a", "b c"], {"file": "print"}, 7)
    record.save(tmp_path / "x.pid")
    assert Record.load(tmp_path / "x.pid") == record
    assert [path.name for path in tmp_path.iterdir()] == ["x.pid"]


def test_the_first_line_is_the_pid_for_a_shell(start: Start, tmp_path: Path) -> None:
    process = start()
    taken_down(process).save(tmp_path / "x.pid")
    subprocess.run(["sh", "-c", f"kill $(head -1 {tmp_path}/x.pid)"], check=True)
    assert process.wait(10) == -signal.SIGTERM


def test_a_record_that_cannot_be_written_leaves_the_old_one(start: Start, tmp_path: Path) -> None:
    record = taken_down(start())
    record.save(tmp_path / "x.pid")
    with pytest.raises(TypeError):
        replace(record, inputs={"a": object()}).save(tmp_path / "x.pid")  # type: ignore[dict-item]
    assert Record.load(tmp_path / "x.pid") == record


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"1",
        b"1\n",
        b"1\n\n",
        b"1\n{}",
        b"1\n[]",
        b"1\nnull",
        b'1\n{"pid": 1}',
        b'1\n{"pid": 1, "started": 2, "boot"',
        b'1\n{"unknown": 1}',
        b"\xff\xfe\n{}",
        b"\0" * 100,
    ],
)
def test_rubbish_in_the_file_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pid").write_bytes(content)
    assert Record.load(tmp_path / "x.pid") is None


def test_no_file_and_no_directory_are_no_record(tmp_path: Path) -> None:
    assert Record.load(tmp_path / "x.pid") is None
    assert Record.load(tmp_path / "nowhere" / "x.pid") is None
    assert Record.load(tmp_path) is None


@pytest.mark.parametrize("started", [None, "1", [], 1.5])
def test_a_forged_record_is_not_alive(start: Start, tmp_path: Path, started: object) -> None:
    process = start()
    process.kill()
    process.wait()
    forged = asdict(taken_down(process)) | {"started": started}
    (tmp_path / "x.pid").write_text(f"{process.pid}\n{json.dumps(forged)}\n")
    record = Record.load(tmp_path / "x.pid")
    assert record is None or not record.alive()


# Those that no file names


def test_a_daemon_is_all_processes_with_its_mark(start: Start, tmp_path: Path) -> None:
    record = tmp_path / "x.pid"
    ours = [start(**marks(record)) for _ in range(2)]
    start(**marks(tmp_path / "x.pid2"))
    (mark,) = marks(record)
    start(OTHER=f"{mark}={record}")
    start()
    assert members(record) == {process.pid: start_time(process.pid) for process in ours}
    assert members(record, outlived_by=[Path(sys.executable).name]) == {}


# A container engine's shims have its marks; their containers have not, and are below them.
SHIM = """
import os, subprocess, sys
container = subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE, env={})
print(flush=True)
input()
"""


def test_all_that_a_daemon_has_left_is_ended_and_nothing_else(start: Start, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.pid", tmp_path / "theirs.pid"
    shims = {record: start(SHIM, **marks(record)) for record in (ours, theirs)}
    containers = {}
    for record, shim in shims.items():
        children = Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()
        containers[record] = int(children[0])
    kill_heirs(ours)
    assert shims[ours].wait(10) == -signal.SIGKILL
    eventually(lambda: start_time(containers[ours]) is None, "its container ends")
    assert shims[theirs].poll() is None and start_time(containers[theirs]) is not None
    kill_heirs(ours)  # with none left
    kill_heirs(theirs)


# A part in a session of its own, which its parent ends, as Docker does with its containerd.
WITH_A_PART = """
import os, signal, subprocess, sys
script = "import time; print(flush=True); time.sleep(600)"
part = subprocess.Popen([sys.executable, "-IS", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
part.stdout.readline()
def end(number, frame):
    part.send_signal(signal.SIGINT)
    sys.exit(7 if part.wait() == -signal.SIGINT else 8)
signal.signal(signal.SIGTERM, end)
print(flush=True)
input()
"""


def test_a_part_that_it_ends_itself_is_left_to_it(start: Start, tmp_path: Path) -> None:
    process = start(WITH_A_PART, **marks(tmp_path / "x.pid"))
    assert len(members(tmp_path / "x.pid")) == 2
    end(tmp_path / "x.pid", 60)
    assert process.wait(0.1) == 7
    assert members(tmp_path / "x.pid") == {}


def test_what_does_not_end_by_itself_is_killed_after_its_grace(start: Start, tmp_path: Path) -> None:
    lingering, graceful = (start(script, **marks(tmp_path / "x.pid")) for script in (LINGERING, GRACEFUL))
    begun = time.monotonic()
    end(tmp_path / "x.pid", 0.3)
    assert 0.3 <= time.monotonic() - begun < 10
    assert (lingering.wait(0.1), graceful.wait(0.1)) == (-signal.SIGKILL, -signal.SIGTERM)


# What does not end


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes signals, and nothing comes of them: as with a process that waits for a dead disk."""
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda handle, number: None)
    monkeypatch.setattr(process_module, "_KILLED_WITHIN", 0.2)


def test_that_a_process_does_not_end_is_said(start: Start, unkillable: None) -> None:
    process = start()
    with pytest.raises(DmucError) as error:
        taken_down(process).stop(0.1)
    assert f"(pid {process.pid})" in error.value.tried
    assert "0.2 s after SIGKILL" in error.value.seen
    assert process.poll() is None


def test_that_some_of_many_do_not_end_is_said(start: Start, tmp_path: Path, unkillable: None) -> None:
    record = tmp_path / "x.pid"
    processes = [start(**marks(record)) for _ in range(2)]
    with pytest.raises(DmucError) as error:
        kill_heirs(record)
    assert all(f"(pid {process.pid})" in error.value.tried for process in processes)
