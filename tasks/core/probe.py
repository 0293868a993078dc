"""Questions with a yes or a no and a reason, asked in milliseconds; and waiting until the answer is yes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import DmucError, Interrupted
from .http_client import LIMIT, connect_unix, in_words, request
from .ports import Port
from .progress import Progress
from .result import Result

if TYPE_CHECKING:
    from .context import Context

_PAUSE = 0.1  # seconds between two questions: a TLS handshake takes milliseconds of CPU time on either side


Probe = Callable[["Context"], Result]


@dataclass(frozen=True)
class Tcp:
    """Does something accept connections on this port, asked from inside the machine?"""

    port: int | Port
    host: str = "127.0.0.1"

    def __call__(self, context: Context) -> Result:
        """Ask."""
        port = self.port if isinstance(self.port, int) else context.port(self.port)
        try:
            context.machine.connect(self.host, port, LIMIT).close()
        except OSError as error:
            return Result(False, f"{self.host}:{port}: {in_words(error)}")
        return Result(True, f"{self.host}:{port} accepts connections")


@dataclass(frozen=True)
class Unix:
    """Does something accept connections on this socket file of the machine's?"""

    path: str

    def __call__(self, context: Context) -> Result:
        """Ask."""
        try:
            connect_unix(context, self.path).close()
        except OSError as error:
            return Result(False, f"unix://{self.path}: {in_words(error)}")
        return Result(True, f"unix://{self.path} accepts connections")


@dataclass(frozen=True)
class Http:
    """Is a GET answered with status 200 and a body in which `expect` (a regular expression) is found?

    `url` is http://, https:// or unix://SOCKET:PATH; in it, {server} is the API server's URL, {address} the machine's
    address, and {port} the number that `port` has on this cluster. With https the daemon's serving certificate must be
    signed by our CA and we present the administrator's (others: `ca`, `client`), unless `own_ca` is false: then it is a
    certificate that the daemon made for itself in memory, which nothing could be checked against.
    """

    url: str
    expect: str = ""
    own_ca: bool = True
    ca: str = "ca"
    client: str = "admin"
    port: Port | None = None

    def __call__(self, context: Context) -> Result:
        """Ask."""
        port = context.port(self.port) if self.port else ""
        url = self.url.format(server=context.server, address=context.settings.address, port=port)
        try:
            status, body = request(context, url, own_ca=self.own_ca, ca=self.ca, client=self.client)
        except OSError as error:
            return Result(False, f"{url}: {in_words(error)}")
        if status != 200 or not re.search(self.expect, body):
            # A health endpoint lists every check; the ones that fail are what we want to see.
            failed = [line for line in body.splitlines() if line.startswith("[-]")] or body.split("\n")
            return Result(False, f"{url}: {status} {'; '.join(failed)[:160]}".rstrip())
        return Result(True, f"{url} answers")


@dataclass(frozen=True)
class All:
    """Is the answer to each of these yes? Asked in this order, up to the first no."""

    probes: Sequence[Probe]

    def __call__(self, context: Context) -> Result:
        """Ask."""
        result = Result(True, "")
        for probe in self.probes:
            result = probe(context)
            if not result:
                break
        return result


@dataclass(frozen=True)
class Chosen:
    """Is the answer to the one that fits this cluster yes?"""

    choose: Callable[[Context], Probe]

    def __call__(self, context: Context) -> Result:
        """Ask."""
        return self.choose(context)(context)


def simple(probe: Probe, context: Context) -> list[Probe]:
    """Give the probes that this one comes to."""
    if isinstance(probe, Chosen):
        return simple(probe.choose(context), context)
    return [one for part in probe.probes for one in simple(part, context)] if isinstance(probe, All) else [probe]


def ask_api(context: Context, path: str, judge: Callable[[Any], Result]) -> Result:
    """GET `path` from the API server; `judge` answers about the object when there is one."""
    try:
        status, body = request(context, f"{context.server}{path}")
        if status == 404:
            return Result(False, f"{path}: there is no such object")
        return judge(json.loads(body)) if status == 200 else Result(False, f"{path}: {status} {body[:160]}")
    except (OSError, ValueError) as error:
        return Result(False, f"the API server does not answer: {in_words(error)}")


def wait(
    context: Context,
    probe: Probe,
    *,
    deadline: float,
    progress: Progress,
    alive: Callable[[], bool] = lambda: True,
) -> Result:
    """Ask `probe` until it says yes, the `deadline` (seconds) has passed, or `alive` says that it never will.

    Gives the last answer, yes or no. Raises Interrupted when the run is being ended.
    """
    import tenacity

    def ask() -> tuple[Result, bool]:
        still = alive()  # asked first: an answer that comes from a process which has just ended counts for nothing
        result = probe(context)
        progress.note(result.why if result else f"waiting: {result.why}")
        return result, still

    result, _ = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: result[1] and not result[0]),
        stop=tenacity.stop_after_delay(deadline) | tenacity.stop_when_event_set(progress.stop),
        wait=tenacity.wait_fixed(_PAUSE),
        sleep=tenacity.sleep_using_event(progress.stop),
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )(ask)
    if not result and progress.stop.is_set():
        raise Interrupted("the run was interrupted", f"while waiting: {result.why}")
    return result


def wait_or_fail(context: Context, probe: Probe, *, deadline: float, progress: Progress, tried: str) -> Result:
    """Like `wait`, for what no process of ours stands behind; raises DmucError when the answer stays no."""
    result = wait(context, probe, deadline=deadline, progress=progress)
    if not result:
        raise DmucError(
            f"{tried}: not within {deadline:g} s",
            f"last answer: {result.why}",
            "See: scripts/doit status. More time: deadline=SECONDS.",
        )
    return result
