"""One `doit` at a time works on a machine, or puts something into the cache that all share."""

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
_TRIES = 1000  # more than other runs can end while this one begins


@contextlib.contextmanager
def only_one(context: Context, what: str = "") -> Iterator[None]:
    """Hold the machine, or only its `what`, for as long as the body runs. Raises DmucError when another process does.

    The lock is flock(2) on a file that only its owner can open: no other user can take it, and it is free when the
    process ends, however that ends. Root's is the same for every checkout on this host, as names of links and cgroups
    are. An ordinary user's, and that of one of several clusters on the host, is beside the state. The file goes at the
    end; one that a killed run has left is used, and removed, by the next.
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
        path.unlink(missing_ok=True)  # while it is held: see _locked
        with contextlib.suppress(OSError):  # there is another lock, or state
            directory.rmdir()
        os.close(handle)


def _locked(path: Path, name: str) -> int:
    """Return the lock's file, open and locked. Raises DmucError when another process has locked it."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True)
        # Not found: the one that held it has just ended, and removed what it made.
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
    raise DmucError(f"taking the machine {name}", f"{path} cannot be made.", f"See what {path.parent} is.")


@contextlib.contextmanager
def turn(directory: Path, doing: str, progress: Progress) -> Iterator[None]:
    """Wait until no other run holds the lock on `directory`, and hold it for as long as the body runs.

    Raises Interrupted when the run is ended meanwhile.
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
