"""The Service: `kubectl expose deployment web --port=80`, and asking it for its page."""

from __future__ import annotations

from typing import Any

from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer, Http, ask_api, wait_or_fail
from .core.progress import Progress
from .deployment import NAME

PAGE = "Welcome to nginx!"
PATH = f"/api/v1/namespaces/default/services/{NAME}"
MANIFEST = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": NAME, "labels": {"app": NAME}},
    "spec": {"selector": {"app": NAME}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]},
}


def _exists(context: Context) -> Answer:
    def judge(service: Any) -> Answer:
        return Answer(True, f"service/{NAME} has the ClusterIP {service['spec']['clusterIP']}")

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


def _has_endpoints(context: Context) -> Answer:
    def judge(endpoints: Any) -> Answer:
        addresses = [a["ip"] for subset in endpoints.get("subsets", []) for a in subset.get("addresses", [])]
        return Answer(bool(addresses), f"the Service {NAME} has no endpoints: no Pod of it is Ready")

    return ask_api(context, f"/api/v1/namespaces/default/endpoints/{NAME}", judge)


def _answers(context: Context) -> Answer:
    # Asked only when there is somebody to answer: a ClusterIP without endpoints sends ICMP, and only so many a second.
    endpoints = _has_endpoints(context)
    if not endpoints:
        return endpoints

    def judge(service: Any) -> Answer:
        url = f"http://{service['spec']['clusterIP']}:80/"
        answer = Http(url, expect=PAGE)(context)
        return Answer(True, f"{url.removesuffix(':80/')} answers: {PAGE}") if answer else answer

    return ask_api(context, PATH, judge)


def _await_answer(context: Context, progress: Progress) -> None:
    deadline = context.settings.deadline_of("service_reachable")
    wait_or_fail(
        context, _answers, deadline=deadline, progress=progress, tried=f"asking the Service {NAME} for its page"
    )


SERVICE_REACHABLE = Goal(
    name="service_reachable",
    doc="request the page of the Service web: Welcome to nginx!",
    holds=_answers,
    make=_await_answer,
    needs=(
        *("service", "service_account", "controller_manager", "images"),
        *("kubelet", "schedulable", "scheduler", "binding", "kube_proxy"),
    ),
)


PARTS = [SERVICE]
REACHABLE = [SERVICE_REACHABLE]
