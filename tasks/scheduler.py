"""The scheduler: assigns a node to each Pod, by creating a Binding; this is necessary even with a single node.

With scheduling=manual no scheduler runs, and dmuc creates a Binding to the node for each Pod without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import api_client, upgrade
from .core import api
from .core.context import Context
from .core.daemon import Daemon
from .core.flags import Flag
from .core.goal import Goal
from .core.graph import Part
from .core.ports import Port
from .core.probe import Http, ask_api, wait_or_fail
from .core.progress import Progress
from .core.result import Result

PORT = Port("scheduler", 10259)


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of the scheduler, with their reasons."""
    flags = [api_client.flag(context, "kube-scheduler")]
    also_http = context.release_of("kube-scheduler").scheduler_http
    return [*flags, *api_client.server_flags(context, PORT, also_http=also_http)]


SCHEDULER = Daemon(
    name="scheduler",
    doc="start the scheduler, which assigns a node to each Pod",
    program="kube-scheduler",
    ports=(PORT,),
    flags=flags,
    needs=api_client.needs,
    after=lambda context: upgrade.if_upgrading(context, "apiserver"),
    ready=Http("https://127.0.0.1:{port}/healthz", own_ca=False, port=PORT),
    reads=lambda context: api_client.reads(context, flags(context)),
    disabled_because=lambda context: "" if context.settings.scheduling == "scheduler" else "scheduling=manual",
)

_PODS = "/api/v1/namespaces/default/pods"


def _unscheduled(context: Context) -> tuple[Result, list[str]]:
    """Return whether there is a Pod and every Pod has a node, and the names of the Pods without a node."""
    names: list[str] = []

    def judge(pods: Any) -> Result:
        names.extend(pod["metadata"]["name"] for pod in pods["items"] if not pod["spec"].get("nodeName"))
        if not pods["items"]:
            return Result(False, "there is no Pod yet")
        return Result(not names, f"no node has been chosen for {', '.join(names)}" if names else "every Pod has a node")

    return ask_api(context, _PODS, judge), names


def _all_are_bound(context: Context) -> Result:
    if context.settings.scheduling == "scheduler":
        return Result(True, "done by the scheduler")
    return _unscheduled(context)[0]


def _bind(context: Context, progress: Progress) -> None:
    def some(context: Context) -> Result:
        result, names = _unscheduled(context)
        return Result(bool(result or names), result.why)

    deadline = context.settings.deadline_of("scheduler")
    tried = "waiting for a Pod that has no node"
    wait_or_fail(context, some, deadline=deadline, progress=progress, tried=tried, about="pod")
    node = context.node.name
    for pod in _unscheduled(context)[1]:
        progress.note(f"binding {pod} to {node}")
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        api.send(context, "POST", f"{_PODS}/{pod}/binding", binding)


BINDING = Goal(
    name="binding",
    hidden=True,
    doc="assign a node to every Pod by hand, with a Binding, if scheduling=manual",
    holds=_all_are_bound,
    make=_bind,
    needs=("deployment", "service_account", "schedulable"),
)

PARTS: list[Part] = [SCHEDULER, BINDING]
