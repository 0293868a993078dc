"""What people see of work that is done side by side."""

from __future__ import annotations

import threading

import pytest

from tasks.core import report
from tasks.core.report import Board


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
