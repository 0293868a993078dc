"""One doit at a time: the second is told who the first is, and the machine is free again however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tasks.core import lock
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.lock import only_one
from tasks.core.machine import Host, is_root
from tests.unit.support import CHECKOUT, a_context

HOLDER = """
import sys
from pathlib import Path
from tasks.core import lock
from tests.unit.support import a_context
lock._OF_ROOT = Path(sys.argv[1])
with lock.only_one(a_context(Path(sys.argv[2]), machine=sys.argv[3]), *sys.argv[4:]):
    print("held", flush=True)
    input()
"""


@pytest.fixture(params=[True, False], ids=["root", "user"])
def of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Root's directory of locks; but only the test's own."""
    directory = tmp_path / "run"
    monkeypatch.setattr(lock, "_OF_ROOT", directory)
    monkeypatch.setattr(lock, "is_root", lambda: request.param)
    return directory


@pytest.fixture
def context(of_root: Path, tmp_path: Path) -> Context:
    return a_context(tmp_path / "checkout", machine="one")


@contextmanager
def another_process_holding(of_root: Path, context: Context, *what: str) -> Iterator[subprocess.Popen[str]]:
    root, name = context.state.parent.parent, context.settings.machine
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, of_root, root, name, *what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# In the holder's process nothing is patched but the directory: these are as root, or as an ordinary user, really is.
if is_root():
    REAL = pytest.mark.parametrize("of_root", [True], indirect=True, ids=["root"])
else:
    REAL = pytest.mark.parametrize("of_root", [False], indirect=True, ids=["user"])


@REAL
def test_the_second_is_told_who_the_first_is(of_root: Path, context: Context) -> None:
    with another_process_holding(of_root, context) as holder:
        with pytest.raises(DmucError) as error, only_one(context):
            pytest.fail("two at a time")
        assert error.value.tried == f"locking the machine {context.settings.machine}"
        assert f"(pid {holder.pid})" in error.value.seen
        assert "machine=NAME" in error.value.do


@REAL
def test_it_is_free_again_after_the_holder_was_killed(of_root: Path, context: Context) -> None:
    with another_process_holding(of_root, context) as holder:
        holder.kill()
        holder.wait()
        with only_one(context):
            pass
    assert nothing_is_left(of_root, context)


def nothing_is_left(of_root: Path, context: Context) -> bool:
    return not of_root.exists() and list(context.state.parent.iterdir()) == [context.state]


def is_taken(context: Context, *what: str) -> bool:
    try:
        with only_one(context, *what):
            return False
    except DmucError:
        return True


def test_another_machine_and_what_else_there_is_of_this_one_are_free(context: Context, tmp_path: Path) -> None:
    others = [a_context(tmp_path / "checkout", machine=name) for name in ("one-tour", "one.tour", "host.one")]
    with only_one(context), only_one(context, "tour"):
        assert is_taken(context) and is_taken(context, "tour")
        assert not any(is_taken(other) for other in others)


def test_it_is_free_again_after_the_body_and_after_an_error_in_it(context: Context) -> None:
    with only_one(context):
        pass
    with pytest.raises(ZeroDivisionError), only_one(context):
        raise ZeroDivisionError
    with only_one(context):
        pass


def test_a_machine_is_the_same_for_every_checkout_of_root(of_root: Path, context: Context, tmp_path: Path) -> None:
    other = a_context(tmp_path / "another checkout", machine="one")
    with only_one(context):
        assert is_taken(other) == lock._OF_ROOT.exists()


def test_clusters_beside_each_other_are_each_in_its_own_state(context: Context, tmp_path: Path) -> None:
    one, other = (a_context(tmp_path / name, machine="host.one") for name in ("here", "there"))
    with only_one(one):
        assert is_taken(one) and not is_taken(other)


def test_a_long_path_makes_no_difference(context: Context, tmp_path: Path) -> None:
    ours = a_context(tmp_path / ("long " * 30) / ("longer " * 30), machine="host.one")
    theirs = a_context(tmp_path / ("long " * 30) / ("other " * 30), machine="host.one")
    with only_one(ours):
        assert is_taken(ours) and not is_taken(theirs)


def test_what_was_started_meanwhile_does_not_hold_it(context: Context, tmp_path: Path) -> None:
    with only_one(context):
        spawned = Host().spawn(
            ["sleep", "60"], log=tmp_path / "log", cwd=tmp_path, environment={"PATH": "/usr/bin:/bin"}
        )
    try:
        assert spawned.handle.poll() is None
        with only_one(context):
            pass
    finally:
        spawned.handle.kill()
        spawned.handle.wait()


def test_it_leaves_no_file(of_root: Path, context: Context) -> None:
    with only_one(context), only_one(context, "tour"):
        assert not nothing_is_left(of_root, context)
    assert nothing_is_left(of_root, context)


def test_it_is_held_also_where_its_state_goes_meanwhile(of_root: Path, context: Context) -> None:
    with only_one(context):  # as clean does
        context.state.rmdir()
        with suppress(OSError):
            context.state.parent.rmdir()
        assert is_taken(context)
    assert not of_root.exists() and not context.state.parent.exists()


def test_of_many_at_once_never_two_have_it(context: Context) -> None:
    """Each that ends removes the file while others are opening it."""
    inside, together, had = [0], [0], [0]

    def work() -> None:
        while had[0] < 300:
            with suppress(DmucError), only_one(context):
                inside[0] += 1
                together[0] = max(together[0], inside[0])
                had[0] += 1
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(8)]:
            done.result()
    assert together == [1]


def test_a_directory_that_cannot_be_made_is_said(context: Context, of_root: Path) -> None:
    context.state.rmdir()
    context.state.parent.rmdir()
    for directory in (of_root, context.state.parent):
        directory.symlink_to("nowhere")
    with pytest.raises(DmucError, match="cannot be made"), only_one(context):
        pytest.fail("taken")


def test_a_file_that_has_gone_meanwhile_is_no_lock(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, next_holder = fcntl.flock, ExitStack()

    def late(handle: int, how: int) -> None:
        """The one that held it removes the file after we have opened it, and the next one makes another."""
        monkeypatch.setattr(fcntl, "flock", flock)
        Path(f"/proc/self/fd/{handle}").readlink().unlink()
        next_holder.enter_context(only_one(context))
        flock(handle, how)

    with next_holder:
        monkeypatch.setattr(fcntl, "flock", late)
        assert is_taken(context)


@pytest.mark.skipif(not is_root(), reason="being another user takes root")
def test_another_user_can_neither_take_it_nor_keep_it_from_us(context: Context, of_root: Path) -> None:
    def as_another_user() -> None:
        os.setgid(65534)
        os.setuid(65534)

    with ExitStack() as abstract:
        for name in ("one", context.state):  # what a lock was once
            held = abstract.enter_context(socket.socket(socket.AF_UNIX))
            with suppress(OSError):
                held.bind(f"\0dmuc/{name}")
        with only_one(context):
            (file,) = (path for directory in (of_root, context.state.parent) for path in directory.glob(".*.lock"))
            file.parent.chmod(0o755)  # so that it is the file alone that refuses
            directory = os.open(file.parent, os.O_RDONLY)
            try:
                done = subprocess.run(
                    ["cat", f"/proc/self/fd/{directory}/{file.name}"],
                    pass_fds=[directory],
                    preexec_fn=as_another_user,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            finally:
                os.close(directory)
            assert "Permission denied" in done.stderr


def test_a_link_in_its_place_is_not_followed(context: Context, of_root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for directory in (of_root, context.state.parent):
        directory.mkdir(exist_ok=True)
        (directory / ".one.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), only_one(context):
        pytest.fail("taken")
    assert (tmp_path / "precious").read_text() == "precious"
