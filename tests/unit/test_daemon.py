"""A daemon is started, waited for, judged and stopped: real processes on the host stand for those of the cluster."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.core import daemon as daemon_module
from tasks.core import http_client, process
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError, Interrupted
from tasks.core.flags import Flag
from tasks.core.machine import Host, Spawned
from tasks.core.probe import Http
from tasks.core.process import Record, marks, start_time
from tasks.core.progress import Silent
from tasks.core.result import Result
from tests.unit.support import (
    Told,
    a_context,
    a_program,
    ending_the_run,
    eventually,
    free_port,
    on_machine,
    set_programs,
)

# Answers 200 at /healthz, and at /readyz when the file `ready` is in the directory that it works in.
FAKE = """
import os, socket, sys
port, *rest = sys.argv[1:]
print("arguments:", *rest, flush=True)
with socket.create_server(("127.0.0.1", int(port))) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            path = connection.recv(4096).split()[1:2]
            ok = path == [b"/healthz"] or path == [b"/readyz"] and os.path.exists("ready")
            connection.sendall(b"HTTP/1.1 %d X\\r\\nContent-Length: 2\\r\\n\\r\\nok" % (200 if ok else 503))
"""
ENDING = """
import sys
print("one\\ntwo\\nlisten tcp 127.0.0.1:1: bind: address already in use", flush=True)
print("Traceback: the last line", file=sys.stderr, flush=True)
sys.exit(3)
"""
DEAF = "print('here I am', flush=True); import time; time.sleep(600)"
LINGERING = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


class Lab:
    """A context, and the daemons that are tried out in it."""

    def __init__(self, root: Path) -> None:
        self.context = a_context(root, deadline=60.0)
        self.port = free_port()
        self.programs: dict[str, str | Path] = {"fake": sys.executable}
        set_programs(self.context, self.programs)
        self.pids: set[int] = set()

    def set_program(self, path: Path) -> None:
        self.programs["fake"] = path
        set_programs(self.context, self.programs)

    def with_settings(self, **settings: Any) -> Context:
        return replace(self.context, settings=replace(self.context.settings, **settings))

    def daemon(self, *words: str, script: str = FAKE, **what: Any) -> Daemon:
        def flags(context: Context) -> Sequence[Flag]:
            return [Flag(text, "To try it out.") for text in ("-IS", "-c", script, str(self.port), *words)]

        url = f"http://127.0.0.1:{self.port}"
        settings: dict[str, Any] = {
            "name": "unit",
            "doc": "start what stands for a daemon",
            "program": "fake",
            "flags": flags,
            "ready": Http(f"{url}/healthz"),
            "grace": 20.0,
        }
        return Daemon(**settings | what)

    def start(self, daemon: Daemon, context: Context | None = None) -> int:
        """Start the daemon and return its pid."""
        daemon.start(context or self.context, Silent())
        return self.pid(daemon)

    def pid(self, daemon: Daemon) -> int:
        record = Record.load(daemon.record(self.context))
        assert record is not None and record.alive()
        self.pids.add(record.pid)
        return record.pid

    def fails(self, daemon: Daemon, context: Context | None = None) -> DmucError:
        with pytest.raises(DmucError) as error:
            daemon.start(context or self.context, Silent())
        return error.value

    def log(self, daemon: Daemon) -> str:
        return daemon.log(self.context).read_text()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    stop_all(lab)


def ours(lab: Lab) -> list[int]:
    """The processes that were started in this lab, recorded or not: each has its state directory in its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"HOME={lab.context.home}".encode() in environment.split(b"\0") and state != "Z":
            found.append(int(entry.name))
    return found


def stop_all(lab: Lab) -> None:
    for pid in ours(lab):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not ours(lab), "all that was started is ended")


# Starting


def test_it_is_started_and_becomes_ready(lab: Lab) -> None:
    daemon = lab.daemon()
    assert daemon.is_ready(lab.context) == Result(False, "not started")
    told = Told()
    daemon.start(lab.context, told)
    daemon.await_ready(lab.context, told)
    assert daemon.is_started(lab.context)
    assert daemon.is_ready(lab.context)
    assert told.notes[0] == "starting (not started)"
    assert ours(lab) == [lab.pid(daemon)]
    assert daemon.running(lab.context) == Result(True, f"pid {lab.pid(daemon)}")


def test_what_is_ready_stays_as_it_is(lab: Lab) -> None:
    daemon = lab.daemon()
    pid = lab.start(daemon)
    for _ in range(3):
        assert daemon.is_ready(lab.context)
        assert lab.start(daemon) == pid
    assert ours(lab) == [pid]
    assert lab.log(daemon).count("---") == 1


def test_it_runs_in_its_own_directory_with_an_environment_of_ours(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/home/me/.kube/config")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy")
    pid = lab.start(lab.daemon())
    assert Path(f"/proc/{pid}/cwd").resolve() == lab.context.state / "unit"
    environment = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
    )
    assert environment.keys() - marks(Path()).keys() == {"PATH", "HOME", "LANG"}
    assert environment["HOME"] == str(lab.context.home)


def test_it_outlives_the_terminal_and_holds_none_of_our_files(lab: Lab) -> None:
    pid = lab.start(lab.daemon())
    assert os.getsid(pid) == pid
    files = {path.name: path.resolve() for path in Path(f"/proc/{pid}/fd").iterdir()}
    log = lab.context.logs / "unit.log"
    assert {name: files[name] for name in "012"} == {"0": Path("/dev/null"), "1": log, "2": log}
    assert not [path for path in files.values() if path.is_file() and path != log]


def test_its_files_are_private(lab: Lab) -> None:
    daemon = lab.daemon(
        keeps=lambda context: [context.state / "kept"], writes=lambda c: {c.state / "unit.yml": "a: b\n"}
    )
    lab.start(daemon)
    state = lab.context.state
    for path in (daemon.log(lab.context), state / "unit.yml"):
        assert path.stat().st_mode & 0o777 == 0o600
    for path in (lab.context.logs, lab.context.pidfiles, lab.context.home, state / "unit", state / "kept"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_each_start_says_its_command_line_in_the_log(lab: Lab) -> None:
    lab.start(lab.daemon("--first"))
    daemon = lab.daemon("--second", "two words")
    lab.start(daemon)
    heads = [line for line in lab.log(daemon).splitlines() if line.startswith("--- ")]
    assert len(heads) == 2
    assert "arguments: --first\n" in lab.log(daemon)
    assert f"{lab.port} --second 'two words'\n" in lab.log(daemon)


def test_what_must_be_done_first_is_done_at_every_start(lab: Lab) -> None:
    done: list[bool] = []
    record = lab.daemon().record(lab.context)
    daemon = lab.daemon(prepare=lambda context: done.append(record.exists()))
    lab.start(daemon)
    lab.start(daemon)
    assert done == [False]
    daemon.stop(lab.context)
    lab.start(daemon)
    assert done == [False, False]


# Restarting


def restarts(lab: Lab, before: Daemon, after: Daemon, why: str) -> None:
    """`before` runs; `after` says that it does not run as wanted, and why, and its start replaces the process."""
    old = lab.pid(before)
    result = after.is_ready(lab.context)
    assert not result
    assert why in result.why
    told = Told()
    after.start(lab.context, told)
    new = lab.pid(after)
    assert new != old
    assert ours(lab) == [new]
    assert f"starting ({result.why})" in told.notes
    assert after.is_ready(lab.context)


def test_another_command_line_is_another_process(lab: Lab) -> None:
    before, after = lab.daemon("--same", "--v=1"), lab.daemon("--same", "--v=2")
    lab.start(before)
    restarts(lab, before, after, "its command line changed: --v=1 became --v=2")


def test_a_flag_more_and_a_flag_less_are_named(lab: Lab) -> None:
    before, after = lab.daemon("--a"), lab.daemon("--a", "--b")
    lab.start(before)
    restarts(lab, before, after, "its command line changed: nothing became --b")
    restarts(lab, after, before, "its command line changed: --b became nothing")


def test_flags_in_another_order_are_said(lab: Lab) -> None:
    before, after = lab.daemon("--a", "--b"), lab.daemon("--b", "--a")
    lab.start(before)
    restarts(lab, before, after, "order")


def test_a_changed_file_that_it_reads_is_named(lab: Lab) -> None:
    read = lab.context.state / "kubeconfig"
    read.write_text("one")
    daemon = lab.daemon(reads=lambda context: [read])
    lab.start(daemon)
    assert daemon.is_ready(lab.context)
    read.write_text("two")
    restarts(lab, daemon, daemon, f"changed since it was started: {read}")
    read.unlink()
    assert str(read) in daemon.is_ready(lab.context).why


def test_a_changed_file_that_is_written_for_it_is_named_and_written(lab: Lab) -> None:
    file = lab.context.state / "unit.yml"
    before, after = (lab.daemon(writes=lambda context, text=text: {file: text}) for text in ("one", "two"))
    lab.start(before)
    restarts(lab, before, after, f"changed since it was started: {file}")
    assert file.read_text() == "two"


def test_a_script_that_is_written_for_it_can_be_run(lab: Lab) -> None:
    file = lab.context.state / "adapter"
    lab.start(lab.daemon(writes=lambda context: {file: "#!/bin/sh\n"}))
    assert os.access(file, os.X_OK)


def test_another_program_is_named(lab: Lab, tmp_path: Path) -> None:
    daemon = lab.daemon()
    lab.start(daemon)
    other = tmp_path / "other"
    other.symlink_to(sys.executable)
    lab.set_program(other)
    restarts(lab, daemon, daemon, f"its program must change: {sys.executable} is running, {other} is wanted")


def test_a_program_that_was_built_again_is_named(lab: Lab, tmp_path: Path) -> None:
    wrapper = a_program(tmp_path / "wrapper", f'exec {sys.executable} "$@"')
    lab.set_program(wrapper)
    daemon = lab.daemon()
    lab.start(daemon)
    a_program(wrapper, f'exec {sys.executable} "$@"  # with another line')
    restarts(lab, daemon, daemon, f"changed since it was started: {wrapper}")


def test_another_tool_that_it_runs_is_named(lab: Lab, tmp_path: Path) -> None:
    lab.programs["tool"] = a_program(tmp_path / "tool", "true")
    lab.set_program(Path(sys.executable))
    daemon = lab.daemon(tools=("tool",))
    lab.start(daemon)
    a_program(tmp_path / "tool", "false")
    restarts(lab, daemon, daemon, f"changed since it was started: {tmp_path}/tool")


def test_a_program_that_is_gone_is_a_reason(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.start(daemon)
    lab.set_program(lab.context.state / "nowhere")
    assert "nowhere" in daemon.is_ready(lab.context).why
    lab.context.programs_file.unlink()
    assert daemon.is_ready(lab.context).why.startswith("looking for the program fake\nIt has not been found yet.")


def test_one_that_was_killed_is_restarted(lab: Lab) -> None:
    daemon = lab.daemon()
    pid = lab.start(daemon)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: start_time(pid) is None, "it is gone")
    assert daemon.is_ready(lab.context) == Result(False, f"its process (pid {pid}) is gone")
    assert lab.start(daemon) != pid
    assert daemon.is_ready(lab.context)


def test_another_live_process_with_the_same_pid_is_neither_trusted_nor_ended(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.context.pidfiles.mkdir()
    replace(Record.of(os.getpid(), daemon.command(lab.context), {}), started=1).save(daemon.record(lab.context))
    assert daemon.is_ready(lab.context).why == f"its process (pid {os.getpid()}) is gone"
    assert lab.start(daemon) != os.getpid()


def test_rubbish_in_its_file_is_no_process(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.context.pidfiles.mkdir()
    daemon.record(lab.context).write_text("1\n{}")
    assert daemon.is_ready(lab.context) == Result(False, "not started")
    lab.start(daemon)


def forgotten(lab: Lab, daemon: Daemon) -> int:
    """As a run leaves it that is killed after it has started the process and before it has taken it down."""
    pid = lab.start(daemon)
    daemon.record(lab.context).unlink()
    return pid


def test_one_that_no_file_remembers_is_ended_first(lab: Lab) -> None:
    daemon = lab.daemon()
    stray = forgotten(lab, daemon)
    assert lab.start(daemon) != stray
    assert ours(lab) == [lab.pid(daemon)]


# Scripts that run the program, as with etcd_bin=WRAPPER: not the program itself is what dmuc starts.
WRAPPERS = {
    "exec": 'exec {python} "$@"',
    "without exec": '{python} "$@"',
    "with clean-up": "trap 'exit 0' TERM\n{python} \"$@\" & wait",
    "in a session of its own": 'setsid --wait {python} "$@"',
    "without our environment": 'env -i {python} "$@"',
}


@pytest.fixture(params=[*WRAPPERS])
def wrapped(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Lab:
    """The lab with a wrapper for its program."""
    script = WRAPPERS[request.param].format(python=sys.executable)
    lab.set_program(a_program(tmp_path / "wrapper", script))
    return lab


def is_free(lab: Lab) -> bool:
    try:
        with socket.create_server(("127.0.0.1", lab.port)):
            return True
    except OSError:
        return False


def test_one_that_no_file_remembers_is_ended_first_behind_a_wrapper(wrapped: Lab) -> None:
    daemon = wrapped.daemon()
    stray = forgotten(wrapped, daemon)
    assert wrapped.start(daemon) != stray
    assert start_time(stray) is None
    daemon.stop(wrapped.context)
    assert ours(wrapped) == [] and is_free(wrapped)


def test_a_wrapper_ends_with_what_it_runs(wrapped: Lab) -> None:
    daemon = wrapped.daemon()
    wrapped.start(daemon)
    assert daemon.is_ready(wrapped.context) and not is_free(wrapped)
    begun = time.monotonic()
    daemon.stop(wrapped.context)
    assert ours(wrapped) == [] and is_free(wrapped)
    assert time.monotonic() - begun < daemon.grace / 2


def test_what_a_killed_wrapper_has_run_is_ended_before_the_next_start(lab: Lab, tmp_path: Path) -> None:
    lab.set_program(a_program(tmp_path / "wrapper", WRAPPERS["without exec"].format(python=sys.executable)))
    daemon = lab.daemon()
    wrapper = lab.start(daemon)
    os.kill(wrapper, signal.SIGKILL)
    eventually(lambda: start_time(wrapper) is None, "the wrapper is gone")
    assert daemon.is_ready(lab.context).why == f"its process (pid {wrapper}) is gone"
    assert not is_free(lab)  # what it ran goes on
    assert lab.start(daemon) != wrapper
    assert daemon.is_ready(lab.context)
    daemon.stop(lab.context)
    assert ours(lab) == [] and is_free(lab)


def test_a_wrapper_whose_program_was_killed_is_restarted(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "_PATIENCE", 0.3)
    script = WRAPPERS["without exec"].format(python=sys.executable) + "\nsleep 600"
    lab.set_program(a_program(tmp_path / "wrapper", script))
    daemon = lab.daemon()
    wrapper = lab.start(daemon)
    (child,) = set(ours(lab)) - {wrapper}
    os.kill(child, signal.SIGKILL)
    eventually(lambda: not daemon.is_ready(lab.context), "it is noticed")
    assert lab.start(daemon) != wrapper
    assert daemon.is_ready(lab.context) and len(ours(lab)) == 2


def test_a_wrapper_that_goes_into_the_background_is_refused_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    script = '{python} "$@" &\nexit 4'
    lab.set_program(a_program(tmp_path / "wrapper", script.format(python=sys.executable)))
    error = lab.fails(lab.daemon())
    assert "The process ended with exit code 4" in error.seen
    assert ours(lab) == [] and is_free(lab)


def test_what_outlives_it_by_design_is_left_running(lab: Lab, tmp_path: Path) -> None:
    # A container engine's shims, and below them the containers.
    shim = tmp_path / "the-shim"
    shim.symlink_to("/bin/sh")
    lab.set_program(a_program(tmp_path / "wrapper", f"{shim} -c 'sleep 600; :' &\n{sys.executable} \"$@\""))
    daemon = lab.daemon(outlived_by=["the-shim"])
    lab.start(daemon)
    before = len(ours(lab))
    daemon.stop(lab.context)
    assert (before, len(ours(lab))) == (4, 2) and is_free(lab)


def test_one_that_no_file_remembers_is_ended_by_stop(lab: Lab) -> None:
    daemon = lab.daemon()
    forgotten(lab, daemon)
    daemon.stop(lab.context)
    assert ours(lab) == []


def test_a_stray_of_another_cluster_is_not_ours_to_end(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path / "other")
    try:
        stray = forgotten(other, other.daemon())
        lab.start(lab.daemon())
        lab.daemon().stop(lab.context)
        assert ours(other) == [stray]
    finally:
        stop_all(other)


def test_one_that_hangs_is_restarted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "_PATIENCE", 0.3)
    monkeypatch.setattr(http_client, "LIMIT", 0.2)
    daemon = lab.daemon(grace=0.3)
    pid = lab.start(daemon)
    os.kill(pid, signal.SIGSTOP)
    assert not daemon.is_ready(lab.context)
    assert lab.start(daemon) != pid
    assert ours(lab) == [lab.pid(daemon)]
    assert daemon.is_ready(lab.context)


def test_one_that_another_run_has_just_started_is_waited_for(lab: Lab) -> None:
    daemon = lab.daemon(ready=Http(f"http://127.0.0.1:{lab.port}/readyz"))
    early = replace(daemon, started=Http(f"http://127.0.0.1:{lab.port}/healthz"))
    pid = lab.start(early)

    def becomes_ready(text: str) -> None:
        (lab.context.state / "unit/ready").touch()

    daemon.start(lab.context, Told(becomes_ready))
    assert lab.pid(daemon) == pid


# What goes wrong


def test_one_that_ends_is_reported_at_once_with_its_log(lab: Lab) -> None:
    daemon = lab.daemon(
        "two words",
        script=ENDING,
        causes={"address already in use": "Another one has the port.", "no space left": "The disk is full."},
    )
    begun = time.monotonic()
    error = lab.fails(daemon)
    assert time.monotonic() - begun < 30  # of the 60 that it may take
    assert error.tried == "unit did not start"
    seen = error.seen.splitlines()
    assert seen[0].startswith("The process ended with exit code 3 after ")
    # The script has several lines: so has the command.
    command = error.seen[error.seen.index("command: ") : error.seen.index("\nlog: ")].removeprefix("command: ")
    assert shlex.split(command) == daemon.command(lab.context)
    assert f"log: {lab.context.logs}/unit.log, its last lines:" in seen
    assert seen[-4:] == [
        "  one",
        "  two",
        "  listen tcp 127.0.0.1:1: bind: address already in use",
        "  Traceback: the last line",
    ]
    assert error.do == "Known cause: Another one has the port."
    assert not daemon.record(lab.context).exists()


BUSY = """
import pathlib, sys
first = pathlib.Path(sys.argv[-1])
if first.exists():
    first.unlink()
    sys.exit("timeout waiting for another")
"""


def test_one_that_has_ended_because_the_host_was_busy_is_started_once_more(lab: Lab, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.touch()
    daemon = lab.daemon(str(first), script=BUSY + FAKE, passing="timeout waiting for another")
    daemon.start(lab.context, Silent())
    assert daemon.running(lab.context) and not first.exists()
    always = lab.daemon("x", script="raise SystemExit('timeout waiting for another')", passing="waiting for another")
    assert "timeout waiting for another" in lab.fails(always).seen


def test_only_the_last_lines_of_this_start_are_shown(lab: Lab) -> None:
    lab.fails(lab.daemon(script="print('from the first start')"))
    daemon = lab.daemon(script="for n in range(100): print(f'line {n}')", causes={"first start": "Not now."})
    error = lab.fails(daemon)
    shown = [line.strip() for line in error.seen.splitlines() if line.startswith("  line")]
    assert shown == [f"line {n}" for n in range(88, 100)]
    assert "first start" not in str(error)
    assert "Not now" not in str(error)


def test_one_that_is_killed_by_a_signal_has_the_shells_exit_code(lab: Lab) -> None:
    error = lab.fails(lab.daemon(script="import os; os.kill(os.getpid(), 11)"))
    assert "exit code 139" in error.seen


def test_one_that_ended_well_but_ended_has_failed(lab: Lab) -> None:
    assert "exit code 0" in lab.fails(lab.daemon(script="")).seen


def test_a_program_that_cannot_be_run_is_said(lab: Lab, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    lab.set_program(broken)
    error = lab.fails(lab.daemon())
    assert "exit code 127" in error.seen
    assert str(broken) in error.seen


def test_an_answer_from_another_process_does_not_count(lab: Lab, tmp_path: Path) -> None:
    # Another one has the port, and answers; ours will notice in a moment, and end.
    other = Lab(tmp_path / "other")
    other.port = lab.port
    daemon = lab.daemon(script="import sys, time; time.sleep(0.3); sys.exit('address already in use')")
    try:
        other.start(other.daemon())
        lab.fails(daemon)
        assert not daemon.is_ready(lab.context)
    finally:
        stop_all(other)


def test_one_that_never_is_ready_is_stopped_at_its_deadline(lab: Lab) -> None:
    daemon = lab.daemon(script=DEAF)
    context = lab.with_settings(deadlines={"unit": 0.5})
    begun = time.monotonic()
    error = lab.fails(daemon, context)
    assert 0.4 < time.monotonic() - begun < 30
    assert error.tried == "unit did not become ready"
    assert error.seen.startswith("Not ready after ")
    assert f"Last answer: http://127.0.0.1:{lab.port}/healthz: connection refused" in error.seen
    assert "  here I am" in error.seen
    assert error.do == "More time: deadline_unit=SECONDS."
    assert ours(lab) == []
    assert not daemon.record(lab.context).exists()


def test_one_that_will_not_end_is_killed(lab: Lab) -> None:
    daemon = lab.daemon(script=LINGERING, grace=0.3)
    error = lab.fails(daemon, lab.with_settings(deadline=0.5))
    assert "  up" in error.seen
    assert ours(lab) == []


def test_a_private_one_has_a_deadline_by_its_name_without_the_underscore(lab: Lab) -> None:
    error = lab.fails(lab.daemon(script=DEAF), lab.with_settings(deadlines={"unit": 0.2}))
    assert error.do == "More time: deadline_unit=SECONDS."


def test_on_a_machine_of_its_own_the_command_can_be_tried_there(lab: Lab) -> None:
    context = lab.with_settings(machine="dmuc1")
    error = lab.fails(lab.daemon(script=ENDING), context)
    assert f"command: scripts/doit shell -- {sys.executable} " in error.seen


def test_when_the_run_is_ended_it_goes_on_running_and_is_found_by_the_next(lab: Lab) -> None:
    daemon = lab.daemon(ready=Http(f"http://127.0.0.1:{lab.port}/readyz"))
    with pytest.raises(Interrupted):
        daemon.start(lab.context, ending_the_run(lambda text: text.startswith("waiting")))
    pid = lab.pid(daemon)
    (lab.context.state / "unit/ready").touch()
    assert lab.start(daemon) == pid


# The two steps


def test_a_client_can_start_when_it_answers_and_it_is_ready_later(lab: Lab) -> None:
    url = f"http://127.0.0.1:{lab.port}"
    daemon = lab.daemon(started=Http(f"{url}/healthz"), ready=Http(f"{url}/readyz"))
    early, ready = daemon.goals()
    assert (early.name, early.needs_started, ready.name, ready.needs_started) == ("unit:started", True, "unit", False)
    early.make(lab.context, Silent())
    assert early.holds(lab.context)
    assert ready.holds(lab.context) == Result(False, "it has just been started")
    lab.context.run.spawned.clear()  # in the next run
    assert ready.holds(lab.context) == Result(False, f"{url}/readyz: 503 ok")
    done, waiting = threading.Event(), threading.Event()
    told = Told(lambda text: waiting.set() if text.startswith("waiting") else None)

    def make() -> None:
        ready.make(lab.context, told)
        done.set()

    thread = threading.Thread(target=make)
    thread.start()
    assert waiting.wait(20)
    assert not done.is_set()
    (lab.context.state / "unit/ready").touch()
    assert done.wait(20)
    thread.join()
    assert ready.holds(lab.context)
    assert ours(lab) == [lab.pid(daemon)]


def test_one_that_ends_between_the_steps_is_said(lab: Lab) -> None:
    url = f"http://127.0.0.1:{lab.port}"
    daemon = lab.daemon(started=Http(f"{url}/healthz"), ready=Http(f"{url}/readyz"))
    pid = lab.start(daemon)

    def end_it(text: str) -> None:
        if text.startswith("waiting"):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(DmucError) as error:
        daemon.await_ready(lab.context, Told(end_it))
    assert "The process ended with exit code 137" in error.value.seen


def test_one_that_was_stopped_between_the_steps_is_said(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.start(daemon)
    daemon.stop(lab.context)
    with pytest.raises(DmucError, match="The process was stopped meanwhile"):
        daemon.await_ready(lab.context, Silent())


# Not wanted


def test_one_that_is_not_wanted_is_not_started_and_no_reason_to_run(lab: Lab) -> None:
    daemon = lab.daemon(disabled_because=lambda context: "nothing needs it")
    assert daemon.is_ready(lab.context) == Result(True, "nothing needs it")
    daemon.start(lab.context, Silent())
    daemon.await_ready(lab.context, Silent())
    assert ours(lab) == []


def test_one_that_is_not_wanted_any_more_is_ended(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.start(daemon)
    disabled_because = replace(daemon, disabled_because=lambda context: "nothing needs it")
    assert not disabled_because.is_ready(lab.context)
    disabled_because.start(lab.context, Silent())
    assert ours(lab) == []
    assert disabled_because.is_ready(lab.context)


# Stop and undo


def test_stopping_ends_it_and_forgets_it_and_keeps_what_it_stored(lab: Lab) -> None:
    daemon = lab.daemon(keeps=lambda context: [context.state / "unit/data"])
    lab.start(daemon)
    (lab.context.state / "unit/data/object").touch()
    daemon.stop(lab.context)
    assert ours(lab) == []
    assert not daemon.record(lab.context).exists()
    assert (lab.context.state / "unit/data/object").exists()
    assert daemon.log(lab.context).exists()
    daemon.stop(lab.context)


def test_taking_it_back_ends_it_and_removes_what_it_stored_and_what_was_written_for_it(lab: Lab) -> None:
    undone: list[bool] = []
    state = lab.context.state
    (state / "mine").mkdir()
    (state / "others.txt").touch()
    daemon = lab.daemon(
        keeps=lambda context: [state / "unit/data"],
        writes=lambda context: {state / "unit.yml": "a: b\n"},
        reads=lambda context: [state / "others.txt"],
        clean_up=lambda context: undone.append(bool(ours(lab))),
    )
    lab.start(daemon)
    (state / "unit/data/deep/er").mkdir(parents=True)
    (state / "unit/data/deep/er/object").touch()
    _, goal = daemon.goals()
    assert goal.undo is not None
    goal.undo(lab.context)
    assert ours(lab) == []
    left = {path.relative_to(state).as_posix() for path in state.rglob("*") if not path.is_dir()}
    assert left == {"others.txt", "programs.json"}
    assert (state / "mine").is_dir()
    assert undone == [False]  # once, when it was ended
    goal.undo(lab.context)  # with nothing there
    assert daemon.is_ready(lab.context) == Result(False, "not started")


def test_taking_it_back_spares_what_a_link_in_what_it_stored_leads_to(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    daemon = lab.daemon(keeps=lambda context: [context.state / "unit/data"])
    lab.start(daemon)
    (lab.context.state / "unit/data/link").symlink_to(tmp_path / "precious")
    daemon.undo(lab.context)
    assert not (lab.context.state / "unit/data/link").is_symlink()
    assert (tmp_path / "precious/file").exists()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Directories that cannot be removed, by name: as mount points cannot."""
    names: set[str] = {"busy"}
    real = os.rmdir

    def rmdir(path: Any, **keywords: Any) -> None:
        if Path(path).name in names:
            raise OSError(16, "Device or resource busy", str(path))
        real(path, **keywords)

    monkeypatch.setattr(os, "rmdir", rmdir)
    return names


def test_what_cannot_be_removed_is_said(lab: Lab, busy: set[str]) -> None:
    daemon = lab.daemon(keeps=lambda context: [context.state / "unit/data"])
    lab.start(daemon)
    (lab.context.state / "unit/data/busy").mkdir()
    with pytest.raises((OSError, DmucError), match="busy"):
        daemon.undo(lab.context)


def test_taking_it_back_goes_on_where_it_broke_off(lab: Lab, tmp_path: Path, busy: set[str]) -> None:
    outside = [tmp_path / "var-lib-1", tmp_path / "var-lib-2"]
    daemon = lab.daemon(keeps=lambda context: outside)
    lab.start(daemon)
    for path in outside:
        for name in ("a", "busy", "z"):
            (path / name).mkdir()
    with pytest.raises(OSError, match="busy"):
        daemon.undo(lab.context)
    assert daemon.foreign_directories(lab.context) == []  # what is left is still ours
    lab.start(daemon)
    with pytest.raises(OSError, match="busy"):
        daemon.undo(lab.context)
    busy.clear()
    daemon.undo(lab.context)
    assert [[*path.iterdir()] for path in outside] == [[], []]


def test_what_another_has_put_there_since_is_not_touched(lab: Lab, tmp_path: Path) -> None:
    # Ours was there, and was taken away by hand; what is there now is another's.
    outside, undone = tmp_path / "var-lib", list[bool]()
    daemon = lab.daemon(keeps=lambda context: [outside], clean_up=lambda context: undone.append(True))
    lab.start(daemon)
    (outside / ".dmuc").unlink()
    (outside / "precious").touch()
    daemon.undo(lab.context)
    assert (outside / "precious").exists()


def test_what_another_uses_now_is_not_touched_whatever_mark_it_has(lab: Lab, tmp_path: Path) -> None:
    # `doit down`; another engine is started, which finds what ours has left, and takes it for its own; `doit clean`.
    outside, undone = tmp_path / "var-lib", list[bool]()
    daemon = lab.daemon(keeps=lambda context: [outside], clean_up=lambda context: undone.append(True))
    lab.start(daemon)
    daemon.stop(lab.context)
    (outside / "precious").touch()
    other = subprocess.Popen([sys.executable, "-IS", "-c", FAKE, str(lab.port)], stdout=subprocess.PIPE)
    try:
        eventually(lambda: daemon.ready(lab.context), "the other one answers")
        with pytest.raises(DmucError) as error:
            daemon.undo(lab.context)
        assert "another one runs in its place" in error.value.seen and str(lab.port) in error.value.seen
        assert str(outside) in error.value.do and "remove the file .dmuc" in error.value.do
        assert other.poll() is None
        assert (outside / "precious").exists() and undone == []
    finally:
        other.kill()
        other.communicate()
    daemon.undo(lab.context)
    assert [*outside.iterdir()] == [] and undone == [True]


def test_rules_and_links_of_before_the_last_boot_are_not_its_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = lab.daemon()
    assert not daemon.was_ready_since_boot(lab.context)
    lab.start(daemon)
    assert daemon.was_ready_since_boot(lab.context)
    monkeypatch.setattr(process, "boot", lambda: "another")
    assert daemon.was_ready(lab.context) and not daemon.was_ready_since_boot(lab.context)


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process ends by a signal, as one that waits for a dead disk does not."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda handle, number: None)
        patch.setattr(process, "_KILLED_WITHIN", 0.1)
        yield


def test_one_that_does_not_end_is_not_forgotten_and_no_second_one_is_started(lab: Lab, unkillable: None) -> None:
    before, after = (lab.daemon(word, grace=0.1) for word in ("--v=1", "--v=2"))
    pid = lab.start(before)
    for attempt in (before.stop, before.undo, lambda context: after.start(context, Silent())):
        with pytest.raises(DmucError, match=rf"\(pid {pid}\)"):
            attempt(lab.context)
        assert lab.pid(before) == pid
        assert ours(lab) == [pid]


def test_taking_it_back_works_when_its_program_is_gone(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.start(daemon)
    lab.context.programs_file.unlink()
    daemon.undo(lab.context)
    assert ours(lab) == []


# Where it runs


@dataclass(frozen=True)
class Elsewhere(Host):
    """Another machine, which remembers what was started on it."""

    name: str = "elsewhere"
    started: list[Sequence[str]] = field(default_factory=list)

    def spawn(self, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> Spawned:
        self.started.append(command)
        return super().spawn(command, log=log, cwd=cwd, environment=environment)


def test_it_can_run_on_the_host_beside_the_machine_of_its_node(lab: Lab) -> None:
    machine = Elsewhere()
    lab.context = on_machine(lab.context, machine)
    daemon = lab.daemon(on_host=True)
    lab.start(daemon)
    assert machine.started == []
    assert daemon.is_ready(lab.context)
    daemon.stop(lab.context)
    assert ours(lab) == []


def test_it_runs_on_the_machine_of_its_node(lab: Lab) -> None:
    machine = Elsewhere()
    lab.context = on_machine(lab.context, machine)
    daemon = lab.daemon()
    lab.start(daemon)
    assert machine.started == [daemon.command(lab.context)]


# Where it needs what is not its own


def test_one_that_takes_root_says_so_without(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "is_root", lambda: False)
    error = lab.fails(lab.daemon(needs_root=True))
    assert error.tried == "starting unit"
    assert "root" in error.seen
    assert ours(lab) == []
    lab.start(lab.daemon())


def test_a_directory_outside_of_our_state_must_not_belong_to_others(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "var-lib"
    (outside / "precious").mkdir(parents=True)
    daemon = lab.daemon(keeps=lambda context: [outside])
    error = lab.fails(daemon)
    assert str(outside) in error.seen
    assert "machine=NAME" in error.do
    daemon.undo(lab.context)
    assert (outside / "precious").exists()
    (outside / "precious").rmdir()
    lab.start(daemon)
    (outside / "ours").mkdir()
    daemon.stop(lab.context)
    lab.start(daemon)  # now it is ours
    daemon.undo(lab.context)
    assert list(outside.iterdir()) == []


def test_a_daemon_that_was_never_started_has_nothing_to_undo(lab: Lab) -> None:
    undone: list[bool] = []
    lab.daemon(clean_up=lambda context: undone.append(True)).undo(lab.context)
    assert undone == []


def test_a_daemon_that_did_not_start_undoes_nothing_of_others(lab: Lab, tmp_path: Path) -> None:
    # On the host: its own Docker runs, ours ends because of that; taking ours back must not remove its network.
    undone: list[bool] = []
    daemon = lab.daemon(script=ENDING, clean_up=lambda context: undone.append(True))
    lab.fails(daemon)
    daemon.undo(lab.context)
    assert undone == []


def test_a_daemon_that_answers_only_after_its_run_was_interrupted_is_undone_all_the_same(lab: Lab) -> None:
    # Ctrl-C while the engine starts; `doit` again finds it answering; then `clean` is to remove its network.
    undone: list[bool] = []
    daemon = lab.daemon(ready=Http(f"http://127.0.0.1:{lab.port}/readyz"), clean_up=lambda context: undone.append(True))
    with pytest.raises(Interrupted):
        daemon.start(lab.context, ending_the_run(lambda text: text.startswith("waiting")))
    (lab.context.state / "unit/ready").touch()
    lab.start(daemon)
    daemon.undo(lab.context)
    assert undone == [True]
