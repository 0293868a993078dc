"""The Service `web`: creates the same object as `kubectl expose deployment web --port=80`, and requests its page."""

from __future__ import annotations

from typing import Any

from . import service_proxy
from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.probe import Http, ask_api, wait_or_fail
from .core.progress import Progress
from .core.result import Result
from .deployment import NAME

PAGE = "Welcome to nginx!"
PATH = f"/api/v1/namespaces/default/services/{NAME}"
MANIFEST = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": NAME, "labels": {"app": NAME}},
    "spec": {"selector": {"app": NAME}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]},
}


def _exists(context: Context) -> Result:
    def judge(service: Any) -> Result:
        return Result(True, f"service/{NAME} has the ClusterIP {service['spec']['clusterIP']}")

    return ask_api(context, PATH, judge)


def _create(context: Context, progress: Progress) -> None:
    progress.note(f"kubectl expose deployment {NAME} --port=80")
    api.create(context, MANIFEST)


SERVICE = Goal(
    name="service",
    doc="create the Service web: kubectl expose deployment web --port=80",
    holds=_exists,
    make=_create,
    undo=lambda context: api.delete(context, PATH),
    needs=("deployment",),
)


def _has_endpoints(context: Context) -> Result:
    def judge(endpoints: Any) -> Result:
        addresses = [a["ip"] for subset in endpoints.get("subsets", []) for a in subset.get("addresses", [])]
        return Result(bool(addresses), f"the Service {NAME} has no endpoints: no Pod of it is Ready")

    return ask_api(context, f"/api/v1/namespaces/default/endpoints/{NAME}", judge)


def _serves_its_page(context: Context) -> Result:
    # Not asked without endpoints: the ClusterIP then answers with ICMP errors, of which the kernel limits the rate.
    endpoints = _has_endpoints(context)
    if not endpoints:
        return endpoints

    def judge(service: Any) -> Result:
        url = f"http://{service['spec']['clusterIP']}:80/"
        result = Http(url, expect=PAGE)(context)
        return Result(True, f"{url.removesuffix(':80/')} answers: {PAGE}") if result else result

    return ask_api(context, PATH, judge)


def _await_answer(context: Context, progress: Progress) -> None:
    deadline = context.settings.deadline_of("service_reachable")
    wait_or_fail(
        context,
        _serves_its_page,
        deadline=deadline,
        progress=progress,
        tried=f"requesting the page of the Service {NAME}",
    )


SERVICE_REACHABLE = Goal(
    name="service_reachable",
    doc="request the page of the Service web: Welcome to nginx!",
    holds=_serves_its_page,
    make=_await_answer,
    needs=(
        *("service", "service_account", "controller_manager", "images"),
        *("kubelet", "schedulable", "scheduler", "binding", service_proxy.TASK),
    ),
)


PARTS = [SERVICE]
REACHABLE = [SERVICE_REACHABLE]
