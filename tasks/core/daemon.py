"""A daemon: its command line, its log, its pidfile; how dmuc starts it, waits for it, checks it and stops it.

              start                     answers                      ready
    stopped ---------> running ----------------------> answering -----------> ready
       ^                  |  (its clients may start)       |                    |
       +------------------+--------------------------------+--------------------+
                 stop; or it ended by itself: then all that waits for it fails at once

One Daemon makes two goals: `NAME:started` (the daemon runs and answers, so its clients can be started) and NAME (it is
ready). `needs` is written once: `NAME:started` needs the `OTHER:started` of each daemon in it, and NAME needs OTHER. So
each daemon is started as soon as it can make progress, and counts as ready only when what it needs is ready.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from . import ownership
from .context import Context
from .errors import DmucError, Interrupted
from .files import MISSING, digest
from .flags import Flag, refuse, users_flags
from .goal import STARTED, Goal, Names, Nodes, resolve
from .machine import is_root
from .ports import Port, free_port, is_free
from .probe import Http, Probe, Tcp, Unix, simple, wait
from .process import Record, marks
from .progress import Progress
from .result import Result

_CAUSES = {
    "address already in use": "Another process uses the port: `ss -ltnp` in the machine shows which.",
    "no space left on device": "The disk is full.",
}
# The lines of programs that end with an error: of klog, capnslog, the Go runtime, cobra, logrus, leader election.
# They go on with a usage of 200 lines, or the stack of every goroutine.
_ERROR = re.compile(
    r"^F\d{4} | C \| |^panic: |^[Ee]rror: |^[Ff]atal|^failed to |leaderelection lost|level=fatal|"
    r'"level":"(fatal|panic)"|: unknown (shorthand )?flag|^flag provided but not defined|^unknown (shorthand )?flag'
)
_AROUND = {"msg", "level", "ts", "logger", "caller", "stacktrace"}  # in a line that is JSON
_LOOK_AT = 500  # last lines of a log, of which one can be the error
_PATIENCE = 5.0  # seconds after which a running daemon that does not answer is restarted


def error_line(log: str) -> str:
    """Return the line of a program's log that says why it ended; empty when no line looks like that."""
    lines = log.split("\ngoroutine ", maxsplit=1)[0].splitlines()[-_LOOK_AT:]
    return next((_in_short(line) for line in lines if _ERROR.search(line)), "")


def _in_short(line: str) -> str:
    """Return a line without its time, thread, source location and stack, which are in the log itself."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and "msg" in found:  # zap
            more = ", ".join(f"{key}: {value}" for key, value in found.items() if key not in _AROUND)
            return f"{found['msg']} ({more})" if more else str(found["msg"])
    return re.sub(r"^F[0-9: .]+ [^ ]+] ", "", line).strip()  # klog


@dataclass(frozen=True)
class Daemon:
    """One daemon of the cluster, described completely."""

    name: str
    doc: str
    program: str | Callable[[Context], str]  # a function where it depends on the settings
    flags: Callable[[Context], Sequence[Flag]]
    ready: Probe
    ports: Sequence[Port] = ()  # where it listens: another number on a host that several clusters share
    started: Probe | None = None  # whether it answers, so that clients can be started; None: the same as `ready`
    needs: Names = ()
    after: Names = ()
    reads: Callable[[Context], Sequence[Path]] = field(default=lambda context: ())  # files that other tasks write
    writes: Callable[[Context], Mapping[Path, str]] = field(default=lambda context: {})  # its own configuration files
    keeps: Callable[[Context], Sequence[Path]] = field(default=lambda context: ())  # directories where it stores data
    on_host: bool = False  # it runs on the host itself, beside the machine of its node
    environment: Callable[[Context], Mapping[str, str]] = field(
        default=lambda context: {}
    )  # besides Context.environment
    disabled_because: Callable[[Context], str] = field(default=lambda context: "")  # why it is not needed, if it is not
    do_without: Callable[[Context, DmucError], str] | None = None  # when it fails: decide to go on without it, and why
    prepare: Callable[[Context], None] | None = None  # is called before every start
    meanwhile: Callable[[], None] | None = None  # what there is time for while it starts
    clean_up: Callable[[Context], None] | None = None  # is called by `undo`: removes what it left outside of `keeps`
    rival: Probe | None = None  # whether another process does the same work on this machine; None: `ready` tells
    needs_root: bool = False
    hidden: bool = False  # an intermediate step, which `doit list` leaves out
    nodes: Nodes = "first"  # on which nodes of the cluster it runs
    tools: Names = ()  # programs that it runs itself: when one of these changes, the daemon is restarted, too
    outlived_by: Names = ()  # programs that it starts and that go on when it ends, with all that they run
    causes: Mapping[str, str] = field(default_factory=dict)  # regular expression in its log -> the cause of the failure
    passing: str = ""  # regular expression in its log: it has ended because the host was busy, and is started once more
    grace: float = 10.0  # seconds between SIGTERM and SIGKILL

    def goals(self) -> Sequence[Goal]:
        """Return the daemon's two goals: started, then ready."""
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
            holds=self._is_still_ready,
            make=self.await_ready,
            undo=self.undo,
            needs=lambda context: (started.name, *resolve(self.needs, context)),
            after=(),
            needs_started=False,
            hidden=self.hidden,
        )
        return (started, ready)

    # Command line and files

    def command(self, context: Context) -> list[str]:
        """Return the whole command line. Raise DmucError when the daemon's program has not been found yet."""
        return [str(context.program(self.program_name(context))), *(flag.text for flag in self.all_flags(context))]

    def whole_environment(self, context: Context) -> dict[str, str]:
        """Return all environment variables of the daemon."""
        return {**context.environment(), **self.environment(context), **marks(self.record(context))}

    def start_line(self, context: Context) -> list[str]:
        """Return the command line with which dmuc starts the daemon: into the machine, the directory, the environment.

        Raise DmucError when the machine is off, and when the daemon's program has not been found yet.
        """
        context = self._there(context)
        line = context.machine.start_line(
            self.command(context), cwd=self.directory(context), environment=self.whole_environment(context)
        )
        return [*line]

    def all_flags(self, context: Context) -> list[Flag]:
        """Return dmuc's flags, then those of the user."""
        ours = self.flags(context)
        return [*ours, *users_flags(context.settings, self.program_name(context), ours)]

    def refuse_users_flags(self, context: Context) -> None:
        """Raise DmucError when the program does not accept the flags of the user; nothing is stopped or started."""
        program = self.program_name(context)
        if context.settings.flags.get(program):
            record = self.process(context)
            on = record is not None and context.machine.processes.is_alive(record)
            refuse(context, program, self.command(context), f"The running {self.name} goes on as it is." if on else "")

    def program_name(self, context: Context) -> str:
        """Return the name of the daemon's program."""
        return self.program(context) if callable(self.program) else self.program

    def _there(self, context: Context) -> Context:
        return context.beside_the_machine() if self.on_host else context

    def log(self, context: Context) -> Path:
        """Return the path of the daemon's log file, to which every start appends."""
        return context.logs / f"{self.name}.log"

    def record(self, context: Context) -> Path:
        """Return the path of the daemon's pidfile."""
        return context.pidfiles / f"{self.name}.pid"

    def _ready_mark(self, context: Context) -> Path:
        """Return the file that says that the daemon has run: it has answered, or lived until its deadline.

        A daemon that ended at once may have ended because of another program's files, which clean must not remove.
        """
        return context.pidfiles / f"{self.name}.ran"

    def was_ready(self, context: Context) -> bool:
        """Return whether the daemon has run (see _ready_mark) since it was last undone on this machine."""
        mark = self._ready_mark(context)
        return context.machine.fingerprints((), [mark]) != {str(mark): MISSING}

    def was_ready_since_boot(self, context: Context) -> bool:
        """Return whether the daemon has run since then and since the host's boot, which removes links and rules."""
        mark = context.machine.path(self._ready_mark(context))
        since = {context.machine.processes.boot(), ""}  # "": written by an earlier version of dmuc
        return bool(mark.exists()) and mark.read_text("utf-8") in since

    def _mark_ready(self, context: Context) -> None:
        context.machine.write(self._ready_mark(context), context.machine.processes.boot(), 0o600)

    def directory(self, context: Context) -> Path:
        """Return the daemon's working directory."""
        return context.node.state / self.name

    def _inputs(self, context: Context) -> dict[str, str]:
        names = (self.program_name(context), *resolve(self.tools, context))
        programs = [context.program(name) for name in names]
        prints = context.machine.fingerprints(programs, self.reads(context))
        prints |= {str(path): digest(text.encode()) for path, text in self.writes(context).items()}
        own = self.environment(context)
        return prints | ({"its environment": digest(repr(sorted(own.items())).encode())} if own else {})

    # Check
    def process(self, context: Context) -> Record | None:
        """Return the process that its pidfile records; None when the daemon was not started."""
        context = self._there(context)
        return context.machine.processes.recorded(self.record(context))

    def running(self, context: Context) -> Result:
        """Return whether the daemon runs, started by dmuc with exactly this command line, program and input files."""
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
        """Return whether the daemon runs as it must, and answers."""
        context = self._there(context)
        return self._check(context, self.started or self.ready)

    def is_ready(self, context: Context) -> Result:
        """Return whether the daemon runs as it must, and is ready."""
        context = self._there(context)
        return self._check(context, self.ready)

    def _is_still_ready(self, context: Context) -> Result:
        """Return whether the daemon was ready before this run; doit checks this in the thread that starts all tasks.

        A daemon that this run has just started may take a second to answer, and all other tasks would wait for it.
        """
        record = self.process(context)
        if record is not None and record.pid in context.run.spawned:
            return Result(False, "it has just been started")
        return self.is_ready(context)

    def _check(self, context: Context, probe: Probe) -> Result:
        disabled_because = self.disabled_because(context)
        if disabled_because:
            return Result(self.process(context) is None, disabled_because)
        result = self.running(context)
        return probe(context) if result else result

    def choose_ports(self, context: Context, taken: Collection[int]) -> None:
        """Choose a free port, not in `taken`, for each of the daemon's `ports` where the standard ones may be in use.

        A port stays the same until clean, unless another process has taken it while the daemon did not run.
        """
        record = self.process(context)
        if record is not None and context.machine.processes.is_alive(record):
            return
        for port in self.ports if context.settings.shares_host else ():
            number = context.port(port)
            if not number or not is_free(number):
                context.decide(port.decision, str(free_port(taken)))

    # Start, wait, stop

    def start(self, context: Context, progress: Progress) -> None:
        """Start the daemon, unless it runs as it must, and wait until it answers.

        Raise DmucError when that fails; the daemon is then stopped.
        """
        context = self._there(context)
        if self.disabled_because(context):
            self.stop(context)
            return
        probe = self.started or self.ready
        running = self.running(context)
        if not running:
            self.refuse_users_flags(context)
        if running:
            record = self.process(context)
            assert record is not None
            # An interrupted run may have started it, and it is not ready yet; or it hangs; or it waits for another that
            # this run has restarted.
            several = 6 if context.run.spawned else 1
            if wait(
                context,
                probe,
                deadline=_PATIENCE * context.settings.patience * several,
                progress=progress,
                alive=partial(context.machine.processes.is_alive, record),
            ):
                self._mark_ready(context)
                return
        progress.note(f"starting ({running.why})")
        self.stop(context)
        with self._unless_not_needed(context, progress):
            try:
                self._spawn_and_wait(context, probe, progress)
            except DmucError as error:
                if not (self.passing and re.search(self.passing, error.seen)):
                    raise
                progress.note(f"starting once more ({self.passing})")
                self._spawn_and_wait(context, probe, progress)

    def await_ready(self, context: Context, progress: Progress) -> None:
        """Wait until the daemon is ready. Raise DmucError when that fails; the daemon is then stopped."""
        context = self._there(context)
        if not self.disabled_because(context):
            with self._unless_not_needed(context, progress):
                self._wait(context, self.ready, progress)

    @contextlib.contextmanager
    def _unless_not_needed(self, context: Context, progress: Progress) -> Iterator[None]:
        """Turn a failure into a note where the cluster can do without the daemon."""
        try:
            yield
        except Interrupted:
            raise
        except DmucError as error:
            why = self.do_without(context, error) if self.do_without else ""
            if not why:
                raise
            progress.note(why)

    def stop(self, context: Context) -> None:
        """End all processes of the daemon, if any, and remove its pidfile. Raise DmucError when some do not end.

        These are the program, or a wrapper and what it runs, also when a run was killed before it wrote the pidfile.
        """
        context = self._there(context)
        path = self.record(context)
        context.machine.processes.stop(path, self.grace, resolve(self.outlived_by, context))
        context.machine.path(path).unlink()

    def undo(self, context: Context) -> None:
        """Stop the daemon, and remove its data and the files written for it, if it was ever started on this machine.

        Raise DmucError or OSError when something is left; undo can then be repeated.
        """
        context = self._there(context)
        self.stop(context)
        if not context.machine.path(self.log(context)).exists():
            return
        on, elsewhere = context.machine.is_up(), self._outside_state(context)
        # Check the ownership before anything is removed.
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
        # The log last: as long as it exists, an interrupted undo can be repeated.
        for path in (*self.writes(context), self._ready_mark(context), self.log(context)):
            context.machine.path(path).unlink()

    def _refuse_rival(self, context: Context, marked: Sequence[Path]) -> None:
        """Raise DmucError when another process does the daemon's work: it may use the daemon's files, marked or not."""
        result = self._rival_answers(context, self.rival or self.ready)
        if result:
            there = ", ".join(map(str, marked))
            keep = f"\nThis removes what is in {there}; to keep it, remove the file {ownership.MARK} there first."
            raise DmucError(
                f"undoing {self.name} on {context.machine.name}",
                f"dmuc's {self.name} has ended, but another one runs in its place and may use its files: {result.why}.",
                f"Stop the other one, and run clean again.{keep if there else ''}",
            )

    def _rival_answers(self, context: Context, probe: Probe) -> Result | None:
        """Return the first yes among the connections and requests that this probe makes; None when there is none."""
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
        names = (self.program_name(context), *resolve(self.tools, context))
        machine.show(path for path in map(context.program, names) if path.is_absolute())
        environment = self.whole_environment(context)
        spawned = machine.spawn(command, log=log, cwd=self.directory(context), environment=environment)
        machine.processes.save(self.record(context), spawned.pid, command, inputs, begin)
        context.run.spawned[spawned.pid] = spawned
        if self.meanwhile is not None:
            self.meanwhile()
        self._wait(context, probe, progress)
        self._mark_ready(context)

    def refuse_where_it_cannot_be(self, context: Context) -> None:
        """Raise DmucError when the daemon needs root and dmuc does not run as root, or clusters share this host."""
        program = self.program_name(context)
        if self.needs_root and not is_root():
            raise DmucError(f"starting {self.name}", f"{program} needs root.", "Run dmuc as root.")
        if self.needs_root and context.settings.shares_host:
            seen = f"{program} needs a machine of its own; beside other clusters it cannot run."
            raise DmucError(f"starting {self.name}", seen, "Use a machine of its own: machine=NAME.")

    def _outside_state(self, context: Context) -> list[Path]:
        """Return the daemon's data directories outside of the cluster's state: other programs may use these, too."""
        return [path for path in self.keeps(context) if context.state not in path.parents]

    def _refuse_unknown_flags(self, context: Context) -> None:
        """Raise DmucError for a flag that the program's --help does not list: dmuc does not know this release."""
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
        """Raise DmucError when another process does the daemon's work, or another program uses its data directories."""
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
        """Return the daemon's data directories that another program uses."""
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
        # A Go program that panics prints the reason, and then the stack of every goroutine.
        text = written.decode(errors="replace").split("\ngoroutine ")[0].rstrip()
        if ended:
            seen = (
                f"The process ended {'by itself' if code is None else f'with exit code {code}'} after {elapsed:.1f} s."
            )
        else:
            seen = f"Not ready after {elapsed:.0f} s; it was stopped. Last answer: {result.why}"
        error = error_line(text) if ended else ""
        causes = [meaning for pattern, meaning in {**_CAUSES, **self.causes}.items() if re.search(pattern, text)]
        shell = "" if context.settings.on_host or self.on_host else "scripts/doit shell -- "
        return DmucError(
            f"{self.name} did not start" if ended else f"{self.name} did not become ready",
            "\n".join(
                [
                    seen,
                    *([f"error: {error}"] if error else []),
                    f"command: {shell}{shlex.join(record.command)}",
                    f"log: {self.log(context)}, its last lines:",
                    *(f"  {line}" for line in text.splitlines()[-12:]),
                ]
            ),
            "\n".join([*(f"Known cause: {cause}" for cause in causes)])
            or ("" if ended else f"More time: deadline_{self.name}=SECONDS."),
        )


def _changes(record: Record, command: Sequence[str], inputs: Mapping[str, str]) -> str:
    """Return what has changed since the process was started; an empty text when nothing has."""
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
