"""Play one step of the tour: print its text, run its commands, and check their output."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ..core.cluster import Cluster
from ..core.errors import DmucError
from ..core.process import Record
from ..core.settings import remember, remembered
from .steps import Command, Step

_WIDTH = 100
_PATIENCE = 180.0  # seconds after which a command that should have ended is stopped
_PAUSE = 1.0  # seconds between two attempts of a repeated command


class Unexpected(DmucError):
    """A step did not end as its chapter says."""


@dataclass
class Stage:
    """Where the tour is played: the cluster, and `say`, which prints a line in a style."""

    cluster: Cluster
    arguments: Sequence[str]  # NAME=VALUE words of the command line, for every doit of the tour
    say: Callable[[str, str], None]

    def play(self, step: Step, go_on: Callable[[], None] | None = None) -> None:
        """Play one step; `go_on`, if given, is called before the commands and returns when the reader presses Enter.

        Raise Unexpected when a command does not end as expected; the cluster then stays as it is.
        """
        self._paragraphs(step.about)
        if go_on is not None:
            self._commands_to_come(step)
            go_on()
        for command in step.command:
            self._play(step, command)
        for heading, text in (("Notice", step.notice), ("Which means", step.means)):
            if text:
                self._paragraphs(f"{heading}: {text.strip()}")

    # Telling

    def _paragraphs(self, text: str) -> None:
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self.say(textwrap.fill(" ".join(paragraph.split()), _WIDTH), "")
            self.say("", "")

    def _commands_to_come(self, step: Step) -> None:
        for command in step.command:
            self.say(textwrap.indent(self._prompt(command) + command.typed.strip(), "  "), "bold")
        if step.command:
            self.say("", "")

    def _prompt(self, command: Command) -> str:
        return "$ " if command.doit else f"{self.cluster.context.machine.name}# "

    # Doing

    def _play(self, step: Step, command: Command) -> None:
        context = self.cluster.context
        if command.set:
            context.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            remember(context.state, command.set)
            self.cluster = replace(
                self.cluster,
                context=replace(context, settings=replace(context.settings, **command.set)),  # type: ignore[arg-type]
            )
        before = self.cluster.running()
        self.say(textwrap.indent(self._prompt(command) + command.typed.strip(), "  "), "bold")
        code, output = self._until_as_expected(command)
        for line in self._shown(command, output):
            self.say(f"  | {line}", "dim")
        self._started_since(before)
        self.say("", "")
        if not _is_as_expected(command, code, output):
            last = output.splitlines()[-15:] or ["(no output)"]
            ended = "the command was still running, and was stopped" if code is None else f"exit status {code}"
            raise Unexpected(
                f"the step {step.name} did not end as expected: {command.typed.strip()}",
                f"expected: {command.expected()}\nseen: {ended}, with this output:\n"
                + "\n".join(f"  {line}" for line in last),
                "The cluster stays as it is. Look at it: scripts/doit status. Start over: scripts/doit clean",
            )

    def _until_as_expected(self, command: Command) -> tuple[int | None, str]:
        import tenacity

        result: tuple[int | None, str] = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda got: not _is_as_expected(command, *got)),
            stop=tenacity.stop_after_delay(command.within),
            wait=tenacity.wait_fixed(_PAUSE),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )(lambda: self._execute(command))
        return result

    def _execute(self, command: Command) -> tuple[int | None, str]:
        """Run the command; return its exit status (None: it was stopped) and its output."""
        context = self.cluster.context
        if command.doit:
            chosen = [f"{name}={value}" for name, value in remembered(context.state).items()]
            words = command.doit.split()
            argv = [sys.executable, "-m", "doit", words[0], *self.arguments, *chosen, *words[1:]]
        else:
            context.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            argv = context.inside("sh", "-c", command.run)
        # A session of its own: Ctrl-C is for the tour, which then ends what it has started.
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            assert process.stdout is not None
            try:
                return _watch(process, process.stdout, command.until, command.within or _PATIENCE)
            finally:
                _end(process)

    # What has been started

    def _started_since(self, before: Mapping[str, Record]) -> None:
        """Show the command line of each daemon that was started or restarted, with the reason for each flag."""
        for daemon in self.cluster.daemons:
            record = self.cluster.running().get(daemon.name)
            if record is None or before.get(daemon.name) == record:
                continue
            old = before[daemon.name].command[1:] if daemon.name in before else []
            name = Path(record.command[0]).name
            changed = "" if [*old] == [*record.command[1:]] else "; only this has changed:"
            self.say(f"  restarted {name}{changed}" if old else f"  started {name}", "green")
            why = {flag.text: flag.why for flag in daemon.flags(self.cluster.context)}
            for text in old:
                if text not in record.command:
                    self.say(f"      without {text}", "green")
            for text in record.command[1:]:
                if text in old:
                    continue
                self.say(f"      {text}", "green")
                for line in textwrap.wrap(why.get(text, ""), _WIDTH - 10):
                    self.say(f"          {line}", "dim")

    def _shown(self, command: Command, output: str) -> list[str]:
        lines = output.splitlines()
        if command.doit and not command.shows:  # of doit, only the results
            lines = [line for line in lines if line.startswith(("✓", "✗"))] or lines
        left_out = len(lines) - command.tail if command.tail else 0
        return [f"… ({left_out} earlier lines)", *lines[left_out:]] if left_out > 0 else lines


def _is_as_expected(command: Command, code: int | None, output: str) -> bool:
    ended = code is None if command.until else code not in (0, None) if command.fails else code == 0
    shown = all(re.search(pattern, output, re.MULTILINE) for pattern in command.shows)
    return ended and shown and not any(re.search(pattern, output, re.MULTILINE) for pattern in command.hides)


def _watch(process: subprocess.Popen[bytes], out: IO[bytes], until: str, patience: float) -> tuple[int | None, str]:
    """Read until the output ends, matches `until`, or `patience` (seconds) is over; return exit status and output."""
    import select
    import time

    output, end = b"", time.monotonic() + patience
    while (left := end - time.monotonic()) > 0 and select.select([out], [], [], left)[0]:
        piece = os.read(out.fileno(), 65536)
        output += piece
        text = output.decode(errors="replace")
        if not piece:
            return process.wait(), text
        found = re.search(until, text) if until else None
        if found:  # the rest of that line, and no more
            return None, text[: found.end()] + text[found.end() :].split("\n")[0]
    return (-1 if until else None), output.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process and its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
