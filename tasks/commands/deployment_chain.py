"""One Deployment, followed from object to packet: ReplicaSet, Pods, node, containers, Service, endpoints, rules, page.

Each step is a check of `doit why` (see why.py), based on API objects, on kube-proxy's rules, or on a packet. A Pod or a
Service can be followed as well: from a Service back to its Deployment, or else to the Pods that it selects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any

from .. import deployment, images, service, service_proxy
from ..core.api import full_name
from ..core.context import Context
from ..core.daemon import error_line
from ..core.errors import DmucError
from ..core.http_client import request
from ..core.probe import ask_api
from ..core.result import Result
from ..kubelet import PASSING, SCHEDULABLE
from ..registry import upstream
from ..service_account import SERVICE_ACCOUNT
from . import pods
from .diagnosis import Finding, Link, broken, unknown, waits, works
from .trace import has_rules, known_to_rules

_KINDS = {
    **{kind: f"/apis/apps/v1/{kind}" for kind in ("deployments", "replicasets")},
    **{kind: f"/api/v1/{kind}" for kind in ("pods", "services", "endpoints", "events")},
}
_PULLING = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
# What `kubectl get` and `kubectl create` call them.
_WORDS = {
    "deployments": {"deploy", "deployment", "deployments", "deployment.apps", "deployments.apps"},
    "pods": {"po", "pod", "pods"},
    "services": {"svc", "service", "services"},
}
_LISTENS = 10.0  # seconds in which a server surely listens, once its container runs
_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_KUBECTL = "scripts/doit shell -- kubectl"


def is_kind(word: str) -> bool:
    """Return whether the word is a name of a kind that can be followed."""
    return any(word.lower() in words for words in _WORDS.values())


@dataclass(frozen=True)
class Wanted:
    """What is followed: a name, with its kind and namespace where the user has named them."""

    name: str = ""
    kind: str = ""
    namespace: str = ""

    @classmethod
    def read(cls, text: str) -> Wanted:
        """Return what [NAMESPACE/][KIND/]NAME or KIND/NAMESPACE/NAME means. Raise DmucError when it means nothing."""
        *before, name = text.split("/")
        kind, left = "", []
        for word in before:
            found = next((one for one, words in _WORDS.items() if word.lower() in words), "")
            if found and not kind:
                kind = found
            else:
                left.append(word)
        if len(left) > 1 or (text and not (name and all(before))):
            raise DmucError(f"following {text}", "This is no name of an object.", _USAGE)
        return cls(name, kind, left[0] if left else "")

    @property
    def is_ours(self) -> bool:
        """Whether a task creates it, if it is not there yet: the Deployment and the Service of the walk-through."""
        return self.name == deployment.NAME and self.namespace in {"", "default"} and self.kind != "pods"


_USAGE = "Name it as deploy/NAME, pod/NAME or svc/NAME; in another namespace than default: NAMESPACE/pod/NAME."


class DeploymentChain:
    """The links of `doit why` about one Deployment. Each kind of object is read once from the API server."""

    def __init__(self, context: Context, wanted: str = "") -> None:
        self.context, self.wanted, self._parsed = context, wanted, Wanted.read(wanted)
        self.objects: Mapping[str, Sequence[Any]] = {}

    def links(self) -> dict[str, Link]:
        """Return the links about the Deployment, by name."""
        ours = not self.wanted or self._parsed.is_ours
        wait = "scripts/doit service_reachable" if ours else f"scripts/doit why {self.wanted}"
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
        """Raise DmucError when what is wanted does not exist, and no task creates it."""
        if self.objects and self.wanted and not self._parsed.is_ours and self._target[1] is None:
            kinds = [self._parsed.kind] if self._parsed.kind else list(_WORDS)
            several = any(self._named(kind) for kind in kinds)
            singular = " or ".join(kind.removesuffix("s").capitalize() for kind in kinds)
            seen = f"there {'is more than one' if several else 'is no'} {singular} called {self.wanted!r}"
            there = (
                f"{kind.capitalize()}: {', '.join(map(full_name, self.objects[kind])) or 'none'}." for kind in kinds
            )
            raise DmucError(f"following {self.wanted}", seen, "\n".join([*there, _USAGE]))

    def _named(self, kind: str) -> list[Any]:
        """The objects of this kind that have the wanted name, and are in the wanted namespace if there is one."""
        name, space = self._parsed.name or deployment.NAME, self._parsed.namespace
        every = (one for one in self.objects[kind] if one["metadata"]["name"] == name)
        return [one for one in every if space in {"", one["metadata"]["namespace"]}]

    @property
    def _target(self) -> tuple[str, Any]:
        """The kind of what is followed, and the object: as wanted, else the Deployment `web`, else the first."""
        for kind in [self._parsed.kind] if self._parsed.kind else _WORDS:
            named = self._named(kind)
            at_home = [one for one in named if one["metadata"]["namespace"] == "default"]
            found = at_home or (named if len(named) == 1 else [])
            if found and (self.wanted or kind == "deployments"):
                return kind, found[0]
        there = self.objects["deployments"]
        return self._parsed.kind or "deployments", there[0] if there and not self.wanted else None

    @property
    def deployment(self) -> Any:
        """The Deployment that is followed: of a Service, the one whose Pods it selects. None when there is none."""
        kind, target = self._target
        if kind == "deployments" or target is None:
            return target
        space = target["metadata"]["namespace"]
        there = (one for one in self.objects["deployments"] if one["metadata"]["namespace"] == space)
        return next((d for d in there if kind == "services" and _selects(target, _labels(d["spec"]["template"]))), None)

    @property
    def _space(self) -> str:
        return str(self._target[1]["metadata"]["namespace"])

    @property
    def _replicas(self) -> Any:
        """The newest ReplicaSet of the Deployment; None when there is none."""

        def revision(one: Any) -> int:
            return int(one["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision", 0))

        return max(self._owned_by(self.deployment, "replicasets"), key=revision, default=None)

    @property
    def _pods(self) -> list[Any]:
        """The Pods that are followed; of a Deployment or Service without those that have ended or are being deleted."""
        kind, target = self._target
        if kind == "pods":
            return [target]
        if self.deployment is not None:
            pods = self._owned_by(self._replicas, "pods") if self._replicas else []
        else:
            pods = [pod for pod in self._in("pods") if _selects(target, _labels(pod))]
        return [pod for pod in pods if _is_alive(pod)]

    def _owned_by(self, owner: Any, kind: str) -> list[Any]:
        uid = owner["metadata"]["uid"]
        return [o for o in self._in(kind) if uid in (r["uid"] for r in o["metadata"].get("ownerReferences", []))]

    @property
    def _services(self) -> list[Any]:
        """The Services whose selector matches the Pods; or the one that is followed."""
        kind, target = self._target
        if kind == "services":
            return [target]
        labels = _labels(target if kind == "pods" else target["spec"]["template"])
        return [one for one in self._in("services") if _selects(one, labels)]

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
        kind, target = self._target
        if target is None:
            return broken(
                f"there is no {kind.removesuffix('s').capitalize()}", f"scripts/doit {kind.removesuffix('s')}"
            )
        if self.deployment is None:
            return works("")
        spec, ready = self.deployment["spec"], self.deployment["status"].get("readyReplicas", 0)
        named = ", ".join(c["image"] for c in spec["template"]["spec"]["containers"])
        return works(f"{full_name(self.deployment)} (image {named}): {ready}/{spec['replicas']} ready")

    def _replica_set(self) -> Finding:
        if self.deployment is None:
            return works("")
        meta, status = self.deployment["metadata"], self.deployment["status"]
        if self._replicas is None:
            return waits("there is no ReplicaSet yet: the controller manager creates it")
        if status.get("observedGeneration", 0) < meta["generation"]:
            return waits("the controller manager has not handled the Deployment's last change")
        return works(str(self._replicas["metadata"]["name"]))

    def _pod(self) -> Finding:
        if self.deployment is None:
            return self._pods_alone()
        wanted, pods = self.deployment["spec"]["replicas"], self._pods
        name = self.deployment["metadata"]["name"]
        if wanted == 0:
            scale = self._kubectl("scale", "deployment", name, "--replicas=1")
            return broken("the Deployment is scaled to 0 replicas", scale, stays=True)
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
            refused = "forbidden" in failed or "invalid" in failed.lower()  # such as by a quota
            return broken(f"{count}: {failed}", "scripts/doit logs controller_manager", stays=refused)
        return waits(f"{count} yet: the controller manager creates them, and waits longer after each failure")

    def _pods_alone(self) -> Finding:
        """The Pods where no Deployment is followed."""
        kind, target = self._target
        if kind == "pods":
            name, word = target["metadata"]["name"], pods.status(target)
            if "deletionTimestamp" in target["metadata"] and pods.is_in_trouble(target, ()):
                finalizers = ", ".join(target["metadata"].get("finalizers", [])) or "none"
                seen = f"{name}: {word}, and its grace period is over; its finalizers: {finalizers}"
                return broken(seen, self._kubectl("describe", "pod", name), stays=True)
            if target["status"].get("phase") == "Failed":
                said = target["status"].get("message", "")
                for one in target["status"].get("containerStatuses") or []:
                    said = said or f"{one['name']}{self._said(target, one['name'], previous=False)}"
                return broken(f"{name}: {word}: {said}", self._kubectl("logs", name), stays=True)
            return works(f"{name}: {word}")
        if not target["spec"].get("selector"):
            return works("")
        if not self._pods:
            seen = f"no Pod has the labels {_pairs(target['spec']['selector'])} that the Service selects"
            return broken(seen, self._kubectl("get", "pods", "--show-labels"), stays=True)
        return works(", ".join(pod["metadata"]["name"] for pod in self._pods))

    def _service_account(self) -> Finding:
        result = SERVICE_ACCOUNT.holds(self.context)
        return works(result.why) if result else broken(result.why, "scripts/doit service_account")

    def _node(self) -> Finding:
        result, name = SCHEDULABLE.holds(self.context), self.context.node.name
        taints = re.search(r"taint (.*)", result.why)
        if not taints:
            return works(result.why) if result else waits(result.why)
        if any(taint in result.why for taint in PASSING):  # removed by the controller manager
            return waits(result.why)
        if not any(_needs_a_node(pod) for pod in self.objects["pods"]):  # it hinders no Pod
            return works(result.why)
        if _UNSCHEDULABLE in result.why:
            return broken(result.why, f"{_KUBECTL} uncordon {name}", stays=True)
        fix = f"{_KUBECTL} taint node {name} {' '.join(f'{t}-' for t in taints[1].split(', '))}"
        return broken(result.why, fix, stays=True)

    def _scheduled(self) -> Finding:
        unscheduled = [pod for pod in self._pods if _needs_a_node(pod)]
        if not unscheduled:
            nodes = {pod["spec"]["nodeName"] for pod in self._pods if pod["spec"].get("nodeName")}
            return works(f"on the node {', '.join(sorted(nodes))}" if nodes else "")
        pod = unscheduled[0]
        name = pod["metadata"]["name"]
        decision = _conditions(pod, "False").get("PodScheduled", {}).get("message", "")
        if decision:
            # What a Pod on its way out still takes is free soon.
            leaving = any("deletionTimestamp" in one["metadata"] for one in self.objects["pods"])
            soon = "not-ready" in decision or "no nodes available" in decision or "unreachable" in decision or leaving
            seen, fix = f"{name} has no node, says the scheduler: {decision}", self._kubectl("describe", "pod", name)
            return waits(seen, fix) if soon else broken(seen, fix, stays=True)
        why = f"{name} is Pending without the condition PodScheduled: it has not been scheduled"
        return broken(why, "scripts/doit binding") if self.context.settings.scheduling == "manual" else waits(why)

    def _container(self) -> Finding:
        running = set[str]()
        for pod in self._pods:
            status = pod["status"]
            if status.get("phase") in {"Succeeded", "Failed"} or _needs_a_node(pod):
                continue
            first = [one for one in status.get("initContainerStatuses", []) if not _is_done(one)]
            statuses = [*first, *status.get("containerStatuses", [])]
            if not statuses:
                return waits(f"{pod['metadata']['name']}: the kubelet has not reported its status yet")
            for one in statuses:
                finding = self._judge_container(pod, one)
                if finding is not None:
                    return finding
                running.add(one["image"])
        return works(f"{', '.join(sorted(running))} runs" if running else "")

    def _judge_container(self, pod: Any, status: Any) -> Finding | None:
        """Return what is wrong with one container; None when nothing is."""
        name, state = pod["metadata"]["name"], status["state"]
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting["reason"] in _PULLING:
            failed = self._event(pod, "Failed", begins="Failed to pull") or waiting.get("message", "")
            named = self._target[0] == "deployments" and full_name(self._target[1]) == f"default/{deployment.NAME}"
            ours = named and status["image"].partition(":")[0] == deployment.IMAGE
            image = f"{status['name']}={deployment.IMAGE if named else 'IMAGE'}"
            at = f"deployment/{self.deployment['metadata']['name']}" if self.deployment is not None else f"pod/{name}"
            fix = self._kubectl("set", "image", at, image)
            seen = failed if status["image"] in failed else f"{status['image']}: {failed or 'will be pulled again'}"
            if "dial tcp" in seen and not upstream(self.context):  # what follows is about a network that there is not
                seen = seen.partition(": rpc error")[0]
            because = ("registry", "pull_through")
            if ours:  # tried again
                return waits(f"{waiting['reason']}: {seen}", "", because)
            if not named and not status["image"].startswith("sha256:"):
                fix = f"scripts/doit load {status['image'].partition('@')[0]}"
            return broken(f"{waiting['reason']}: {seen}. {images.available(self.context)}", fix, because, stays=True)
        if waiting and waiting["reason"] in {"ContainerCreating", "PodInitializing"}:
            failed = self._event(pod, "FailedCreatePodSandBox", "FailedMount")
            if failed:  # such as a ConfigMap or Secret that does not exist
                return broken(failed, self._kubectl("describe", "pod", name), stays="not found" in failed)
            return waits(self._event(pod, "Pulling") or f"{name}: {waiting['reason']}")
        last = ended or (status.get("lastState", {}).get("terminated") if waiting else None)
        if waiting or ended:
            code = f"ended with exit code {last['exitCode']}" if last else waiting.get("message", "") if waiting else ""
            said = self._said(pod, status["name"], previous=bool(waiting))
            seen = f"{waiting['reason'] if waiting else 'Terminated'}: {status['name']} {code}{said}"
            previous = ["--previous"] if waiting else []
            return broken(seen, self._kubectl("logs", name, "-c", status["name"], *previous), stays=bool(waiting))
        return None

    def _said(self, pod: Any, container: str, *, previous: bool) -> str:
        """Return the line of the container's log that says what went wrong, else its last line, as text."""
        meta, before = pod["metadata"], str(previous).lower()
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log"
        url = f"{self.context.server}{path}?container={container}&tailLines=100&previous={before}"
        try:
            status, text = request(self.context, url)
        except OSError:
            return ""
        if status != HTTPStatus.OK or not text.strip():
            return ""
        error = error_line(text)
        return f"; its log says: {error}" if error else f"; its log ends: {text.strip().splitlines()[-1]}"

    def _ready(self) -> Finding:
        for pod in self._pods:
            name, problem = pod["metadata"]["name"], _conditions(pod, "False").get("Ready")
            if problem:
                if pods.is_done(pod) or _needs_a_node(pod):
                    continue
                unhealthy = self._event(pod, "Unhealthy")
                fix = self._kubectl("describe", "pod", name)
                refused = re.search(r"statuscode: 4\d\d", unhealthy) is not None  # it listens, and will say that again
                if unhealthy:
                    return broken(f"{name}: {unhealthy}", fix, stays=refused)
                return waits(problem.get("message", name))
        return works(
            ", ".join(
                f"{pod['metadata']['name']} at {pod['status'].get('podIP')}" for pod in self._pods if pods.is_ready(pod)
            )
        )

    def _service(self) -> Finding:
        kind, target = self._target
        if self._services:
            every = (f"{full_name(s)}: {', '.join(service.addresses(s, {})) or _without(s)}" for s in self._services)
            return works(", ".join(every))
        if kind == "pods":
            return works("")
        name = target["metadata"]["name"]
        for one in self._in("services"):
            if one["metadata"]["name"] == name:
                selector, labels = one["spec"].get("selector") or {}, _labels(self.deployment["spec"]["template"])
                right = self.deployment["spec"]["selector"].get("matchLabels") or labels
                fix = self._kubectl("set", "selector", "service", name, _pairs(right))
                seen = f"its selector is {_pairs(selector) or 'empty'}; the Pods have the labels {_pairs(labels)}"
                return broken(seen, fix, stays=True)
        if full_name(self.deployment) == f"default/{deployment.NAME}":
            return broken("no Service selects the Pods", f"scripts/doit {service.SERVICE.name}")
        containers = self.deployment["spec"]["template"]["spec"]["containers"]
        port = next((p["containerPort"] for c in containers for p in c.get("ports", [])), 80)
        return broken("no Service selects the Pods", self._kubectl("expose", "deployment", name, f"--port={port}"))

    def _endpoints(self) -> Finding:
        alive = {pod["status"].get("podIP") for pod in self._in("pods") if _is_alive(pod)}
        every = set[str]()
        for one in self._services:
            name, spec = one["metadata"]["name"], one["spec"]
            if spec.get("type") == "ExternalName":
                continue
            found = self._endpoints_of(one)
            addresses = {a["ip"] for subset in found.get("subsets") or [] for a in subset.get("addresses", [])}
            if not spec.get("selector"):
                if not addresses:
                    seen = f"the Service {name} has no selector, and no endpoints were created for it"
                    return broken(seen, self._kubectl("describe", "service", name), stays=True)
            elif not addresses:
                if lacking := self._nameless_ports(spec):
                    seen = f"the Service {name} sends to the port {lacking}, and no container has a port of this name"
                    return broken(seen, self._kubectl("edit", "service", name), stays=True)
                return waits(f"the Service {name} has no endpoints: no Pod of it is Ready")
            elif not addresses <= alive:
                return waits(f"the Service {name} still has the endpoint {min(addresses - alive)} of a deleted Pod")
            every |= addresses
        return works(", ".join(sorted(every)))

    def _nameless_ports(self, spec: Any) -> str:
        """Return the target ports that the Service names, and that no container has."""
        containers = [container for pod in self._pods for container in pod["spec"].get("containers", [])]
        names = {port.get("name") for container in containers for port in container.get("ports", [])}
        wanted = {port["targetPort"] for port in spec["ports"] if isinstance(port.get("targetPort"), str)}
        return ", ".join(sorted(wanted - names)) if containers else ""

    def _endpoints_of(self, one: Any) -> Any:
        """The Endpoints of this Service; an empty object when there are none."""
        return self._endpoints_by_name.get(full_name(one), {})

    @cached_property
    def _endpoints_by_name(self) -> Mapping[str, Any]:
        return {full_name(one): one for one in self.objects["endpoints"]}

    def _rules(self) -> Finding:
        result = has_rules(self.context, *self._services)
        return works(result.why) if result else waits(result.why)

    def _page(self) -> Finding:
        if not self.objects:
            return self._page_by_the_rules()
        kind, target = self._target
        if target is None or not (self._services or kind == "pods"):
            return unknown("cannot be checked without service")
        said = []
        for one in self._services:
            addresses = service.addresses(one, self._endpoints_of(one))
            if not addresses:
                said.append(f"{full_name(one)} has no TCP port to ask")
                if full_name(one) == f"default/{deployment.NAME}":  # it had one, for the page
                    return broken(said[-1], self._kubectl("edit", "service", deployment.NAME), stays=True)
                continue
            result = service.ask_any(self.context, addresses)
            if not result:
                return self._no_page(one, result.why)
            said.append(result.why)
        return works("; ".join(said))

    def _page_by_the_rules(self) -> Finding:
        """The page, where the API server cannot be asked for the address."""
        name = f"{self._parsed.namespace or 'default'}/{self._parsed.name or deployment.NAME}"
        known = known_to_rules(self.context, name)
        if not known:
            return unknown("cannot be checked without apiserver")
        result = service.ask_any(self.context, known)
        return works(result.why) if result else broken(result.why, f"scripts/doit trace {name}")

    def _no_page(self, one: Any, why: str) -> Finding:
        """Return what is wrong where a Service does not answer: its Pods are asked."""
        name, direct = full_name(one), service.targets(self._endpoints_of(one))
        results = {address: service.ask(self.context, address) for address in direct}
        answers = [address for address, result in results.items() if result]
        trace = f"scripts/doit trace {name}"
        if answers:  # so the way to it does not work
            return broken(f"{why}, although the Pod answers at {answers[0]}", trace)
        # A server that has just been started may not listen yet. One that is slow may answer later.
        settled = [pod for pod in self._pods if pods.runs_since(pod) > _LISTENS]
        silent = any("timed out" in result.why for result in results.values())
        fix = self._kubectl("describe", "endpoints", one["metadata"]["name"])
        refused = [address for address, result in results.items() if "refused" in result.why]
        if refused:
            ports = sorted({address.rpartition(":")[2] for address in refused})
            why = f"{why}: nothing in the Pod listens on port {', '.join(ports)}, to which the Service sends"
            fix = self._kubectl("edit", "service", one["metadata"]["name"])
        return broken(why, fix, stays=bool(settled) and not silent)

    def _others(self) -> Finding:
        """Every Pod and Deployment that is not followed."""
        if self.wanted:
            return works("")
        every, followed = self.objects["pods"], self._pods if self._target[1] is not None else []
        bad = [one for one in every if one not in followed and pods.is_in_trouble(one, every)]
        owners = {r["uid"] for pod in bad for r in pod["metadata"].get("ownerReferences", [])}
        if bad:
            first = next((pod for pod in bad if pods.is_stuck(pod)), bad[0])
            sorted_bad = [first, *(pod for pod in bad if pod is not first)]
            seen = "; ".join(f"{full_name(pod)}: {pods.status(pod)}" for pod in sorted_bad)
            space, name = first["metadata"]["namespace"], first["metadata"]["name"]
            do = f"scripts/doit why {'' if space == 'default' else f'{space}/'}pod/{name}"
            say = broken if any(pods.is_stuck(pod) for pod in bad) else waits
            if say is broken:
                return say(seen, do)
            waiting = say(seen, do)
        for one in self.objects["deployments"]:
            ready, wanted = one["status"].get("readyReplicas", 0), one["spec"]["replicas"]
            sets = {r["metadata"]["uid"] for r in self._owned_by_any(one)}
            if one is not self.deployment and ready < wanted and not owners & sets:
                return broken(f"{full_name(one)}: {ready}/{wanted} ready", f"scripts/doit why {full_name(one)}")
        return waiting if bad else works("")

    def _owned_by_any(self, owner: Any) -> list[Any]:
        uid = owner["metadata"]["uid"]
        return [
            one
            for one in self.objects["replicasets"]
            if uid in (r["uid"] for r in one["metadata"].get("ownerReferences", []))
        ]


def _labels(thing: Any) -> Mapping[str, str]:
    return thing["metadata"].get("labels") or {}


def _without(one: Any) -> str:
    """Return why there is no address to ask."""
    spec = one["spec"]
    if spec.get("type") == "ExternalName":
        return f"another name for {spec.get('externalName')}"
    return "headless" if spec.get("clusterIP") == "None" else f"{spec.get('clusterIP')}, no TCP port"


def _needs_a_node(pod: Any) -> bool:
    return not pod["spec"].get("nodeName") and _is_alive(pod)


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
