"""Downloads: resumed where they stopped, checked against a SHA-256 sum, and visible only when complete."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from .errors import DmucError, Interrupted
from .progress import Progress

if TYPE_CHECKING:
    import http.client

_T = TypeVar("_T")

TRIES = 4  # attempts, for a download that stalls or breaks off
PAUSE = 1.0  # seconds between two attempts
SLOWEST = 1000  # bytes per second; a slower download has stalled


class Unreachable(DmucError):
    """The server cannot be reached: no such name, no route, connection refused, no TLS. Another source may work."""


@dataclass(frozen=True)
class Download:
    """A file to download: see `fetch`."""

    url: str
    to: Path
    sha256: str | None
    sums_url: str | None
    else_do: str = ""  # what the user can do when the download fails


class _BrokenOff(ConnectionError):
    """The server closed the connection before the answer was complete."""


def fetch_all(wanted: Sequence[Download], progress: Progress, patience: float = 30.0) -> None:
    """Download all files at the same time, each with a line of progress. Raise what `fetch` raises.

    When one download fails, the others stop.
    """
    from concurrent.futures import ThreadPoolExecutor

    over = threading.Event()

    def one(file: Download) -> None:
        try:
            fetch(file, progress.part(file.to.name), patience, over)
        except BaseException:
            over.set()
            raise

    with ThreadPoolExecutor(max(len(wanted), 1)) as pool:
        done = [pool.submit(one, file) for file in wanted]
    errors = [error for future in done if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):  # those last
        raise error


def fetch(wanted: Download, progress: Progress, patience: float = 30.0, over: threading.Event | None = None) -> None:
    """Download `wanted.url` to the file `wanted.to`, which appears only when it is complete and its sum is right.

    The SHA-256 sum is `sha256`, else the one published at `sums_url`: a file with only the digest (dl.k8s.io has one
    beside each program) or a list of `digest  filename` lines (etcd's releases on GitHub have a SHA256SUMS). What has
    arrived is kept in `to` + `.part`, and the next attempt, or the next run, resumes there. An attempt ends after
    `patience` seconds in which nothing, or nearly nothing, has arrived; the event `over` ends the download.

    Raise Unreachable when the server cannot be reached; DmucError when it refuses (404 …), stalls in every attempt or
    sends another file, or when the disk is full; Interrupted when the run ends.
    """
    if wanted.sha256 is None and wanted.sums_url is None:
        raise ValueError("one of sha256 and sums_url must be given")
    try:
        _fetch(wanted, progress, _Waiting(patience, progress.stop, over or progress.stop))
    except Interrupted:
        raise
    except DmucError as error:
        do = "\n".join(filter(None, (error.do, wanted.else_do)))
        raise type(error)(error.tried, error.seen, do) from None


def _fetch(wanted: Download, progress: Progress, waiting: _Waiting) -> None:
    to, name = wanted.to, PurePosixPath(urlsplit(wanted.url).path).name
    part = to.with_name(to.name + ".part")
    progress.note("download")
    expected = wanted.sha256 or _published_sum(wanted.sums_url or "", name, waiting)
    right = False
    while not right:
        resumed = part.exists()
        _try(wanted.url, part, lambda: _resume(wanted.url, part, progress, waiting), progress.stop)
        progress.note("check")
        with part.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        right = actual == expected.lower()
        if not right:
            part.unlink()  # the part that an earlier run left may be of another file: try once more without it
        if not right and not resumed:
            raise DmucError(
                f"checking the download of {wanted.url}",
                f"its SHA-256 sum is {actual}\n"
                f"but it should be   {expected} ({'pinned' if wanted.sha256 else wanted.sums_url})",
                "The file was deleted. Run again; if the sum is wrong again, the site has another file.",
            )
    part.replace(to)
    progress.note("downloaded")


def reachable(url: str, timeout: float = 2.0) -> bool:
    """Return whether the server at `url` answers a HEAD request, with any status, within `timeout` seconds."""
    return bool(_status(url, timeout))


def is_there(url: str, timeout: float = 2.0) -> bool | None:
    """Return whether the server has a file at `url`, also after redirects; None without an answer in `timeout` s."""
    status = _status(url, timeout)
    return status == 200 if status else None


def _status(url: str, timeout: float) -> int:
    """Return the status with which the server answers a HEAD request; 0 when there is no answer in time."""
    from http import client
    from urllib import error as url_errors
    from urllib import request as url_requests

    statuses: list[int] = []

    def ask() -> None:
        try:
            with url_requests.urlopen(url_requests.Request(url, method="HEAD"), timeout=timeout) as answer:
                statuses.append(answer.status)
        except url_errors.HTTPError as error:
            statuses.append(error.code)
        except (OSError, client.HTTPException):
            pass

    # In a thread, because the socket's timeout does not cover a resolver that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return statuses[0] if statuses else 0


@dataclass(frozen=True)
class _Waiting:
    """How long a download waits for data, and what ends it."""

    patience: float  # seconds in which nothing, or nearly nothing, arrives
    stop: threading.Event  # the run's stop signal
    over: threading.Event  # a download of the same group has failed

    def pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield the data as it arrives. Raise TimeoutError when too little arrives, Interrupted when the run ends."""
        begin, came = time.monotonic(), 0
        while piece := response.read1(1 << 18):
            if self.stop.is_set() or self.over.is_set():
                raise Interrupted(f"downloading {response.url}", "the run was interrupted")
            yield piece
            came += len(piece)
            seconds = time.monotonic() - begin
            if seconds > self.patience:
                if came < SLOWEST * seconds:
                    raise TimeoutError(f"{came} bytes in {seconds:.0f} s")
                begin, came = time.monotonic(), 0


def _resume(url: str, part: Path, progress: Progress, waiting: _Waiting) -> None:
    """Download what the file `part` lacks, or the whole file when the server cannot resume."""
    from http import client
    from urllib import error as url_errors
    from urllib import request as url_requests

    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = url_requests.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = url_requests.urlopen(request, timeout=waiting.patience)
    except url_errors.HTTPError as error:
        if error.code != client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers["Content-Range"] == f"bytes */{have}":
            return  # the part is already complete
        part.unlink()
        raise _BrokenOff("the partial file of an earlier run is not the beginning of this file") from None
    with response, part.open("ab" if response.status == client.PARTIAL_CONTENT else "wb") as file:
        done = file.tell()
        length = response.headers["Content-Length"]
        total = done + int(length) if length else None
        progress.bar(done, total)
        for piece in waiting.pieces(response):
            file.write(piece)
            done += len(piece)
            progress.bar(done, total)
    if total is not None and done < total:
        raise _BrokenOff(f"the answer ended after {done} of {total} bytes")


def _published_sum(sums_url: str, name: str, waiting: _Waiting) -> str:
    """Return the SHA-256 sum that is published for the file `name`."""
    from urllib import request as url_requests

    def read() -> str:
        with url_requests.urlopen(sums_url, timeout=waiting.patience) as response:
            return b"".join(waiting.pieces(response)).decode(errors="replace")

    text = _try(sums_url, None, read, waiting.stop)
    for line in text.splitlines():
        digest, _, file = line.strip().partition(" ")
        if re.fullmatch("[0-9a-fA-F]{64}", digest) and PurePosixPath(file.strip(" *")).name in ("", name):
            return digest
    raise DmucError(
        f"looking up the SHA-256 sum of {name}", f"{sums_url} has no sum for this file:\n{text[:200].rstrip()}"
    )


def _try(url: str, part: Path | None, action: Callable[[], _T], run_ends: threading.Event) -> _T:
    """Call `action`, and repeat it when the connection stalls or breaks off. Raise DmucError for every other error."""
    from http import client
    from urllib import error as url_errors

    import tenacity

    tried = f"downloading {url}"
    passing = (TimeoutError, ConnectionError, client.HTTPException)
    try:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, passing) or (isinstance(e, url_errors.HTTPError) and e.code >= 500)
            ),
            stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_when_event_set(run_ends),
            wait=tenacity.wait_fixed(PAUSE),
            sleep=tenacity.sleep_using_event(run_ends),
            reraise=True,
        )(action)
    except url_errors.HTTPError as error:  # before its base classes URLError and OSError
        do = "The site has no such file." if error.code == client.NOT_FOUND else ""
        raise DmucError(tried, f"the server answers: {error.code} {error.reason}", do) from None
    except url_errors.URLError as error:  # raised for every error before the request is sent
        raise Unreachable(
            tried, f"cannot connect: {error.reason}", "Check the network, and the proxy if there is one."
        ) from None
    except passing as error:
        if run_ends.is_set():
            raise Interrupted(tried, "the run was interrupted") from None
        seen = f"{TRIES} tries, the last: {str(error) or type(error).__name__}"
        raise DmucError(tried, seen, "Run again: the download resumes.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and part:
            raise _disk_full(tried, part) from None
        raise DmucError(tried, str(error)) from None


def _disk_full(tried: str, part: Path) -> DmucError:
    mount = part.parent.resolve()
    while not os.path.ismount(mount):
        mount = mount.parent
    free = shutil.disk_usage(part.parent).free
    return DmucError(
        f"{tried} to {part}",
        f"The file system at {mount} is full: {free / 1e6:.0f} MB are free.",
        "Free some space there, or choose another place with cache=DIRECTORY; then run again: the download resumes.",
    )
