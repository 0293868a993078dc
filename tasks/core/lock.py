"""One `doit` at a time works on a machine, or puts something into the cache that all share."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from .errors import DmucError, Interrupted
from .probe import STOP
from .progress import Progress

_LONGEST = 108  # bytes of a name: sun_path in unix(7)


@contextlib.contextmanager
def only_one(name: str, lock: str = "") -> Iterator[None]:
    """Hold the machine `name`, or what is called `lock`, for as long as the body runs.

    Raises DmucError when another process holds it.

    The lock is a name in the kernel's abstract socket namespace (unix(7)): it leaves no file, is the same for every
    checkout on this host (so are the names of links and cgroups), and is gone with the process however that ends.
    """
    address = f"\0dmuc/{lock or name}"
    if len(address.encode()) > _LONGEST:
        address = f"\0dmuc/{hashlib.sha256(lock.encode()).hexdigest()}"
    with socket.socket(socket.AF_UNIX) as held:
        try:
            held.bind(address)
        except OSError:
            raise DmucError(
                f"locking the machine {name}",
                f"Another doit is using it{_holder(address)}.",
                "Wait until it ends, or stop it; or use another machine: machine=NAME.",
            ) from None
        held.listen()
        yield


def _holder(address: str) -> str:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)  # nobody takes our connection in: when very many have asked, there is no room for it
        peer.connect(address)
        pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f" (pid {pid})"
    return ""


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
            sleep=tenacity.sleep_using_event(STOP),
            stop=tenacity.stop_when_event_set(STOP),
            before_sleep=lambda _: progress.note(f"waiting: another run is {doing}"),
        )(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except tenacity.RetryError:
        raise Interrupted(f"waiting for another run that is {doing}", "the run was interrupted") from None
    finally:
        os.close(handle)
