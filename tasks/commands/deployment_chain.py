"""One Deployment, followed from object to packet: ReplicaSet, Pods, node, containers, Service, endpoints, rules, page.

Each step is a check of `doit why` (see why.py), based on API objects, on kube-proxy's rules, or on a packet.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from .. import deployment, service, service_proxy
from ..core.api import full_name
from ..core.context import Context
from ..core.errors import DmucError
from ..core.http_client import request
from ..core.probe import Tcp, ask_api
from ..core.result import Result
from ..kubelet import SCHEDULABLE
from ..service_account import SERVICE_ACCOUNT
from .diagnosis import Finding, Link, broken, unknown, waits, works
from .trace import has_rules, known_to_rules

_KINDS = {
    **{kind: f"/apis/apps/v1/{kind}" for kind in ("deployments", "replicasets")},
    **{kind: f"/api/v1/{kind}" for kind in ("pods", "services", "endpoints", "events")},
}
_PULLING = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_KUBECTL = "scripts/doit shell -- kubectl"


class DeploymentChain:
    """The links of `doit why` about one Deployment. Each kind of object is read once from the API server."""

    def __init__(self, context: Context, wanted: str = "") -> None:
        self.context, self.wanted = context, wanted
        self.objects: Mapping[str, Sequence[Any]] = {}

    def links(self) -> dict[str, Link]:
        """Return the links about the Deployment, by name."""
        here = self.wanted or deployment.NAME
        wait = "scripts/doit service_reachable" if here == deployment.NAME else f"scripts/doit why {here}"
        running = ("kubelet", "container_engine")
        about: dict[str, tuple[Callable[[], Finding], Sequence[str], Sequence[str]]] = {
            # name: the check, the links that it needs, the links that it asks about
            "deployment": (self._deployment, (), ("objects",)),
            "replicaset": (self._replica_set, ("controller_manager",), ("deployment",)),
            "pod": (self._pod, ("controller_manager",), ("replicaset",)),
            "service_account": (self._service_account, ("controller_manager",), ("objects",)),
            "node": (self._node, ("kubelet", "controller_manager"), ("objects",)),
            "scheduled": (self._scheduled, ("node", "scheduler"), ("pod",)),
            # The status of a container is out of date when the kubelet or the engine is down.
            "container": (self._container, (), ("scheduled", "container_engine", "kubelet")),
            "ready": (self._ready, running, ("container",)),
            "service": (self._service, (), ("deployment",)),
            "endpoints": (self._endpoints, ("ready", "controller_manager"), ("service",)),
            "rules": (self._rules, (service_proxy.TASK, "endpoints"), ("service",)),
            "page": (self._page, ("service", "endpoints", service_proxy.TASK, "rules", *running), ("machine",)),
            "others": (self._others, ("controller_manager", "scheduler", *running), ("objects",)),
        }
        links = {name: Link(name, check, wait, needs, asks) for name, (check, needs, asks) in about.items()}
        for name in ("service_account", "node", "others"):
            links[name] = Link(name, about[name][0], wait, *about[name][1:], quiet=True)
        links["objects"] = Link("objects", self._read, "scripts/doit apiserver", ("apiserver",), quiet=True)
        return links

    # The objects

    def _read(self) -> Finding:
        found: dict[str, Sequence[Any]] = {}

        def keep(kind: str, result: Any) -> Result:
            found[kind] = result["items"]
            return Result(True, "")

        for kind, path in _KINDS.items():
            result = ask_api(self.context, path, partial(keep, kind))
            if not result:  # asking again only takes time
                return unknown(f"cannot be asked: {result.why}")
        self.objects = found
        return works("")

    def _in(self, kind: str) -> list[Any]:
        """The objects of a kind in the Deployment's namespace."""
        return [one for one in self.objects[kind] if one["metadata"]["namespace"] == self._space]

    def refuse_unknown(self) -> None:
        """Raise DmucError when the wanted Deployment does not exist, and no task creates it."""
        if self.objects and self.wanted and self.wanted != deployment.NAME and self.deployment is None:
            there = ", ".join(map(full_name, self.objects["deployments"])) or "none"
            several = [one for one in self.objects["deployments"] if one["metadata"]["name"] == self.wanted]
            seen = f"there {'is more than one' if several else 'is no'} Deployment called {self.wanted!r}"
            raise DmucError("following a Deployment", seen, f"Deployments: {there}.")

    @property
    def deployment(self) -> Any:
        """The wanted Deployment, else `web`, else the first; None when there is none."""
        there = self.objects["deployments"]
        if "/" in self.wanted:
            return next((one for one in there if full_name(one) == self.wanted), None)
        named = [one for one in there if one["metadata"]["name"] == (self.wanted or deployment.NAME)]
        at_home = [one for one in named if one["metadata"]["namespace"] == "default"]
        found = at_home or (named if len(named) == 1 else [])
        return (found or ([] if self.wanted else list(there)) or [None])[0]

    @property
    def _space(self) -> str:
        return str(self.deployment["metadata"]["namespace"])

    @property
    def _replicas(self) -> Any:
        """The newest ReplicaSet of the Deployment; None when there is none."""

        def revision(one: Any) -> int:
            return int(one["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision", 0))

        return max(self._owned_by(self.deployment, "replicasets"), key=revision, default=None)

    @property
    def _pods(self) -> list[Any]:
        """The Pods of that ReplicaSet, without those that have ended or are being deleted."""
        pods = self._owned_by(self._replicas, "pods")
        return [pod for pod in pods if _is_alive(pod)]

    def _owned_by(self, owner: Any, kind: str) -> list[Any]:
        uid = owner["metadata"]["uid"]
        return [o for o in self._in(kind) if uid in (r["uid"] for r in o["metadata"].get("ownerReferences", []))]

    @property
    def _services(self) -> list[Any]:
        """The Services whose selector matches the Pods."""
        return [one for one in self._in("services") if _selects(one, self._labels)]

    @property
    def _labels(self) -> Mapping[str, str]:
        return self.deployment["spec"]["template"]["metadata"].get("labels") or {}

    def _event(self, thing: Any, *reasons: str, begins: str = "") -> str:
        """Return the newest event about the object with one of these reasons, as text; empty when there is none.

        The event's message must begin with `begins`.
        """
        found = [
            event
            for event in self.objects["events"]
            if event["involvedObject"].get("uid") == thing["metadata"]["uid"]
            and event["reason"] in reasons
            and event["message"].startswith(begins)
        ]
        newest = max(found, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", default=None)
        if newest is None:
            return ""
        times = f", {newest['count']} times" if (newest.get("count") or 1) > 1 else ""
        return f"{newest['reason']} (event{times}): {newest['message']}"

    def _kubectl(self, *words: str) -> str:
        where = [] if self._space == "default" else ["-n", self._space]
        return " ".join([_KUBECTL, *where, *words])

    # From object to packet

    def _deployment(self) -> Finding:
        if self.deployment is None:
            return broken("there is no Deployment", "scripts/doit deployment")
        spec, ready = self.deployment["spec"], self.deployment["status"].get("readyReplicas", 0)
        images = ", ".join(c["image"] for c in spec["template"]["spec"]["containers"])
        return works(f"{full_name(self.deployment)} (image {images}): {ready}/{spec['replicas']} ready")

    def _replica_set(self) -> Finding:
        meta, status = self.deployment["metadata"], self.deployment["status"]
        if self._replicas is None:
            return waits("there is no ReplicaSet yet: the controller manager creates it")
        if status.get("observedGeneration", 0) < meta["generation"]:
            return waits("the controller manager has not handled the Deployment's last change")
        return works(str(self._replicas["metadata"]["name"]))

    def _pod(self) -> Finding:
        wanted, pods = self.deployment["spec"]["replicas"], self._pods
        name = self.deployment["metadata"]["name"]
        if wanted == 0:
            scale = self._kubectl("scale", "deployment", name, "--replicas=1")
            return broken("the Deployment is scaled to 0 replicas", scale)
        if len(pods) >= self._replicas["spec"]["replicas"] and pods:
            return works(", ".join(pod["metadata"]["name"] for pod in pods))
        conditions = _conditions(self._replicas)
        failed = self._event(self._replicas, "FailedCreate")
        if not failed and "ReplicaFailure" in conditions:
            failed = f"ReplicaFailure: {conditions['ReplicaFailure']['message']}"
        count = f"{len(pods)} of {wanted} Pods" if pods else "no Pod"
        token = SERVICE_ACCOUNT.holds(self.context)
        if not token and not pods:
            return broken(f"{count}: {failed or token.why}", "scripts/doit service_account")
        if "ReplicaFailure" in conditions and "No API token" not in failed:
            return broken(f"{count}: {failed}", "scripts/doit logs controller_manager")
        return waits(f"{count} yet: the controller manager creates them, and waits longer after each failure")

    def _service_account(self) -> Finding:
        result = SERVICE_ACCOUNT.holds(self.context)
        return works(result.why) if result else broken(result.why, "scripts/doit service_account")

    def _node(self) -> Finding:
        result, name = SCHEDULABLE.holds(self.context), self.context.node.name
        taints = re.search(r"taint (.*)", result.why)
        passing = "not-ready" in result.why or "unreachable" in result.why  # removed by the controller manager
        if result or not taints or passing:
            return works(result.why) if result else waits(result.why)
        if "node.kubernetes.io/unschedulable" in result.why:
            return broken(result.why, f"{_KUBECTL} uncordon {name}")
        return broken(result.why, f"{_KUBECTL} taint node {name} {' '.join(f'{t}-' for t in taints[1].split(', '))}")

    def _scheduled(self) -> Finding:
        unscheduled = [pod for pod in self._pods if not pod["spec"].get("nodeName")]
        if not unscheduled:
            nodes = {pod["spec"]["nodeName"] for pod in self._pods}
            return works(f"on the node {', '.join(sorted(nodes))}")
        pod = unscheduled[0]
        name = pod["metadata"]["name"]
        decision = _conditions(pod, "False").get("PodScheduled", {}).get("message", "")
        if decision:
            soon = "not-ready" in decision or "no nodes available" in decision
            say = waits if soon else broken
            return say(f"{name} has no node, says the scheduler: {decision}", self._kubectl("describe", "pod", name))
        why = f"{name} is Pending without the condition PodScheduled: it has not been scheduled"
        return broken(why, "scripts/doit binding") if self.context.settings.scheduling == "manual" else waits(why)

    def _container(self) -> Finding:
        for pod in self._pods:
            status = pod["status"]
            first = [one for one in status.get("initContainerStatuses", []) if not _is_done(one)]
            statuses = [*first, *status.get("containerStatuses", [])]
            if not statuses:
                return waits(f"{pod['metadata']['name']}: the kubelet has not reported its status yet")
            for one in statuses:
                finding = self._judge_container(pod, one)
                if finding is not None:
                    return finding
        return works(f"{', '.join(sorted({one['image'] for one in statuses}))} runs")

    def _judge_container(self, pod: Any, status: Any) -> Finding | None:
        """Return what is wrong with one container; None when nothing is."""
        name, state = pod["metadata"]["name"], status["state"]
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting["reason"] in _PULLING:
            failed = self._event(pod, "Failed", begins="Failed to pull") or waiting.get("message", "")
            ours = full_name(self.deployment) == f"default/{deployment.NAME}"
            image = f"{status['name']}={deployment.IMAGE if ours else 'IMAGE'}"
            fix = self._kubectl("set", "image", f"deployment/{self.deployment['metadata']['name']}", image)
            seen = failed if status["image"] in failed else f"{status['image']}: {failed or 'will be pulled again'}"
            say = waits if ours and status["image"].partition(":")[0] == deployment.IMAGE else broken  # tried again
            return say(f"{waiting['reason']}: {seen}", fix if say is broken else "", ("registry", "pull_through"))
        if waiting and waiting["reason"] in {"ContainerCreating", "PodInitializing"}:
            failed = self._event(pod, "FailedCreatePodSandBox", "FailedMount")
            if failed:
                return broken(failed, self._kubectl("describe", "pod", name))
            return waits(self._event(pod, "Pulling") or f"{name}: {waiting['reason']}")
        last = ended or (status.get("lastState", {}).get("terminated") if waiting else None)
        if waiting or ended:
            code = f"ended with exit code {last['exitCode']}" if last else waiting.get("message", "") if waiting else ""
            said = self._said(pod, status["name"], previous=bool(waiting))
            seen = f"{waiting['reason'] if waiting else 'Terminated'}: {status['name']} {code}{said}"
            previous = ["--previous"] if waiting else []
            return broken(seen, self._kubectl("logs", name, "-c", status["name"], *previous))
        return None

    def _said(self, pod: Any, container: str, *, previous: bool) -> str:
        """Return the last line of the container's log, as text."""
        meta, before = pod["metadata"], str(previous).lower()
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log"
        url = f"{self.context.server}{path}?container={container}&tailLines=1&previous={before}"
        try:
            status, text = request(self.context, url)
        except (OSError, http.client.HTTPException):
            return ""
        return f"; its log ends: {text.strip()}" if status == 200 and text.strip() else ""

    def _ready(self) -> Finding:
        for pod in self._pods:
            name, problem = pod["metadata"]["name"], _conditions(pod, "False").get("Ready")
            if problem:
                unhealthy = self._event(pod, "Unhealthy")
                fix = self._kubectl("describe", "pod", name)
                return broken(f"{name}: {unhealthy}", fix) if unhealthy else waits(problem.get("message", name))
        return works(", ".join(f"{pod['metadata']['name']} at {pod['status'].get('podIP')}" for pod in self._pods))

    def _service(self) -> Finding:
        name = self.deployment["metadata"]["name"]
        if self._services:
            return works(", ".join(f"{full_name(s)}: {', '.join(_addresses(s)) or 'headless'}" for s in self._services))
        for one in self._in("services"):
            if one["metadata"]["name"] == name:
                selector = one["spec"].get("selector") or {}
                right = self.deployment["spec"]["selector"].get("matchLabels") or self._labels
                fix = self._kubectl("set", "selector", "service", name, _pairs(right))
                seen = f"its selector is {_pairs(selector) or 'empty'}; the Pods have the labels {_pairs(self._labels)}"
                return broken(seen, fix)
        if full_name(self.deployment) == f"default/{deployment.NAME}":
            return broken("no Service selects the Pods", f"scripts/doit {service.SERVICE.name}")
        containers = self.deployment["spec"]["template"]["spec"]["containers"]
        port = next((p["containerPort"] for c in containers for p in c.get("ports", [])), 80)
        return broken("no Service selects the Pods", self._kubectl("expose", "deployment", name, f"--port={port}"))

    def _endpoints(self) -> Finding:
        pods = {pod["status"].get("podIP") for pod in self._in("pods") if _is_alive(pod)}
        for one in self._services:
            name = one["metadata"]["name"]
            found = [e for e in self._in("endpoints") if e["metadata"]["name"] == name]
            subsets = [subset for e in found for subset in e.get("subsets") or []]
            addresses = {a["ip"] for subset in subsets for a in subset.get("addresses", [])}
            if not addresses:
                return waits(f"the Service {name} has no endpoints: no Pod of it is Ready")
            if not addresses <= pods:
                return waits(f"the Service {name} still has the endpoint {min(addresses - pods)} of a deleted Pod")
        return works(f"{', '.join(sorted(addresses))}")

    def _rules(self) -> Finding:
        for one in self._services:
            result = has_rules(self.context, one)
            if not result:
                return waits(result.why)
        return works(result.why)

    def _page(self) -> Finding:
        if not self.objects:
            name = self.wanted or deployment.NAME
            known = known_to_rules(self.context, name if "/" in name else f"default/{name}")
            if not known:
                return unknown("cannot be checked without apiserver")
        elif self.deployment is None or not self._services:
            return unknown("cannot be checked without service")
        else:
            known = [address for one in self._services for address in _addresses(one)]
        results = [_asked(self.context, address) for address in known]
        bad = next((result for result in results if not result), None)
        if bad is not None:
            return broken(bad.why, f"scripts/doit shell -- kubectl describe endpoints {self.wanted or deployment.NAME}")
        return works("; ".join(result.why for result in results) or "there is no ClusterIP to ask")

    def _others(self) -> Finding:
        for one in self.objects["deployments"]:
            ready, wanted = one["status"].get("readyReplicas", 0), one["spec"]["replicas"]
            if one is not self.deployment and not self.wanted and ready < wanted:
                return broken(f"{full_name(one)}: {ready}/{wanted} ready", f"scripts/doit why {full_name(one)}")
        return works("")


def _addresses(service: Any) -> list[str]:
    """Return each TCP address CLUSTERIP:PORT of the Service; none for a headless Service."""
    spec = service["spec"]
    if spec.get("clusterIP", "None") == "None":
        return []
    return [f"{spec['clusterIP']}:{p['port']}" for p in spec.get("ports", []) if p.get("protocol", "TCP") == "TCP"]


def _asked(context: Context, address: str) -> Result:
    """Return whether the address answers: web ports (80, 8080 and the like) an HTTP request, others a connection.

    The packets are sent inside the machine: outside, the address may belong to another host.
    """
    ip, _, port = address.partition(":")
    if not port.endswith("80"):
        return Tcp(int(port), ip)(context)
    url = f"http://{address}/"
    try:
        status, body = request(context, url)
    except (OSError, http.client.HTTPException) as error:
        return Result(False, f"{url} does not answer: {error or type(error).__name__}")
    title = re.search(r"<title>\s*(.*?)\s*</title>", body, re.DOTALL | re.IGNORECASE)
    return Result(status < 500, f"{url} answers: {title[1] if title else status}")


def _is_alive(pod: Any) -> bool:
    ended = pod["status"].get("phase") in {"Failed", "Succeeded"}
    return not ended and "deletionTimestamp" not in pod["metadata"]


def _is_done(status: Any) -> bool:
    """Return whether this init container has succeeded."""
    return bool(status["state"].get("terminated", {"exitCode": 1})["exitCode"] == 0)


def _selects(service: Any, labels: Mapping[str, str]) -> bool:
    selector = service["spec"].get("selector") or {}
    return bool(selector) and selector.items() <= labels.items()


def _pairs(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _conditions(thing: Any, status: str = "True") -> dict[str, Any]:
    """Return the object's conditions with this status, by type."""
    return {c["type"]: c for c in thing["status"].get("conditions") or [] if c["status"] == status}
