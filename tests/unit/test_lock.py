"""One doit at a time: the second is told who the first is, and the machine is free again however that ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.core.lock import only_one
from tasks.core.machine import Host
from tests.unit.support import CHECKOUT

HOLDER = (
    "import sys; from tasks.core.lock import only_one\nwith only_one(sys.argv[1]): print('held', flush=True); input()"
)


@pytest.fixture
def name(tmp_path: Path) -> str:
    return f"unit-{tmp_path}"  # nobody else's


@contextmanager
def another_process_holding(name: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_is_told_who_the_first_is(name: str) -> None:
    with another_process_holding(name) as holder:
        with pytest.raises(DmucError) as error, only_one(name):
            pytest.fail("two at a time")
        assert error.value.tried == f"locking the machine {name}"
        assert f"(pid {holder.pid})" in error.value.seen
        assert "machine=NAME" in error.value.do


def test_another_machine_is_free(name: str) -> None:
    with another_process_holding(name), only_one(f"{name}-2"):
        pass


def test_it_is_free_again_after_the_holder_was_killed(name: str) -> None:
    with another_process_holding(name) as holder:
        holder.kill()
        holder.wait()
        with only_one(name):
            pass


def test_it_is_free_again_after_the_body_and_after_an_error_in_it(name: str) -> None:
    with only_one(name):
        pass
    with pytest.raises(ZeroDivisionError), only_one(name):
        raise ZeroDivisionError
    with only_one(name):
        pass


def test_what_was_started_meanwhile_does_not_hold_it(name: str, tmp_path: Path) -> None:
    with only_one(name):
        spawned = Host().spawn(
            ["sleep", "60"], log=tmp_path / "log", cwd=tmp_path, environment={"PATH": "/usr/bin:/bin"}
        )
    try:
        assert spawned.handle.poll() is None
        with only_one(name):
            pass
    finally:
        spawned.handle.kill()
        spawned.handle.wait()


def test_it_leaves_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with only_one(name):
        assert list(tmp_path.iterdir()) == []


def test_however_many_ask_each_is_answered(name: str) -> None:
    told: list[str] = []
    wanted = 200  # as `until doit; do sleep 1; done` does while a build runs

    def ask() -> None:
        while len(told) < wanted and not over.is_set():
            with suppress(DmucError), only_one(name):
                return
            told.append(name)

    over = threading.Event()
    asking = threading.Thread(target=ask, daemon=True)
    with only_one(name):
        asking.start()
        asking.join(1.5)
        answered = len(told)
        over.set()
    asking.join(20)
    assert answered == wanted
