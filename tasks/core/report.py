"""What the user sees while doit runs: the tasks in the order in which they start, each with its state and seconds.

On a terminal this is a table that is redrawn (by rich); elsewhere plain lines. The two steps of a daemon
(`NAME:started` and NAME) are one row.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from doit.reporter import ConsoleReporter

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from .run import Run

_MARKS = {"up to date": "·", "ready": "✓", "answers": "✓", "failed": "✗", "ended": "-"}
_STYLES = {"up to date": "dim", "ready": "green", "answers": "green", "failed": "bold red"}
_STARTED = ":started"  # see goal.py
_QUIET = 5.0  # seconds without a line, after which plain output says what a task waits for


def _label(task: str) -> str:
    return task.removesuffix(_STARTED)


@dataclass
class Row:
    """One row: a task as the user sees it."""

    name: str
    state: str
    note: str = ""
    begun: float = 0.0  # seconds, monotonic
    ended: float | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    said: float = 0.0  # when plain output last had a line about it; seconds, monotonic

    @property
    def seconds(self) -> float:
        """The seconds that the task has taken so far."""
        return (self.ended or time.monotonic()) - self.begun

    @property
    def amount(self) -> str:
        """How much of the task is done, as text; empty if nothing is counted."""
        if not self.total:
            return ""
        figures = (
            f"{self.done / 2**20:.1f}/{self.total / 2**20:.1f} MiB"
            if self.unit == "bytes"
            else f"{self.done}/{self.total} {self.unit}"
        )
        return f"{100 * self.done // self.total} % ({figures})"


class _RowProgress:
    """The Progress of one task (see progress.py)."""

    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name, self.stop = board, name, board.stop

    def note(self, text: str) -> None:
        self._board.update(self._name, note=text)

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        self._board.update(self._name, done=done, total=total, unit=unit)

    def part(self, name: str) -> _RowProgress:
        return _RowProgress(self._board, self._board.add_part(self._name, name))


class Board:
    """All rows. Every thread may call its methods."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop  # the run's stop signal, which tasks get through their Progress
        self._lock = threading.RLock()
        self._rows: dict[str, Row] = {}
        self._reasons: dict[str, str] = {}
        self._live: Live | None = None
        self.shown = False  # print nothing unless doit runs tasks

    # Called by tasks

    def progress(self, name: str) -> _RowProgress:
        """Return the Progress of the task `name`."""
        return _RowProgress(self, name)

    def add_part(self, name: str, part: str) -> str:
        """Add a row for a part of the task `name`, below the task's row while the task runs; return the row's name."""
        with self._lock:
            row = Row(f"{_label(name)}/{part}", "starting", begun=time.monotonic())
            self._rows[row.name] = row
            return row.name

    def why(self, name: str, text: str) -> None:
        """Store the reason that the last check of the task `name` returned."""
        with self._lock:
            self._reasons[name] = text

    def update(self, name: str, **changes: Any) -> None:
        """Change the row of the task `name`."""
        with self._lock:
            row = self._rows.get(_label(name))
            if row is None:
                return
            for key, value in changes.items():
                setattr(row, key, value)
            if self.shown and self._live is None and time.monotonic() - max(row.said, row.begun) > _QUIET:
                self._print(row, f"{row.seconds:.0f} s: {' '.join(filter(None, (row.note, row.amount)))}")

    # Called by doit's reporter

    def begin(self) -> None:
        """Start to show the rows."""
        self.shown = True
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._table, refresh_per_second=8)
            self._live.start()

    def started(self, name: str) -> None:
        """Show that the task `name` has started."""
        with self._lock:
            row = self._rows.setdefault(_label(name), Row(_label(name), "", begun=time.monotonic()))
            row.state, row.ended = "starting", None
            if not row.said:
                self._print(row, f"starting: {self._reasons.get(name, '')}")

    def ended(self, name: str, state: str, last_step: bool) -> None:
        """Show the final state of the task `name`; `last_step` is false when another step of the same row follows."""
        with self._lock:
            fresh = Row(_label(name), state, self._reasons.get(name, ""), begun=time.monotonic())
            row = self._rows.setdefault(fresh.name, fresh)
            # If one step of the row did something, a step that did nothing does not hide that.
            if state != "up to date" or row.state in {"", "up to date"}:
                row.state, row.ended, row.total = state, time.monotonic(), None
            elif last_step:
                row.state, row.note, row.ended = "ready", fresh.note, time.monotonic()
            for part in self._parts(row):
                del self._rows[part.name]
            if last_step:
                took = f", {row.seconds:.1f} s" if row.state != "up to date" else ""
                self._print(row, f"{row.state}{took}{': ' + row.note if row.note and row.state != 'failed' else ''}")

    def end(self) -> None:
        """Show the last state of the rows, and stop showing them."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.shown = False

    # Output

    def _parts(self, row: Row) -> list[Row]:
        return [part for part in self._rows.values() if part.name.startswith(f"{row.name}/")]

    def _print(self, row: Row, text: str) -> None:
        row.said = time.monotonic()
        if self.shown and self._live is None:
            print(f"{_MARKS.get(row.state, ' ')} {row.name:<20} {text}", flush=True)

    def _table(self) -> Table:
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1), expand=True)
        for _ in range(5):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # the rest of the terminal's width
        with self._lock:
            tasks = [row for row in self._rows.values() if "/" not in row.name]
            for row in itertools.chain.from_iterable((task, *self._parts(task)) for task in tasks):
                style = _STYLES.get(row.state, "yellow")
                bar = ProgressBar(row.total, row.done, width=20) if row.total else ""
                table.add_row(
                    f"[{style}]{_MARKS.get(row.state, '…')}[/]",
                    f"  {row.name.partition('/')[2]}" if "/" in row.name else row.name,
                    f"[{style}]{row.state}[/]",
                    "" if row.state == "up to date" else f"{row.seconds:.1f} s",
                    bar,
                    f"[dim]{escape(' '.join(filter(None, (row.amount, row.note))))}[/]",
                )
        return table


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's reporter: passes doit's events to the board, and prints failures last."""

    desc = "the tasks with their states and seconds"

    def __init__(self, run: Run) -> None:
        super().__init__(sys.stdout, {})
        self._run, self._board = run, run.board
        self._shown_failures: list[tuple[str, str]] = []

    def initialize(self, tasks: dict[str, Any], selected_tasks: Sequence[str]) -> None:
        """Start the board; doit calls this before it runs tasks."""
        self._board.begin()

    def _last_step(self, task: Any) -> bool:
        return not (task.name.endswith(_STARTED) and _label(task.name) in self._run.selected)

    def execute_task(self, task: Any) -> None:
        """Show that a task has started; doit calls this in the task's thread."""
        self._board.started(task.name)

    def add_success(self, task: Any) -> None:
        """Show that a task has succeeded."""
        self._board.ended(task.name, "answers" if not self._last_step(task) else "ready", self._last_step(task))

    def skip_uptodate(self, task: Any) -> None:
        """Show that a task is up to date."""
        self._board.ended(task.name, "up to date", self._last_step(task))

    def add_failure(self, task: Any, fail: Any) -> None:
        """Show that a task has failed, or was ended because another task has failed."""
        if fail.report:
            self._shown_failures.append((_label(task.name), str(fail.message)))
        self._board.ended(task.name, "failed" if fail.report else "ended", True)

    def complete_run(self) -> None:
        """End the board, and print the failures last, where the user sees them."""
        self._board.end()
        for name, text in self._shown_failures:
            print(f"\n✗ {name} failed\n{text}", file=sys.stderr, flush=True)
        for text in self.runtime_errors:
            print(text, file=sys.stderr, flush=True)
