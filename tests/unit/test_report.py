"""What people see of work that is done side by side."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.core import report
from tasks.core.report import Board
from tests.unit.checkout import DOIT, Checkout


def drawn(board: Board) -> list[list[str]]:
    """The rows of the table as people see them, without styles."""
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(board._table())
    return [line.split() for line in console.export_text().splitlines()]


def test_each_part_has_a_row_below_its_task_while_that_runs() -> None:
    board = Board(threading.Event())
    board.started("binaries")
    board.started("pki")
    progress = board.progress("binaries")
    for name, done in (("kubelet", 1 << 20), ("etcd.tar.gz", 2 << 20)):
        part = progress.part(name)
        part.note("download")
        part.bar(done, 4 << 20)
    rows = drawn(board)
    assert [row[1] for row in rows] == ["binaries", "kubelet", "etcd.tar.gz", "pki"]
    assert rows[1][-5:] == ["25", "%", "(1.0/4.0", "MiB)", "download"]
    board.ended("binaries", "ready", last_step=True)
    assert [row[1] for row in drawn(board)] == ["binaries", "pki"]
    part.note("too late")
    assert len(drawn(board)) == 2


def test_plain_output_says_where_each_part_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "_QUIET", -1.0)
    board = Board(threading.Event())
    board.shown = True
    board.started("binaries")
    board.progress("binaries").part("kubelet").bar(1 << 20, 2 << 20)
    assert "binaries/kubelet     0 s: 50 % (1.0/2.0 MiB)" in capsys.readouterr().out


# What people see of a whole run

GOOD = ("kubeconfig",)  # which needs pki
BAD = ("pki", "binaries", "kubelet_bin=/nosuch")  # side by side: pki, and _packages, which fails


def is_told_of_failure(lines: Sequence[str]) -> bool:
    """Whether these are a blank line, what has failed, and why."""
    blank, what, *why = lines
    return (blank, what) == ("", "✗ packages failed") and any("/nosuch" in line for line in why)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def in_a_pipe(checkout: Checkout, *words: str) -> list[str]:
    """The lines that doit writes to a pipe, what is for people's eyes and errors alike."""
    done = subprocess.run(
        [*DOIT, *words],
        cwd=checkout.root,
        env=checkout.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.splitlines()


def on_a_terminal(checkout: Checkout, *words: str) -> list[str]:
    """The lines that are left on a terminal of 80 columns and 24 lines when doit has ended."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen(
        [*DOIT, *words],
        cwd=checkout.root,
        env={**checkout.environment, "TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        written = b""
        while process.poll() is None or written[-1:] != b"\n":
            try:
                written += os.read(leader, 4096)
            except OSError:  # the other end is closed: it has ended
                break
    os.close(leader)
    return screen(written.decode())


def screen(written: str) -> list[str]:
    """The lines that a terminal shows when this was written to it: what rich uses of a terminal's language."""
    lines, row, column = [""], 0, 0
    for sequence, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", written):
        if text:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
            column += len(text)
        elif sequence == "\r":
            column = 0
        elif sequence == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif sequence == "\x1b[2K":
            lines[row] = ""
        elif sequence == "\x1b[1A":
            row -= 1
        else:
            assert sequence[-1] in "mlh", f"not known here: {sequence!r}"  # colours, the cursor
    assert all(len(line) <= 80 for line in lines), lines
    return [line.rstrip() for line in lines]


def without_seconds(lines: Sequence[str]) -> list[str]:
    return [re.sub(r"\d+\.\d s", "N s", line) for line in lines]


def test_in_a_pipe_each_task_has_a_line_when_it_begins_and_one_when_it_has_ended(checkout: Checkout) -> None:
    begin, pki, begun, kubeconfig = without_seconds(in_a_pipe(checkout, *GOOD))
    assert begin.startswith("  pki                  starting: ") and pki.startswith("✓ pki                  ready, N s")
    assert begun.startswith("  kubeconfig           starting: ")
    assert kubeconfig.startswith("✓ kubeconfig           ready, N s")
    pki, kubeconfig = in_a_pipe(checkout, *GOOD)
    assert pki.startswith("· pki                  up to date: valid until ")
    assert kubeconfig.startswith("· kubeconfig           up to date: ")


def test_in_a_pipe_what_has_failed_comes_last(checkout: Checkout) -> None:
    lines = without_seconds(in_a_pipe(checkout, *BAD))
    tasks, told = lines[:4], lines[4:]
    assert "✗ packages             failed, N s" in tasks and is_told_of_failure(told), lines
    assert sorted(line[2:6] for line in tasks) == ["pack", "pack", "pki ", "pki "]


def test_on_a_terminal_each_task_has_one_row(checkout: Checkout) -> None:
    pki, kubeconfig, *rest = without_seconds(on_a_terminal(checkout, *GOOD))
    assert pki.startswith("✓ pki        ready N s  ") and kubeconfig.startswith("✓ kubeconfig ready N s")
    assert rest == [""]
    pki, kubeconfig, *rest = on_a_terminal(checkout, *GOOD)
    assert pki.startswith("· pki        up to date   valid until ")
    assert kubeconfig.startswith("· kubeconfig up to date   ") and rest == [""]


def test_on_a_terminal_what_has_failed_comes_below_the_rows(checkout: Checkout) -> None:
    lines = on_a_terminal(checkout, *BAD)
    assert sorted(line.split()[1:3] for line in lines[:2]) == [["packages", "failed"], ["pki", "ready"]]
    assert is_told_of_failure(lines[2:]), lines
