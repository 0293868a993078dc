"""A background process: its command line, its log, its file; how it is started, waited for, judged and stopped.

              start                     answers                      ready
    stopped ---------> running ----------------------> answering -----------> ready
       ^                  |  (its clients may start)       |                    |
       +------------------+--------------------------------+--------------------+
                 stop; or it ended by itself, which fails whoever waits for it at once

From one Daemon come two goals: `NAME:started`, it runs and answers, so that its clients can be started; and NAME, it is
ready. `needs` is said once: `NAME:started` needs the `OTHER:started` of each daemon in it, and NAME the OTHER. So each
is started at the earliest moment at which it can make progress, and is called ready only when what it needs is ready.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from . import ownership
from .context import Context
from .errors import DmucError
from .files import MISSING, digest
from .goal import STARTED, Goal, Names, Nodes, resolve
from .machine import is_root
from .ports import Port, a_free_one, is_free
from .probe import Http, Probe, Tcp, Unix, simple, wait
from .process import Record, marks
from .progress import Progress
from .result import Result

_CAUSES = {
    "address already in use": "Another process uses the port: `ss -ltnp` in the machine shows which.",
    "no space left on device": "The disk is full.",
}
Purpose = Literal["", "security", "isolation", "speed", "use"]
_PATIENCE = 5.0  # seconds that a running daemon which does not answer is given before it is started anew


@dataclass(frozen=True)
class Flag:
    """One argument, and the reason why it is there."""

    text: str
    why: str
    kept_for: Purpose = ""  # what the reason is about, where the page is reached without (see scripts/ablate)


def files_of(flags: Sequence[Flag]) -> list[Path]:
    """Give the files that the flags name by an absolute path."""
    values = (flag.text.partition("=")[2] for flag in flags)
    return [Path(value) for value in values if value.startswith("/")]


@dataclass(frozen=True)
class Daemon:
    """What there is to know about one of the cluster's processes."""

    name: str
    doc: str
    program: str | Callable[[Context], str]  # a function where it depends on the settings
    flags: Callable[[Context], Sequence[Flag]]
    ready: Probe
    ports: Sequence[Port] = ()  # where it listens, and there may be others beside it on this host
    started: Probe | None = None  # not specified: when it is ready
    needs: Names = ()
    after: Names = ()
    reads: Callable[[Context], Sequence[Path]] = field(default=lambda context: ())  # files that others write
    writes: Callable[[Context], Mapping[Path, str]] = field(default=lambda context: {})  # its own configuration files
    keeps: Callable[[Context], Sequence[Path]] = field(default=lambda context: ())  # what it stores
    on_host: bool = False  # it runs on the host itself, beside the machine of its node
    disabled_because: Callable[[Context], str] = field(default=lambda context: "")  # why it is not needed, if it is not
    prepare: Callable[[Context], None] | None = None  # what must be done first, every time that it is started
    clean_up: Callable[[Context], None] | None = None  # what it did elsewhere and `undo` is to take back
    rival: Probe | None = None  # yes: another does its work in its place; not specified: when that one is ready
    needs_root: bool = False
    hidden: bool = False  # a means to an end, which `doit list` leaves out
    nodes: Nodes = "first"  # on which nodes of the cluster it runs
    tools: Names = ()  # other programs that it runs itself: another one of them means a new start, too
    causes: Mapping[str, str] = field(default_factory=dict)  # a regular expression found in its log -> what it means
    grace: float = 10.0  # seconds between SIGTERM and SIGKILL

    def goals(self) -> Sequence[Goal]:
        """Return its two goals, the first step first."""
        started = Goal(
            name=f"{self.name}{STARTED}",
            doc=f"{self.name} runs and answers",
            needs_started=True,
            hidden=True,
            nodes=self.nodes,
            holds=self.is_started,
            make=self.start,
            needs=self.needs,
            after=self.after,
        )
        ready = replace(
            started,
            name=self.name,
            doc=self.doc,
            holds=self.is_ready,
            make=self.await_ready,
            undo=self.undo,
            needs=lambda context: (started.name, *resolve(self.needs, context)),
            after=(),
            needs_started=False,
            hidden=self.hidden,
        )
        return (started, ready)

    # What it is

    def command(self, context: Context) -> list[str]:
        """The whole command line. Raises DmucError when its program has not been found yet."""
        return [str(context.program(self.program_name(context))), *(flag.text for flag in self.flags(context))]

    def program_name(self, context: Context) -> str:
        """The name of its program."""
        return self.program(context) if callable(self.program) else self.program

    def _there(self, context: Context) -> Context:
        return context.beside_the_machine() if self.on_host else context

    def log(self, context: Context) -> Path:
        """Its log file, appended to at every start."""
        return context.logs / f"{self.name}.log"

    def record(self, context: Context) -> Path:
        """The file that remembers its process."""
        return context.pidfiles / f"{self.name}.pid"

    def _ready_mark(self, context: Context) -> Path:
        """The file that says that it has lived: what one that ended at once has met may be somebody else's."""
        return context.pidfiles / f"{self.name}.ran"

    def was_ready(self, context: Context) -> bool:
        """Return whether it has run since the machine was last emptied of it."""
        mark = self._ready_mark(context)
        return context.machine.fingerprints((), [mark]) != {str(mark): MISSING}

    def was_ready_since_boot(self, context: Context) -> bool:
        """Return whether it has run since then and since the host was booted: no link and no rule outlives a boot."""
        mark = context.machine.path(self._ready_mark(context))
        since = {context.machine.processes.boot(), ""}  # "": of an earlier dmuc
        return bool(mark.exists()) and mark.read_text("utf-8") in since

    def _mark_ready(self, context: Context) -> None:
        context.machine.write(self._ready_mark(context), context.machine.processes.boot(), 0o600)

    def directory(self, context: Context) -> Path:
        """The directory it works in."""
        return context.node.state / self.name

    def _inputs(self, context: Context) -> dict[str, str]:
        names = (self.program_name(context), *resolve(self.tools, context))
        programs = [context.program(name) for name in names]
        prints = context.machine.fingerprints(programs, self.reads(context))
        return prints | {str(path): digest(text.encode()) for path, text in self.writes(context).items()}

    # How it is

    def process(self, context: Context) -> Record | None:
        """Return its process as it was started last; None when it was not."""
        context = self._there(context)
        return context.machine.processes.recorded(self.record(context))

    def running(self, context: Context) -> Result:
        """Does it run, is it ours, and with this very command line, program and input files?"""
        context = self._there(context)
        record = self.process(context)
        if record is None:
            return Result(False, "not started")
        if not context.machine.processes.is_alive(record):
            return Result(False, f"its process (pid {record.pid}) is gone")
        try:
            changed = _changes(record, self.command(context), self._inputs(context))
        except (DmucError, OSError) as error:
            return Result(False, str(error))
        return Result(False, changed) if changed else Result(True, f"pid {record.pid}")

    def is_started(self, context: Context) -> Result:
        """Does it run as wanted, and answer?"""
        context = self._there(context)
        return self._judged(context, self.started or self.ready)

    def is_ready(self, context: Context) -> Result:
        """Does it run as wanted, and is it ready?"""
        context = self._there(context)
        return self._judged(context, self.ready)

    def _judged(self, context: Context, probe: Probe) -> Result:
        disabled_because = self.disabled_because(context)
        if disabled_because:
            return Result(self.process(context) is None, disabled_because)
        result = self.running(context)
        return probe(context) if result else result

    def choose_ports(self, context: Context, taken: Collection[int]) -> None:
        """Have a free port for each of its `ports`, and none of `taken`, where the standard ones are not ours.

        A port stays what it is, until clean; but one that somebody else has taken while ours did not run is given up.
        """
        record = self.process(context)
        if record is not None and context.machine.processes.is_alive(record):
            return
        for port in self.ports if context.settings.shares_host else ():
            number = context.port(port)
            if not number or not is_free(number):
                context.decide(port.decision, str(a_free_one(taken)))

    # Start, wait, stop

    def start(self, context: Context, progress: Progress) -> None:
        """Start it, unless it runs as wanted, and wait until it answers. Raises DmucError; then it does not run."""
        context = self._there(context)
        if self.disabled_because(context):
            self.stop(context)
            return
        probe = self.started or self.ready
        running = self.running(context)
        if running:
            record = self.process(context)
            assert record is not None
            # Left by a run that was ended, perhaps, and still on its way; or it hangs.
            if wait(
                context,
                probe,
                deadline=_PATIENCE,
                progress=progress,
                alive=partial(context.machine.processes.is_alive, record),
            ):
                self._mark_ready(context)
                return
        progress.note(f"starting ({running.why})")
        self.stop(context)
        self._spawn_and_wait(context, probe, progress)

    def await_ready(self, context: Context, progress: Progress) -> None:
        """Wait until it is ready. Raises DmucError; then it does not run any more."""
        context = self._there(context)
        if not self.disabled_because(context):
            self._wait(context, self.ready, progress)

    def stop(self, context: Context) -> None:
        """End its process, if there is one, and forget the process. Raise DmucError when the process does not end."""
        context = self._there(context)
        path, processes = self.record(context), context.machine.processes
        record = self.process(context)
        # A run that was killed between the start of the process and the record of it left one that no record names.
        for process in (*([record] if record else []), *processes.find(path)):
            processes.stop(process, self.grace)
        context.machine.path(path).unlink()

    def undo(self, context: Context) -> None:
        """Stop it, and remove what it stored and the files that were written for it, if it was ever started here.

        Raises DmucError, or OSError, when something is left. Then it can be done again.
        """
        context = self._there(context)
        self.stop(context)
        if not context.machine.path(self.log(context)).exists():
            return
        on, elsewhere = context.machine.is_up(), self._outside_state(context)
        # Whose it is, before anything is done.
        ours = [
            p for p in self.keeps(context) if p not in elsewhere or ownership.is_ours(context.machine, p, context.state)
        ]
        marked = [path for path in ours if path in elsewhere]
        if marked or (
            self.clean_up is not None and not context.machine.disposable and self.was_ready_since_boot(context)
        ):
            self._refuse_rival(context, marked)
        if on and self.clean_up is not None and self.was_ready(context):
            self.clean_up(context)
        for path in ours:
            if on and is_root():
                ownership.unmount_below(context.machine, path)
            ownership.empty(context.machine, path)
        # The log last: an undo that breaks off is done again.
        for path in (*self.writes(context), self._ready_mark(context), self.log(context)):
            context.machine.path(path).unlink()

    def _refuse_rival(self, context: Context, marked: Sequence[Path]) -> None:
        """Raise DmucError when another one answers in its place: it may use what ours has left, mark or not."""
        result = self._rival_answers(context, self.rival or self.ready)
        if result:
            there = ", ".join(map(str, marked))
            keep = f"\nWhat is in {there} is removed then; to keep it, remove the file {ownership.MARK} there first."
            raise DmucError(
                f"taking back {self.name} on {context.machine.name}",
                f"Ours has ended, but another one runs in its place and may use what ours has left: {result.why}.",
                f"Stop it, and run clean again.{keep if there else ''}",
            )

    def _rival_answers(self, context: Context, probe: Probe) -> Result | None:
        """The answer of the first that says yes of what this probe asks of servers, if one does."""
        results = (p(context) for p in simple(probe, context) if isinstance(p, Tcp | Unix | Http))
        return next((result for result in results if result), None)

    def _spawn_and_wait(self, context: Context, probe: Probe, progress: Progress) -> None:
        self.refuse_where_it_cannot_be(context)
        command, log = self.command(context), self.log(context)
        self._refuse_unknown_flags(context)
        self._refuse_what_is_there(context, probe)
        machine = context.machine
        for directory in (context.logs, context.pidfiles, context.home, self.directory(context), *self.keeps(context)):
            machine.path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._outside_state(context):
            ownership.claim(machine, path, context.state)
        if self.prepare is not None:
            self.prepare(context)
        for path, text in self.writes(context).items():
            machine.path(path.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
            machine.write(path, text, 0o700 if text.startswith("#!") else 0o600)
        with machine.path(log).open("ab") as out:
            out.write(f"--- {time.strftime('%F %T')} {shlex.join(command)}\n".encode())  # type: ignore[arg-type]
            begin = out.tell()
        machine.path(log).chmod(0o600)
        inputs = self._inputs(context)
        environment = {**context.environment(), **marks(self.record(context), command[0])}
        spawned = machine.spawn(command, log=log, cwd=self.directory(context), environment=environment)
        machine.processes.save(self.record(context), spawned.pid, command, inputs, begin)
        context.run.spawned[spawned.pid] = spawned
        self._wait(context, probe, progress)
        self._mark_ready(context)

    def refuse_where_it_cannot_be(self, context: Context) -> None:
        """Raise DmucError when it takes root and we are not, or when it would not be alone on this host."""
        program = self.program_name(context)
        if self.needs_root and not is_root():
            raise DmucError(f"starting {self.name}", f"{program} needs root.", "Run dmuc as root.")
        if self.needs_root and context.settings.shares_host:
            seen = f"{program} needs a machine of its own; beside other clusters it cannot run."
            raise DmucError(f"starting {self.name}", seen, "Use a machine of its own: machine=NAME.")

    def _outside_state(self, context: Context) -> list[Path]:
        """What it keeps outside of our own state, where it could be somebody else's."""
        return [path for path in self.keeps(context) if context.state not in path.parents]

    def _refuse_unknown_flags(self, context: Context) -> None:
        """Raise DmucError for a flag that the program's own --help does not name: a release that nobody has met."""
        program = self.program_name(context)
        names = [flag.text.partition("=")[0] for flag in self.flags(context)]
        unknown = [name for name in names if name.startswith("--") and context.knows(program, name) is False]
        if unknown:
            raise DmucError(
                f"starting {self.name}",
                f"{context.program(program)} has no flag {', '.join(unknown)}.",
                f"dmuc does not know the program's release; name another with {program.replace('-', '_')}_bin=PATH.",
            )

    def _refuse_what_is_there(self, context: Context, probe: Probe) -> None:
        """Raise DmucError when somebody else answers in its place, or keeps something where it would."""
        tried = f"starting {self.name} on {context.machine.name}"
        if result := self._rival_answers(context, probe) or self._rival_answers(context, self.ready):
            raise DmucError(
                tried,
                f"Another process already answers ({result.why}), and {self.name} is not running.",
                "Find the process with `ss -ltnp` in the machine, and stop it.",
            )
        for path in self.foreign_directories(context):
            raise DmucError(
                tried,
                f"{path} already exists and was not created by dmuc.",
                f"Use a machine of its own (machine=NAME), or find out which program uses {path}, and move it away.",
            )

    def foreign_directories(self, context: Context) -> list[Path]:
        """Give what somebody else keeps where it would keep something itself."""
        return [
            path for path in self._outside_state(context) if ownership.is_foreign(context.machine, path, context.state)
        ]

    def _wait(self, context: Context, probe: Probe, progress: Progress) -> None:
        record = self.process(context)
        if record is None:
            raise DmucError(f"waiting for {self.name}", "The process was stopped meanwhile.", f"Run again: {self.name}")
        deadline = context.settings.deadline_of(self.name)
        result = wait(
            context,
            probe,
            deadline=deadline,
            progress=progress,
            alive=partial(context.machine.processes.is_alive, record),
        )
        if result and context.machine.processes.is_alive(record):
            return
        elapsed = time.time() - record.since
        ended = not context.machine.processes.is_alive(record)
        if not ended:
            self._mark_ready(context)
        spawned = context.run.spawned.get(record.pid)
        code = spawned.exit_code() if ended and spawned else None
        self.stop(context)
        raise self._failure(context, record, result, elapsed, ended, code)

    def _failure(
        self, context: Context, record: Record, result: Result, elapsed: float, ended: bool, code: int | None
    ) -> DmucError:
        written = context.machine.path(self.log(context)).read_bytes()[record.log_start :]
        # A Go program that gives up prints its reason, and after it what every goroutine was doing.
        text = written.decode(errors="replace").split("\ngoroutine ")[0].rstrip()
        if ended:
            seen = (
                f"The process ended {'by itself' if code is None else f'with exit code {code}'} after {elapsed:.1f} s."
            )
        else:
            seen = f"Not ready after {elapsed:.0f} s; it was stopped. Last answer: {result.why}"
        causes = [meaning for pattern, meaning in {**_CAUSES, **self.causes}.items() if re.search(pattern, text)]
        shell = "" if context.settings.on_host else "scripts/doit shell -- "
        return DmucError(
            f"{self.name} did not start" if ended else f"{self.name} did not become ready",
            "\n".join(
                [
                    seen,
                    f"command: {shell}{shlex.join(record.command)}",
                    f"log: {self.log(context)}, its last lines:",
                    *(f"  {line}" for line in text.splitlines()[-12:]),
                ]
            ),
            "\n".join([*(f"Known cause: {cause}" for cause in causes)])
            or ("" if ended else f"More time: deadline_{self.name}=SECONDS."),
        )


def _changes(record: Record, command: Sequence[str], inputs: Mapping[str, str]) -> str:
    """Say what is different from how the process was started; empty when nothing is."""
    if record.command[0] != command[0]:
        return f"its program must change: {record.command[0]} is running, {command[0]} is wanted"
    gone, new = (
        " ".join(x for x in a if x not in b) for a, b in ((record.command, command), (command, record.command))
    )
    if list(record.command) != list(command) and not gone and not new:
        return "the order of its flags changed"
    if list(record.command) != list(command):
        return f"its command line changed: {gone or 'nothing'} became {new or 'nothing'}"
    changed = [name for name in {**record.inputs, **inputs} if record.inputs.get(name) != inputs.get(name)]
    return f"changed since it was started: {', '.join(changed)}" if changed else ""
