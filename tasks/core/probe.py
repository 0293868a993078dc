"""Probes: checks that take milliseconds and return yes or no with a reason; and waiting until a probe says yes."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import DmucError, Interrupted
from .http_client import first_line, in_words, limit_of, request
from .ports import Port
from .progress import Progress
from .result import Result

if TYPE_CHECKING:
    from .context import Context
    from .run import Cause

# Seconds between two probes: first the least, then a twentieth of the time waited so far, up to the most. So a wait is
# at most a twentieth too long, and a long one costs little: a TLS handshake takes milliseconds on either side.
_LEAST, _MOST = 0.02, 0.1
_WATCH = 1.0  # seconds after which a watched object is asked for again: the run may end, or the daemon

LOOK_EVERY = 1.5  # seconds between two looks at the cause while something is awaited

Probe = Callable[["Context"], Result]


@dataclass(frozen=True)
class Tcp:
    """A probe: does a process accept TCP connections on this port, from inside the machine?"""

    port: int | Port
    host: str = "127.0.0.1"

    def __call__(self, context: Context) -> Result:
        """Return whether a connection can be opened."""
        port = self.port if isinstance(self.port, int) else context.port(self.port)
        try:
            context.machine.connect(self.host, port, limit_of(context)).close()
        except OSError as error:
            return Result(False, f"{self.host}:{port}: {in_words(error)}")
        return Result(True, f"{self.host}:{port} accepts connections")


@dataclass(frozen=True)
class Unix:
    """A probe: does a process accept connections on this Unix socket of the machine?"""

    path: str

    def __call__(self, context: Context) -> Result:
        """Return whether a connection can be opened."""
        try:
            context.machine.connect_unix(self.path, limit_of(context)).close()
        except OSError as error:
            return Result(False, f"unix://{self.path}: {in_words(error)}")
        return Result(True, f"unix://{self.path} accepts connections")


@dataclass(frozen=True)
class Http:
    """A probe: does a GET request get status 200 and a body that matches `expect` (a regular expression)?

    `url` is http://, https:// or unix://SOCKET:PATH; in it, {server} is the API server's URL, {address} the machine's
    address, and {port} the number of `port` on this cluster. With https, the serving certificate must be signed by the
    CA `ca`, and `client` is the client certificate (by default: the cluster's CA, the administrator). With `own_ca`
    false nothing is verified: the daemon has made a self-signed serving certificate in memory.
    """

    url: str
    expect: str = ""
    own_ca: bool = True
    ca: str = "ca"
    client: str = "admin"
    port: Port | None = None

    def __call__(self, context: Context) -> Result:
        """Return whether the server answers as expected."""
        port = context.port(self.port) if self.port else ""
        url = self.url.format(server=context.server, address=context.settings.address, port=port)
        try:
            status, body = request(context, url, own_ca=self.own_ca, ca=self.ca, client=self.client)
        except OSError as error:
            return Result(False, f"{url}: {in_words(error)}")
        if status != 200 or not re.search(self.expect, body):
            # A health endpoint lists every check; only the failed ones matter.
            failed = [line for line in body.splitlines() if line.startswith("[-]")] or body.split("\n")
            return Result(False, f"{url}: {status} {'; '.join(failed)[:160]}".rstrip())
        return Result(True, f"{url} answers")


@dataclass(frozen=True)
class All:
    """A probe: does each of these probes say yes? They are tried in this order, up to the first no."""

    probes: Sequence[Probe]

    def __call__(self, context: Context) -> Result:
        """Return the first no, else the last yes."""
        result = Result(True, "")
        for probe in self.probes:
            result = probe(context)
            if not result:
                break
        return result


@dataclass(frozen=True)
class Chosen:
    """A probe that depends on the cluster: `choose` returns the probe to use."""

    choose: Callable[[Context], Probe]

    def __call__(self, context: Context) -> Result:
        """Return the result of the chosen probe."""
        return self.choose(context)(context)


def simple(probe: Probe, context: Context) -> list[Probe]:
    """Return the simple probes of which this probe consists on this cluster."""
    if isinstance(probe, Chosen):
        return simple(probe.choose(context), context)
    return [one for part in probe.probes for one in simple(part, context)] if isinstance(probe, All) else [probe]


def ask_api(context: Context, path: str, judge: Callable[[Any], Result]) -> Result:
    """GET `path` from the API server; return what `judge` says about the object, or no when there is no object.

    What `judge` says must depend on nothing but this object (or list), unless it has `changes` of its own.
    """
    try:
        status, body = request(context, f"{context.server}{path}")
        if status not in (200, 404):
            return Result(False, f"{path}: {status} {body[:160]}")
        found = json.loads(body) if status == 200 else None
        result = Result(False, f"{path}: there is no such object") if found is None else judge(found)
        if result or result.changes:
            return result
        return replace(result, changes=partial(_has_changed, context, path, found))
    except (OSError, ValueError) as error:
        return Result(False, f"the API server does not answer: {in_words(error)}")


def objects(context: Context, path: str, tried: str) -> list[Any]:
    """Return the objects of the list at `path` of the API server. Raise DmucError, with `tried`, without an answer."""
    items: list[Any] = []

    def keep(found: Any) -> Result:
        items.extend(found["items"])
        return Result(True, "")

    if not (result := ask_api(context, path, keep)):
        raise DmucError(tried, result.why, "See: scripts/doit status")
    return items


def _has_changed(context: Context, path: str, found: Any, seconds: float) -> bool:
    """Wait until the object (or list) at `path` is another than `found`, or there is one if there was None; at most
    that many seconds. Return false when the API server cannot tell. See Result.

    https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
    """
    where, query = path, f"watch=1&timeoutSeconds={math.ceil(seconds)}"
    if found is None or "items" not in found:
        where, _, name = path.rpartition("/")
        query += f"&fieldSelector=metadata.name%3D{name}"
    if found is not None:
        query += f"&resourceVersion={found['metadata']['resourceVersion']}"
    try:
        return '"type":"ERROR"' not in first_line(context, f"{context.server}{where}?{query}", seconds)
    except OSError:
        return False


def wait(
    context: Context,
    probe: Probe,
    *,
    deadline: float,
    progress: Progress,
    alive: Callable[[], bool] = lambda: True,
) -> Result:
    """Repeat `probe` until it says yes, the `deadline` (seconds) has passed, or `alive` returns false.

    Return the last result, yes or no. Raise Interrupted when the run ends meanwhile.
    """
    import tenacity

    end, last = time.monotonic() + deadline, Result(False, "")

    def ask() -> tuple[Result, bool]:
        nonlocal last
        still = alive()  # checked before the probe: a result of a process that has just ended does not count
        last = probe(context)
        progress.note(last.why if last else f"waiting: {last.why}")
        return last, still

    def pause(seconds: float) -> None:
        longest = min(_WATCH, end - time.monotonic())
        if progress.stop.is_set() or longest <= 0 or not (last.changes and last.changes(longest)):
            progress.stop.wait(seconds)

    result, _ = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: result[1] and not result[0]),
        stop=tenacity.stop_after_delay(deadline) | tenacity.stop_when_event_set(progress.stop),
        wait=lambda state: min(_MOST, max(_LEAST, (state.seconds_since_start or 0) / 20)),
        sleep=pause,
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )(ask)
    if not result and progress.stop.is_set():
        raise Interrupted("the run was interrupted", f"while waiting: {result.why}")
    return result


def wait_or_fail(
    context: Context, probe: Probe, *, deadline: float, progress: Progress, tried: str, about: str = ""
) -> Result:
    """Wait like `wait`, for a condition that does not depend on one daemon; raise DmucError when it stays no.

    `about`: the link of `doit why` that says why the condition does not hold. The wait ends early when the cause is
    one that only the user can change, and has been the same for some seconds.
    """
    watch = _Watch(context, about)
    result = wait(context, probe, deadline=deadline, progress=progress, alive=watch.has_hope)
    if not result:
        cause = watch.cause or context.run.cause(about)
        in_vain = watch.in_vain
        raise DmucError(
            f"{tried}: {'this cannot happen by itself' if in_vain else f'not within {deadline:g} s'}",
            "\n".join([f"last answer: {result.why}"] + ([cause.text] if cause else [])),
            "\n".join(
                ([f"next: {cause.do}"] if cause else ["See: scripts/doit status."])
                + ([] if in_vain else ["More time: deadline=SECONDS."])
            ),
        )
    return result


@dataclass
class _Watch:
    """Looks from time to time for a cause that stays; that costs more than a probe."""

    context: Context
    about: str
    cause: Cause | None = None
    in_vain: bool = False

    def __post_init__(self) -> None:
        self._next = time.monotonic() + LOOK_EVERY

    def has_hope(self) -> bool:
        """Return false once the same cause that stays was found twice in a row."""
        if self.about and time.monotonic() >= self._next:
            before, self.cause = self.cause, self.context.run.cause(self.about)
            if before and self.cause and before.do == self.cause.do:  # whatever has been counted meanwhile
                self.in_vain = before.stays and self.cause.stays
            self._next = time.monotonic() + LOOK_EVERY
        return not self.in_vain
