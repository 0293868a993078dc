"""A command that runs in a machine: it ends in time, with all that it has started, and when the run ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tasks.core.errors import DmucError, Interrupted
from tasks.core.machine import Host, run
from tests.unit.support import eventually

LONG = 60.0  # seconds that nothing here takes, unless it hangs


def is_there(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def with_a_child(file: Path) -> tuple[str, ...]:
    """A shell that waits for a child, which holds the pipes as well; the child's pid is written to `file`."""
    return ("sh", "-c", f'sleep 777 & echo $! > "{file}"; wait')


def test_a_command_gets_its_input_and_its_output_is_returned() -> None:
    assert run(Host(), "cat", stdin="a\nb\n") == "a\nb\n"
    assert len(run(Host(), "cat", stdin="x" * 300_000)) == 300_000


def test_a_command_that_fails_is_told_with_its_exit_code_and_what_it_said() -> None:
    with pytest.raises(DmucError) as error:
        run(Host(), "sh", "-c", "echo no >&2; exit 7")
    assert error.value.seen == "exit code 7: no"


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(DmucError, match=r"not done after 0\.5 s; stopped"):
        run(Host(), *with_a_child(tmp_path / "child"), timeout=0.5)
    assert time.monotonic() - begun < LONG / 2
    child = int((tmp_path / "child").read_text())
    eventually(lambda: not is_there(child), "the child is gone")


def test_a_child_that_outlives_its_parent_is_not_waited_for(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run(Host(), "sh", "-c", "sleep 777 > /dev/null 2>&1 & echo done") == "done\n"
    assert time.monotonic() - begun < LONG / 2


def test_a_command_ends_when_the_run_ends(tmp_path: Path) -> None:
    host = Host(stop=threading.Event())

    def end() -> None:
        eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "the command runs")
        host.stop.set()

    ender = threading.Thread(target=end)
    ender.start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        run(host, *with_a_child(tmp_path / "child"), timeout=LONG)
    ender.join()
    assert time.monotonic() - begun < LONG / 2
    child = int((tmp_path / "child").read_text())
    eventually(lambda: not is_there(child), "the child is gone")


def test_a_command_leaves_no_open_files() -> None:
    def count() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    run(Host(), "true")
    before = count()
    for _ in range(5):
        run(Host(), "true")
    assert count() == before
