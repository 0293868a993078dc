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

import hashlib
import re
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from . import ownership
from .context import Context
from .errors import DmucError
from .files import fingerprint, write_atomic
from .goal import STARTED, Goal, Names, Nodes, resolve
from .machine import Machine, is_root
from .ports import Port, a_free_one, is_free
from .probe import Answer, Http, Probe, Tcp, Unix, simple, wait
from .process import Record, boot, find, marks
from .progress import Progress

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
    answers: Probe | None = None  # not specified: when it is ready
    needs: Names = ()
    after: Names = ()
    reads: Callable[[Context], Sequence[Path]] = field(default=lambda context: ())  # files that others write
    writes: Callable[[Context], Mapping[Path, str]] = field(default=lambda context: {})  # its own configuration files
    keeps: Callable[[Context], Sequence[Path]] = field(default=lambda context: ())  # what it stores
    place: Callable[[Context], Machine] = field(default=lambda context: context.machine)  # where it runs
    unwanted: Callable[[Context], str] = field(default=lambda context: "")  # why it is not needed, if it is not
    prepare: Callable[[Context], None] | None = None  # what must be done first, every time that it is started
    take_back: Callable[[Context], None] | None = None  # what it did elsewhere and `undo` is to take back
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
            holds=self.is_answering,
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

    def log(self, context: Context) -> Path:
        """Its log file, appended to at every start."""
        return context.logs / f"{self.name}.log"

    def record(self, context: Context) -> Path:
        """The file that remembers its process."""
        return context.pidfiles / f"{self.name}.pid"

    def _ran(self, context: Context) -> Path:
        """The file that says that it has lived: what one that ended at once has met may be somebody else's."""
        return context.pidfiles / f"{self.name}.ran"

    def has_run(self, context: Context) -> bool:
        """Whether it has run since the machine was last emptied of it."""
        return self._ran(context).exists()

    def has_run_since_boot(self, context: Context) -> bool:
        """Whether it has run since then and since the host was booted: no link and no rule outlives that."""
        return self.has_run(context) and self._ran(context).read_text("utf-8") in {boot(), ""}  # "": of an earlier dmuc

    def _has_come_up(self, context: Context) -> None:
        self._ran(context).write_text(boot(), "utf-8")

    def directory(self, context: Context) -> Path:
        """The directory it works in."""
        return context.node.state / self.name

    def _inputs(self, context: Context) -> dict[str, str]:
        prints = {
            str(context.program(p)): fingerprint(context.program(p))
            for p in (self.program_name(context), *resolve(self.tools, context))
        }
        prints |= {str(path): _content_print(path) for path in self.reads(context)}
        return prints | {str(path): _digest(text.encode()) for path, text in self.writes(context).items()}

    # How it is

    def running(self, context: Context) -> Answer:
        """Does it run, is it ours, and with this very command line, program and input files?"""
        record = Record.load(self.record(context))
        if record is None:
            return Answer(False, "not started")
        if not record.alive():
            return Answer(False, f"its process (pid {record.pid}) is gone")
        try:
            changed = _changes(record, self.command(context), self._inputs(context))
        except (DmucError, OSError) as error:
            return Answer(False, str(error))
        return Answer(False, changed) if changed else Answer(True, f"pid {record.pid}")

    def is_answering(self, context: Context) -> Answer:
        """Does it run as wanted, and answer?"""
        return self._judged(context, self.answers or self.ready)

    def is_ready(self, context: Context) -> Answer:
        """Does it run as wanted, and is it ready?"""
        return self._judged(context, self.ready)

    def _judged(self, context: Context, probe: Probe) -> Answer:
        unwanted = self.unwanted(context)
        if unwanted:
            return Answer(Record.load(self.record(context)) is None, unwanted)
        answer = self.running(context)
        return probe(context) if answer else answer

    def choose_ports(self, context: Context, taken: Collection[int]) -> None:
        """Have a free port for each of its `ports`, and none of `taken`, where the standard ones are not ours.

        A port stays what it is, until clean; but one that somebody else has taken while ours did not run is given up.
        """
        record = Record.load(self.record(context))
        if record is not None and record.alive():
            return
        for port in self.ports if context.settings.shares_host else ():
            number = context.port(port)
            if not number or not is_free(number):
                context.decide(port.decision, str(a_free_one(taken)))

    # Start, wait, stop

    def start(self, context: Context, progress: Progress) -> None:
        """Start it, unless it runs as wanted, and wait until it answers. Raises DmucError; then it does not run."""
        if self.unwanted(context):
            self.stop(context)
            return
        probe = self.answers or self.ready
        running = self.running(context)
        if running:
            record = Record.load(self.record(context))
            assert record is not None
            # Left by a run that was ended, perhaps, and still on its way; or it hangs.
            if wait(context, probe, deadline=_PATIENCE, progress=progress, alive=record.alive):
                self._has_come_up(context)
                return
        progress.note(f"starting ({running.why})")
        self.stop(context)
        self._spawn_and_wait(context, probe, progress)

    def await_ready(self, context: Context, progress: Progress) -> None:
        """Wait until it is ready. Raises DmucError; then it does not run any more."""
        if not self.unwanted(context):
            self._wait(context, self.ready, progress)

    def stop(self, context: Context) -> None:
        """End its process, if it has one of ours, and forget it. Raises DmucError when it does not end."""
        path = self.record(context)
        record = Record.load(path)
        # A run that was killed between starting it and taking it down left one that no record names.
        for process in (*([record] if record else []), *find(path)):
            process.stop(self.grace)
        path.unlink(missing_ok=True)

    def undo(self, context: Context) -> None:
        """Stop it, and remove what it stored and the files that were written for it, if it was ever started here.

        Raises DmucError, or OSError, when something is left. Then it can be done again.
        """
        self.stop(context)
        if not self.log(context).exists():
            return
        on, elsewhere = context.machine.down() is None, self._elsewhere(context)
        # Whose it is, before anything is done.
        ours = [p for p in self.keeps(context) if p not in elsewhere or ownership.is_ours(p, context.state)]
        marked = [path for path in ours if path in elsewhere]
        if marked or (self.take_back is not None and not context.machine.whole and self.has_run_since_boot(context)):
            self._refuse_rival(context, marked)
        if on and self.take_back is not None and self.has_run(context):
            self.take_back(context)
        for path in ours:
            if on and is_root():
                ownership.unmount_below(context.machine, path)
            ownership.empty(path)
        # The log last: an undo that breaks off is done again.
        for path in (*self.writes(context), self._ran(context), self.log(context)):
            path.unlink(missing_ok=True)

    def _refuse_rival(self, context: Context, marked: Sequence[Path]) -> None:
        """Raise DmucError when another one answers in its place: it may use what ours has left, mark or not."""
        answer = self._answers_already(context, self.rival or self.ready)
        if answer:
            there = ", ".join(map(str, marked))
            keep = f"\nWhat is in {there} is removed then; to keep it, remove the file {ownership.MARK} there first."
            raise DmucError(
                f"taking back {self.name} on {context.machine.name}",
                f"Ours has ended, but another one runs in its place and may use what ours has left: {answer.why}.",
                f"Stop it, and run clean again.{keep if there else ''}",
            )

    def _answers_already(self, context: Context, probe: Probe) -> Answer | None:
        """The answer of the first that says yes of what this probe asks of servers, if one does."""
        answers = (p(context) for p in simple(probe, context) if isinstance(p, Tcp | Unix | Http))
        return next((answer for answer in answers if answer), None)

    def _spawn_and_wait(self, context: Context, probe: Probe, progress: Progress) -> None:
        self.refuse_where_it_cannot_be(context)
        command, log = self.command(context), self.log(context)
        self._refuse_unknown_flags(context)
        self._refuse_what_is_there(context, probe)
        for directory in (context.logs, context.pidfiles, context.home, self.directory(context), *self.keeps(context)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._elsewhere(context):
            ownership.claim(path, context.state)
        if self.prepare is not None:
            self.prepare(context)
        for path, text in self.writes(context).items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, text, 0o700 if text.startswith("#!") else 0o600)
        with log.open("a", encoding="utf-8") as out:
            out.write(f"--- {time.strftime('%F %T')} {shlex.join(command)}\n")
            begin = out.tell()
        log.chmod(0o600)
        inputs = self._inputs(context)
        environment = {**context.environment(), **marks(self.record(context), command[0])}
        spawned = self.place(context).spawn(command, log=log, cwd=self.directory(context), environment=environment)
        Record.of(spawned.pid, command, inputs, begin).save(self.record(context))
        context.run.spawned[spawned.pid] = spawned
        self._wait(context, probe, progress)
        self._has_come_up(context)

    def refuse_where_it_cannot_be(self, context: Context) -> None:
        """Raise DmucError when it takes root and we are not, or when it would not be alone on this host."""
        program = self.program_name(context)
        if self.needs_root and not is_root():
            raise DmucError(f"starting {self.name}", f"{program} needs root.", "Run dmuc as root.")
        if self.needs_root and context.settings.shares_host:
            seen = f"{program} needs a machine of its own; beside other clusters it cannot run."
            raise DmucError(f"starting {self.name}", seen, "Use a machine of its own: machine=NAME.")

    def _elsewhere(self, context: Context) -> list[Path]:
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
        if answer := self._answers_already(context, probe) or self._answers_already(context, self.ready):
            raise DmucError(
                tried,
                f"Another process already answers ({answer.why}), and {self.name} is not running.",
                "Find the process with `ss -ltnp` in the machine, and stop it.",
            )
        for path in self.in_the_way(context):
            raise DmucError(
                tried,
                f"{path} already exists and was not created by dmuc.",
                f"Use a machine of its own (machine=NAME), or find out which program uses {path}, and move it away.",
            )

    def in_the_way(self, context: Context) -> list[Path]:
        """Give what somebody else keeps where it would keep something itself."""
        return [path for path in self._elsewhere(context) if ownership.is_foreign(path, context.state)]

    def _wait(self, context: Context, probe: Probe, progress: Progress) -> None:
        record = Record.load(self.record(context))
        if record is None:
            raise DmucError(f"waiting for {self.name}", "The process was stopped meanwhile.", f"Run again: {self.name}")
        deadline = context.settings.deadline_of(self.name)
        answer = wait(context, probe, deadline=deadline, progress=progress, alive=record.alive)
        if answer and record.alive():
            return
        elapsed = time.time() - record.since
        ended = not record.alive()
        if not ended:
            self._has_come_up(context)
        spawned = context.run.spawned.get(record.pid)
        code = spawned.exit_code() if ended and spawned else None
        self.stop(context)
        raise self._failure(context, record, answer, elapsed, ended, code)

    def _failure(
        self, context: Context, record: Record, answer: Answer, elapsed: float, ended: bool, code: int | None
    ) -> DmucError:
        with self.log(context).open("rb") as log:
            log.seek(record.log_start)
            # A Go program that gives up prints its reason, and after it what every goroutine was doing.
            text = log.read().decode(errors="replace").split("\ngoroutine ")[0].rstrip()
        if ended:
            seen = (
                f"The process ended {'by itself' if code is None else f'with exit code {code}'} after {elapsed:.1f} s."
            )
        else:
            seen = f"Not ready after {elapsed:.0f} s; it was stopped. Last answer: {answer.why}"
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _content_print(path: Path) -> str:
    try:
        return _digest(path.read_bytes())
    except FileNotFoundError:
        return "missing"
