"""A Pod in the words of `kubectl get pods`, and whether it is in trouble.

The word in the column STATUS is put together as kubectl does it: printPod in pkg/printers/internalversion/printers.go.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

_SOON = {"Pending", "ContainerCreating", "PodInitializing", "Running", "NotReady"}  # will probably change by itself
_DONE = {"Completed", "Succeeded"}
_LATE = 30.0  # seconds after the end of its grace period in which a deleted Pod must be gone


def status(pod: Any) -> str:
    """Return the Pod's STATUS: Running, Pending, CrashLoopBackOff, ErrImagePull, Init:0/1, Completed, …"""
    state = pod["status"]
    word = str(state.get("reason") or state.get("phase") or "Unknown")
    begins = _begins(pod)
    if begins:
        word = begins
    else:
        is_running = False
        for one in reversed(state.get("containerStatuses") or []):
            word = _reason(one) or word
            is_running = is_running or bool(one.get("ready") and one["state"].get("running"))
        if word == "Completed" and is_running:
            word = "Running" if is_ready(pod) else "NotReady"
    if "deletionTimestamp" in pod["metadata"]:
        word = "Unknown" if state.get("reason") == "NodeLost" else "Terminating"
    return word


def _begins(pod: Any) -> str:
    """Return the word for the first init container that has not succeeded; empty when there is none."""
    every = pod["status"].get("initContainerStatuses") or []
    for number, one in enumerate(every):
        ended = one["state"].get("terminated")
        if ended and ended["exitCode"] == 0:
            continue
        reason = _reason(one)
        return f"Init:{reason}" if reason not in {"", "PodInitializing"} else f"Init:{number}/{len(every)}"
    return ""


def _reason(container: Any) -> str:
    """Return why this container waits or has ended; empty when it runs."""
    waiting, ended = container["state"].get("waiting"), container["state"].get("terminated")
    if waiting:
        return str(waiting.get("reason") or "")
    if not ended:
        return ""
    return str(
        ended.get("reason") or (f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended['exitCode']}")
    )


def is_ready(pod: Any) -> bool:
    """Return whether the Pod has the condition Ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])


def is_done(pod: Any) -> bool:
    """Return whether the Pod has done its work and ended."""
    return bool(pod["status"].get("phase") == "Succeeded")


def is_in_trouble(pod: Any, others: Sequence[Any]) -> bool:
    """Return whether the Pod does not do what it must, and is not on its way out; `others` are all Pods."""
    if ends := pod["metadata"].get("deletionTimestamp"):
        return time.time() > _seconds(ends) + _LATE
    if is_done(pod) or is_ready(pod):
        return False
    return not (pod["status"].get("phase") == "Failed" and _is_replaced(pod, others))


def is_stuck(pod: Any) -> bool:
    """Return whether this Pod, which is in trouble, needs a user: it will not get well by itself."""
    word = status(pod).removeprefix("Init:")
    unscheduled = any(
        c["type"] == "PodScheduled" and c["status"] == "False" and "not-ready" not in c.get("message", "")
        for c in pod["status"].get("conditions") or []
    )
    return unscheduled or not (word in _SOON or word in _DONE or "/" in word)


def _is_replaced(pod: Any, others: Sequence[Any]) -> bool:
    """Return whether the owner of this failed Pod has another that is fine: so it is history."""
    owners = {one["uid"] for one in pod["metadata"].get("ownerReferences", [])}
    return any(
        (is_ready(one) or is_done(one))
        and owners.intersection(o["uid"] for o in one["metadata"].get("ownerReferences", []))
        for one in others
    )


def _seconds(when: str) -> float:
    return datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def runs_since(pod: Any) -> float:
    """Return for how many seconds all containers of the Pod have run; 0 when one does not."""
    running = [one["state"].get("running") for one in pod["status"].get("containerStatuses") or []]
    if not running or not all(running):
        return 0.0
    return time.time() - max(_seconds(one["startedAt"]) if "startedAt" in one else time.time() for one in running)
