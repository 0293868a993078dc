"""The Service `web`: creates the same object as `kubectl expose deployment web --port=80`, and requests its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from . import service_proxy
from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.http_client import in_words, request
from .core.probe import Tcp, ask_api, wait_or_fail
from .core.progress import Progress
from .core.result import Result
from .deployment import NAME

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


def addresses(service: Any, endpoints: Any) -> list[str]:
    """Return each TCP address ADDRESS:PORT of the Service: its ClusterIP or, where it has none, its endpoints."""
    ports = [port for port in service["spec"].get("ports", []) if port.get("protocol", "TCP") == "TCP"]
    ip = service["spec"].get("clusterIP") or "None"
    if ip != "None":
        return [f"{ip}:{port['port']}" for port in ports]
    return targets(endpoints) if ports else []


def targets(endpoints: Any) -> list[str]:
    """Return each TCP address ADDRESS:PORT of these Endpoints."""
    return [
        f"{address['ip']}:{port['port']}"
        for subset in endpoints.get("subsets") or []
        for port in subset.get("ports") or []
        for address in subset.get("addresses") or []
        if port.get("protocol", "TCP") == "TCP"
    ]


def ask(context: Context, address: str) -> Result:
    """Return whether the address answers: web ports (80, 8080 and the like) an HTTP request, others a connection.

    The packets are sent inside the machine: outside, the address may belong to another host.
    """
    ip, _, port = address.partition(":")
    if not port.endswith("80"):
        return Tcp(int(port), ip)(context)
    url = f"http://{address}/"
    try:
        status, body = request(context, url)
    except OSError as error:
        return Result(False, f"{url} does not answer: {in_words(error)}")
    title = re.search(r"<title>\s*(.*?)\s*</title>", body, re.DOTALL | re.IGNORECASE)
    return Result(status < HTTPStatus.INTERNAL_SERVER_ERROR, f"{url} answers: {title[1] if title else status}")


def ask_any(context: Context, addresses: Sequence[str]) -> Result:
    """Return whether one of these addresses answers, with what all of them said."""
    results = [ask(context, address) for address in addresses]
    return Result(any(results), "; ".join(result.why for result in results))


def _serves_its_page(context: Context) -> Result:
    """Return whether the page answers: whatever it shows by now, and on whatever port the Service has by now."""

    endpoints: list[Any] = []

    def has_some(found: Any) -> Result:
        # Not asked without endpoints: the ClusterIP then answers with ICMP errors, of which the kernel limits the rate.
        if not any(subset.get("addresses") for subset in found.get("subsets") or []):
            return Result(False, f"the Service {NAME} has no endpoints: no Pod of it is Ready")
        endpoints.append(found)
        return Result(True, "")

    def has_port(service: Any) -> Result:
        where.extend(addresses(service, endpoints[0]))
        return Result(bool(where), f"the Service {NAME} has no TCP port, so there is no page")

    where: list[str] = []
    if not (result := ask_api(context, f"/api/v1/namespaces/default/endpoints/{NAME}", has_some)):
        return result
    if not (result := ask_api(context, PATH, has_port)):
        return result
    result = ask_any(context, where)
    return Result(result.yes, result.why.replace(":80/ answers", " answers"))


def _await_answer(context: Context, progress: Progress) -> None:
    deadline = context.settings.deadline_of("service_reachable")
    wait_or_fail(
        context,
        _serves_its_page,
        deadline=deadline,
        progress=progress,
        tried=f"requesting the page of the Service {NAME}",
        about="page",
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
