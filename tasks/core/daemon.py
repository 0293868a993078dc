"""A background process: its command line, its log, its file; how it is started, waited for, judged and stopped.

              start                     answers                      ready
    stopped ---------> running ----------------------> answering -----------> ready
       ^                  |  (its clients may start)       |                    |
       +------------------+--------------------------------+--------------------+
                 stop; or it ended by itself, which fails whoever waits for it at once

From one Daemon come two goals: `_NAME`, it runs and answers, so that whoever needs it can be started; and NAME, it is
ready. `needs` is said once: `_NAME` needs the `_OTHER` of each daemon it needs, and NAME the OTHER. So each is
started at the earliest moment at which it can make progress, and is called ready only when what it stands on is.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .context import Context
from .errors import DmucError
from .goal import Goal, Names, resolve
from .machine import Machine, Spawned, is_root, run
from .ports import Port, a_free_one, is_free
from .probe import Answer, Http, Probe, Tcp, Unix, simple, wait
from .process import Record, find, marks
from .progress import Progress

_SPAWNED: dict[int, Spawned] = {}  # what this very run started, by pid: it alone can know their exit codes
_CAUSES = {
    "address already in use": "Another process uses the port: `ss -ltnp` in the machine shows which.",
    "no space left on device": "The disk is full.",
}
_OWNER = ".dmuc"  # the file, in a directory that is not under our state, that says whose it is
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
    needs_root: bool = False
    tools: Names = ()  # other programs that it runs itself: another one of them means a new start, too
    causes: Mapping[str, str] = field(default_factory=dict)  # a regular expression found in its log -> what it means
    grace: float = 10.0  # seconds between SIGTERM and SIGKILL

    def goals(self) -> Sequence[Goal]:
        """Give its two goals, the private one first."""
        started = Goal(
            name=f"_{self.name}",
            doc=f"{self.label} runs and answers",
            early=True,
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
            early=False,
        )
        return (started, ready)

    # What it is

    @property
    def label(self) -> str:
        """Its name for people and files: a private one loses its underscore."""
        return self.name.lstrip("_")

    def command(self, context: Context) -> list[str]:
        """The whole command line. Raises DmucError when its program has not been found yet."""
        return [str(context.program(self.program_name(context))), *(flag.text for flag in self.flags(context))]

    def program_name(self, context: Context) -> str:
        """The name of its program."""
        return self.program(context) if callable(self.program) else self.program

    def log(self, context: Context) -> Path:
        """Its log file, appended to at every start."""
        return context.logs / f"{self.label}.log"

    def record(self, context: Context) -> Path:
        """The file that remembers its process."""
        return context.run / f"{self.label}.pid"

    def _ran(self, context: Context) -> Path:
        """The file that says that it has lived: what one that ended at once has met may be somebody else's."""
        return context.run / f"{self.label}.ran"

    def has_run(self, context: Context) -> bool:
        """Whether it has run since the machine was last emptied of it."""
        return self._ran(context).exists()

    def directory(self, context: Context) -> Path:
        """The directory it works in."""
        return context.state / self.label

    def _inputs(self, context: Context) -> dict[str, str]:
        prints = {
            str(context.program(p)): _stat_print(context.program(p))
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
        for port in self.ports if context.settings.free_ports else ():
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
                self._ran(context).touch()
                return
        progress.note(f"starting ({running.why})")
        self.stop(context)
        self._spawn_and_wait(context, probe, progress)

    def await_ready(self, context: Context, progress: Progress) -> None:
        """Wait until it is ready. Raises DmucError; then it does not run any more."""
        if not self.unwanted(context):
            self._wait(context, self.ready, progress)

    def stop(self, context: Context) -> None:
        """End its process, if it has one of ours, and forget it."""
        path = self.record(context)
        record = Record.load(path)
        if record is not None:
            record.stop(self.grace)
        # A run that was killed between starting it and taking it down left one that no record names.
        for pid in find(path):
            Record.of(pid, (), {}).stop(self.grace)
        path.unlink(missing_ok=True)

    def undo(self, context: Context) -> None:
        """Stop it, and remove what it stored and the files that were written for it, if it was ever started here."""
        self.stop(context)
        if not self.log(context).exists():
            return
        on = context.machine.down() is None
        if on and self.take_back is not None and self.has_run(context):
            self.take_back(context)
        for path in self.keeps(context):
            if on and is_root():
                _unmount_below(context, path)
            if path not in self._elsewhere(context) or _owner(path) == str(context.state):
                _empty(path)
        # The log last: an undo that breaks off is done again.
        for path in (*self.writes(context), self._ran(context), self.log(context)):
            path.unlink(missing_ok=True)

    def _spawn_and_wait(self, context: Context, probe: Probe, progress: Progress) -> None:
        self.refuse_where_it_cannot_be(context)
        command, log = self.command(context), self.log(context)
        self._refuse_unknown_flags(context)
        self._refuse_what_is_there(context, probe)
        for directory in (context.logs, context.run, context.home, self.directory(context), *self.keeps(context)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._elsewhere(context):
            (path / _OWNER).write_text(str(context.state))
        if self.prepare is not None:
            self.prepare(context)
        for path, text in self.writes(context).items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o700 if text.startswith("#!") else 0o600)
        with log.open("a") as out:
            out.write(f"--- {time.strftime('%F %T')} {shlex.join(command)}\n")
            begin = out.tell()
        log.chmod(0o600)
        inputs = self._inputs(context)
        environment = {**context.environment(), **marks(self.record(context), command[0])}
        spawned = self.place(context).spawn(command, log=log, cwd=self.directory(context), environment=environment)
        Record.of(spawned.pid, command, inputs, begin).save(self.record(context))
        _SPAWNED[spawned.pid] = spawned
        self._wait(context, probe, progress)
        self._ran(context).touch()

    def refuse_where_it_cannot_be(self, context: Context) -> None:
        """Raise DmucError when it takes root and we are not, or when it would not be alone on this host."""
        program = self.program_name(context)
        if self.needs_root and not is_root():
            raise DmucError(f"starting {self.label}", f"{program} needs root.", "Run dmuc as root.")
        if self.needs_root and context.settings.free_ports:
            seen = f"{program} needs a machine of its own; beside other clusters it cannot run."
            raise DmucError(f"starting {self.label}", seen, "Use a machine of its own: machine=NAME.")

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
                f"starting {self.label}",
                f"{context.program(program)} has no flag {', '.join(unknown)}.",
                f"dmuc does not know the program's release; name another with {program.replace('-', '_')}_bin=PATH.",
            )

    def _refuse_what_is_there(self, context: Context, probe: Probe) -> None:
        """Raise DmucError when somebody else answers in its place, or keeps something where it would."""
        tried = f"starting {self.label} on {context.machine.name}"
        probes = [*simple(probe, context), *simple(self.ready, context)]
        for answer in (p(context) for p in probes if isinstance(p, Tcp | Unix | Http)):
            if answer:
                raise DmucError(
                    tried,
                    f"Another process already answers ({answer.why}), and {self.label} is not running.",
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
        paths = [path for path in self._elsewhere(context) if path.is_dir()]
        return [path for path in paths if _owner(path) != str(context.state) and any(path.iterdir())]

    def _wait(self, context: Context, probe: Probe, progress: Progress) -> None:
        record = Record.load(self.record(context))
        if record is None:
            raise DmucError(
                f"waiting for {self.label}", "The process was stopped meanwhile.", f"Run again: {self.name}"
            )
        deadline = context.settings.deadline_of(self.label)
        answer = wait(context, probe, deadline=deadline, progress=progress, alive=record.alive)
        if answer and record.alive():
            return
        elapsed = time.time() - record.since
        ended = not record.alive()
        if not ended:
            self._ran(context).touch()
        code = _SPAWNED[record.pid].exit_code() if ended and record.pid in _SPAWNED else None
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
            f"{self.label} did not start" if ended else f"{self.label} did not become ready",
            "\n".join(
                [
                    seen,
                    f"command: {shell}{shlex.join(record.command)}",
                    f"log: {self.log(context)}, its last lines:",
                    *(f"  {line}" for line in text.splitlines()[-12:]),
                ]
            ),
            "\n".join([*(f"Known cause: {cause}" for cause in causes)])
            or ("" if ended else f"More time: deadline_{self.label}=SECONDS."),
        )


def _owner(directory: Path) -> str | None:
    try:
        return (directory / _OWNER).read_text()
    except OSError:
        return None


def _empty(directory: Path) -> None:
    """Remove what is in it, not the directory: the machine may have it mounted elsewhere."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unmount_below(context: Context, path: Path) -> None:
    """A daemon may have mounted things in what it stores; they would keep it from being removed."""
    script = 'while read -r _ _ _ _ at _; do case $at in "$1"/*) umount -l "$at";; esac; done < /proc/self/mountinfo'
    run(context.machine, "sh", "-c", script, "sh", str(path))


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


def _stat_print(program: Path) -> str:
    """Programs are too large to be read at every check."""
    status = program.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
