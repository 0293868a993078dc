"""Locks: only one `doit` at a time works on a machine, or writes into the shared cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from .context import Context
from .errors import DmucError, Interrupted
from .machine import is_root
from .progress import Progress

_OF_ROOT = Path("/run/dmuc")
_TRIES = 1000  # attempts: more than the number of runs that can end while this one starts


@contextlib.contextmanager
def only_one(context: Context, what: str = "") -> Iterator[None]:
    """Hold the lock of the machine, or of its `what`, while the body runs. Raise DmucError if another process has it.

    The lock is flock(2) on a file that only its owner can open: no other user can take it, and the kernel frees it when
    the process ends for any reason. Root's lock is the same for every checkout on this host, as are the names of links
    and cgroups. The lock of another user, or of one of several clusters on the host, is beside the state. The file is
    removed at the end; a file that a killed run has left is used, and removed, by the next run.
    """
    of_root = is_root() and not context.settings.shares_host
    directory = _OF_ROOT if of_root else context.state.parent
    name = "/".join(filter(None, (context.settings.machine, what)))
    path = directory / f".{name.replace('/', '+')}.lock"
    handle = _locked(path, name)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held: see _locked
        with contextlib.suppress(OSError):  # there is another lock, or state
            directory.rmdir()
        os.close(handle)


def _locked(path: Path, name: str) -> int:
    """Return the descriptor of the lock file, locked. Raise DmucError when another process has locked the file."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
        # FileNotFoundError: the process that held the lock has just ended, and removed the file or its directory.
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            opened.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 20, 0).decode()
                raise DmucError(
                    f"locking the machine {name}",
                    f"Another doit is using it{f' (pid {holder})' if holder else ''}.",
                    "Wait until it ends, or stop it; or use another machine: machine=NAME.",
                ) from None
            if os.path.samestat(os.fstat(handle), path.stat()):
                opened.pop_all()
                return handle
    raise DmucError(f"locking the machine {name}", f"{path} cannot be made.", f"See what {path.parent} is.")


@contextlib.contextmanager
def turn(directory: Path, doing: str, progress: Progress) -> Iterator[None]:
    """Wait until no other run holds the lock on `directory`, and hold this lock while the body runs.

    Raise Interrupted when the run ends meanwhile.
    """
    import tenacity

    handle = os.open(directory, os.O_RDONLY)
    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(BlockingIOError),
            wait=tenacity.wait_fixed(1),
            sleep=tenacity.sleep_using_event(progress.stop),
            stop=tenacity.stop_when_event_set(progress.stop),
            before_sleep=lambda _: progress.note(f"waiting: another run is {doing}"),
        )(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except tenacity.RetryError:
        raise Interrupted(f"waiting for another run that is {doing}", "the run was interrupted") from None
    finally:
        os.close(handle)
