"""Ctrl-C, also a second one, `kill` and a terminal that goes away end a run in good order, never with a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core.process import Record
from tests.unit.checkout import DOIT, Checkout
from tests.unit.support import CHECKOUT, a_program, eventually

# etcd as far as its version; then it never answers.
ETCD = 'case "$1" in --version) echo "etcd Version: 3.4.23" ;; *) exec sleep 600 ;; esac'


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def a_run_that_waits(checkout: Checkout) -> tuple[subprocess.Popen[str], Record]:
    """`doit etcd`, which waits for an etcd that does not answer; and that etcd."""
    name = f"host.{checkout.machine}"
    program = a_program(checkout.root / "programs/etcd", ETCD)
    words = [f"machine={name}", "security=none", f"etcd_bin={program}", "deadline=100", "etcd"]
    pipe, environment = subprocess.PIPE, checkout.environment
    # The tests may run with nohup, or in the background of a shell, where these signals are ignored.
    with_signals = ["env", "--default-signal=INT,HUP,TERM", *DOIT, *words]
    run = subprocess.Popen(with_signals, cwd=checkout.root, env=environment, stdout=pipe, stderr=pipe, text=True)
    pidfile = checkout.root / "var" / name / "run/etcd.pid"
    eventually(lambda: Record.load(pidfile) or run.poll() is not None, "etcd is started")
    record = Record.load(pidfile)
    assert record is not None, run.communicate()
    return run, record


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP]]
)
def test_a_run_ends_in_good_order(checkout: Checkout, numbers: list[signal.Signals]) -> None:
    run, etcd = a_run_that_waits(checkout)
    try:
        for number in numbers:
            run.send_signal(number)
        out, errors = run.communicate(timeout=40)
    finally:
        run.kill()
        etcd.stop(0)
    assert run.returncode == 130, errors
    assert "Traceback" not in out + errors
    assert "what is running keeps running" in errors


def test_nothing_breaks_off_what_must_go_through() -> None:
    script = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from tasks.core import signals
signals.raise_on_end()
with signals.ignored("ending"):
    for number in (*signals.ENDS, *signals.ENDS):
        os.kill(os.getpid(), number)
    print("done")
try:
    os.kill(os.getpid(), signal.SIGHUP)
except KeyboardInterrupt:
    print("and from here on it counts again")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["ending", "done", "and from here on it counts again"], done.stderr


def test_what_the_caller_ignores_stays_ignored() -> None:
    """As with nohup: the terminal goes away, and the run goes on."""
    script = "import os; from tasks.core import signals; signals.raise_on_end(); os.kill(os.getpid(), 1); print(1)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert done.stdout == "1\n", done.stderr


def test_ctrl_c_while_python_imports_is_no_traceback() -> None:
    command = ["env", "--default-signal=INT", "sh", "scripts/doit", "list"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        shown = Path(f"/proc/{run.pid}/cmdline")
        eventually(lambda: b"run_module" in shown.read_bytes(), "Python is started")
        status = Path(f"/proc/{run.pid}/status")
        ignored = 1 << (signal.SIGINT - 1)
        eventually(
            lambda: not int(status.read_text().partition("SigIgn:")[2].split()[0], 16) & ignored, "it runs our code"
        )
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=20)
    assert run.returncode in {-signal.SIGINT, 130}
    assert out + errors in {"", "\ninterrupted\n"}
