"""`doit why`: the one cause and the next task, for every state that the walk-through passes through, and many faults.

The API's objects are as a real cluster gave them, without the unused fields; the components are said to run or not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks import service
from tasks.commands import deployment_chain, diagnosis, why
from tasks.commands.deployment_chain import DeploymentChain
from tasks.commands.diagnosis import Diagnosis, Finding, Link, State, broken, unknown, waits, works
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.machine import Machine
from tasks.core.probe import Http
from tasks.core.process import Record
from tasks.core.result import Result
from tasks.kubelet import SCHEDULABLE
from tasks.proxies import netfilter
from tasks.service_account import SERVICE_ACCOUNT
from tests.unit.support import a_context, a_program, load_dodo, set_programs

NEEDS = {
    "machine": (),
    "etcd": ("machine",),
    "apiserver": ("etcd",),
    "controller_manager": ("apiserver",),
    "container_engine": ("machine",),
    "images": ("container_engine",),
    "registry": ("machine",),
    "kubelet": ("apiserver", "container_engine"),
    "scheduler": ("apiserver",),
    "kube_proxy": ("apiserver",),
}
RULES = """\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-LO - [0:0]
:KUBE-SVC-X - [0:0]
:KUBE-SEP-LO - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.82.0.7/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-LO
-A KUBE-SERVICES -d 10.82.0.8/32 -p tcp -m comment --comment "default/webby cluster IP" -m tcp --dport 80 -j KUBE-SVC-X
-A KUBE-SVC-LO -m comment --comment "default/web" -j KUBE-SEP-LO
-A KUBE-SEP-LO -p tcp -m comment --comment "default/web" -m tcp -j DNAT --to-destination 10.83.0.2:80
COMMIT
"""
NO_POD = """\
*filter
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.82.0.7/32 -p tcp -m comment --comment "default/web has no endpoints" -m tcp --dport 80 -j REJECT
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
"""
NO_TOKEN = 'Error creating: No API token found for service account "default", retry after the token is automatically c'
UNREADABLE = "cannot be asked: the API server does not answer: connection refused"

# Objects


def owned(uid: str) -> dict[str, Any]:
    return {"ownerReferences": [{"uid": uid}]}


def a_deployment(name: str = "web", image: str = "nginx", replicas: int = 1, ready: int = 0, seen: int = 1) -> Any:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "nginx", "image": image}]}}
    return {
        "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        "status": {"observedGeneration": seen, "readyReplicas": ready},
    }


def a_replica_set(*conditions: Any, replicas: int = 1, revision: int = 1, of: str = "web") -> Any:
    meta = {"name": f"{of}-{revision}", "namespace": "default", "uid": f"{of}-{revision}", **owned(of)}
    meta["annotations"] = {"deployment.kubernetes.io/revision": str(revision)}
    return {"metadata": meta, "spec": {"replicas": replicas}, "status": {"conditions": list(conditions)}}


def a_pod(*conditions: Any, node: str = "", container: Any = None, of: str = "web-1", ip: str = "10.83.0.2") -> Any:
    status: dict[str, Any] = {"phase": "Pending", "conditions": list(conditions), "podIP": ip}
    if container is not None:
        status["containerStatuses"] = [{"name": "nginx", "image": "nginx", **container}]
    labels = {"app": of.rpartition("-")[0]}
    meta = {"name": f"{of}-x", "namespace": "default", "uid": f"{of}-x", "labels": labels, **owned(of)}
    return {"metadata": meta, "spec": {"nodeName": node} if node else {}, "status": status}


def a_service(ip: str = "10.82.0.7", name: str = "web", port: int = 80, **selector: str) -> Any:
    spec = {"clusterIP": ip, "selector": selector or {"app": "web"}, "ports": [{"port": port, "protocol": "TCP"}]}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec}


def endpoints(*addresses: str, name: str = "web") -> Any:
    subsets = [{"addresses": [{"ip": ip} for ip in addresses]}] if addresses else None
    return {"metadata": {"name": name, "namespace": "default"}, "subsets": subsets}


def an_event(uid: str, reason: str, message: str, count: int = 1, at: str = "2026-11-23T09:48:13Z") -> Any:
    return {
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": message,
        "count": count,
        "lastTimestamp": at,
        "metadata": {"namespace": "default"},
    }


def condition(kind: str, status: str = "True", message: str = "") -> Any:
    return {"type": kind, "status": status, "message": message}


def waiting(reason: str, message: str = "", last: Any = None) -> Any:
    return {"state": {"waiting": {"reason": reason, "message": message}}, "lastState": last or {}}


RUNNING = {"state": {"running": {}}, "started": True}
READY_POD = a_pod(condition("PodScheduled"), condition("Ready"), node="dmuc1", container=RUNNING)
WEB = {"deployments": [a_deployment()], "replicasets": [a_replica_set()]}
SCHEDULED = {**WEB, "pods": [a_pod(condition("PodScheduled"), node="dmuc1")]}
RUNS = {**WEB, "deployments": [a_deployment(ready=1)], "pods": [READY_POD]}
COMPLETE = {**RUNS, "services": [a_service()], "endpoints": [endpoints("10.83.0.2")]}
EVERYTHING = tuple(NEEDS)
UP_TO_ENGINE = ("machine", "etcd", "apiserver", "controller_manager", "container_engine", "images", "registry")
UP_TO_KUBELET = (*UP_TO_ENGINE, "kubelet")


@pytest.fixture
def diagnose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that returns the diagnosis of a cluster with these objects, in which these components run."""

    def diagnose(
        objects: Mapping[str, Sequence[Any]] | None = COMPLETE,
        up: Collection[str] = EVERYTHING,
        *,
        wanted: str = "",
        token: str = "",
        taint: str = "",
        rules: str = RULES,
        page: str | None = None,
        **settings: Any,
    ) -> Diagnosis:
        context = a_context(tmp_path, **settings)
        context = replace(context, nodes=[replace(context.node, name="dmuc1")])
        monkeypatch.setattr(deployment_chain, "SERVICE_ACCOUNT", _goal(SERVICE_ACCOUNT, token))
        monkeypatch.setattr(deployment_chain, "SCHEDULABLE", _goal(SCHEDULABLE, taint))
        monkeypatch.setattr(netfilter, "run", partial(_listed, rules))
        monkeypatch.setattr(
            service,
            "ask",
            lambda context, address: Result(page is None, page or f"http://{address}/ answers"),
        )
        follower = DeploymentChain(context, wanted)
        links = follower.links()

        def read() -> Finding:
            if "apiserver" not in up or objects is None:
                return unknown(UNREADABLE)
            follower.objects = {kind: objects.get(kind, ()) for kind in deployment_chain._KINDS}
            return works("")

        links["objects"] = replace(links["objects"], check=read)
        for name, needs in NEEDS.items():
            found = works("pid 7") if name in up else broken("its process (pid 7) is gone")
            links[name] = Link(name, lambda found=found: found, f"scripts/doit {name}", needs, part=True)  # type: ignore[misc]
        ordered = [links[name] for name in why.CHAIN if name in links]
        diagnosed = Diagnosis(ordered)
        follower.refuse_unknown()
        return diagnosed

    return diagnose


def _listed(rules: str, machine: Machine, *command: str, timeout: float) -> str:
    """What iptables-save has printed; there are no rules of nftables."""
    if command[0] == "iptables-save":
        return rules
    raise DmucError(" ".join(command), "No such file or directory")


def _goal(goal: Any, lacks: str) -> Any:
    return replace(goal, holds=lambda context: Result(not lacks, lacks or "all is well"))


def told(found: Diagnosis, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed, of which every screen must hold: it is one, and it says at its end what to do."""
    status = diagnosis.show(found)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 28 and all(len(line) <= 110 for line in lines), text
    assert (status == 0) == (lines[-1] == "Everything works.")
    assert status == 0 or lines[-1].startswith("next: scripts/doit "), text
    return text


# The walk-through


@pytest.mark.parametrize(
    ("up", "objects", "next_task", "evidence"),
    [
        ((), None, "machine", "✗ etcd               (because of machine)"),
        (("machine",), None, "etcd", "✗ apiserver          (because of etcd)"),
        (("machine", "etcd"), None, "apiserver", UNREADABLE),
        (UP_TO_ENGINE[:3], {}, "deployment", "there is no Deployment"),
        (UP_TO_ENGINE[:3], {"deployments": [a_deployment()]}, "controller_manager", "0/1 ready"),
        (UP_TO_ENGINE[:4], WEB, "container_engine", "… pod "),
        (UP_TO_ENGINE[:5], SCHEDULED, "images", "✗ images "),
        (UP_TO_ENGINE, {**WEB, "pods": [a_pod()]}, "kubelet", "Pending without the condition PodScheduled"),
        (UP_TO_KUBELET, {**WEB, "pods": [a_pod()]}, "scheduler", "✗ scheduled          (because of scheduler)"),
        ((*UP_TO_KUBELET, "scheduler"), RUNS, "service", "no Service selects the Pods"),
        ((*UP_TO_KUBELET, "scheduler"), COMPLETE, "kube_proxy", "no chain KUBE-SERVICES"),
    ],
)
def test_the_walk_through_has_one_next_task_at_every_step(
    up: Sequence[str],
    objects: Any,
    next_task: str,
    evidence: str,
    diagnose: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = told(diagnose(objects, up, rules="*nat\nCOMMIT\n"), capsys)
    assert f"\nnext: scripts/doit {next_task}\n" in text
    assert re.sub(r"\s+", " ", evidence) in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    ("objects", "evidence"),
    [
        (WEB, "it has no token yet"),
        ({**WEB, "events": [an_event("web-1", "FailedCreate", NO_TOKEN, 16)]}, "FailedCreate (event, 16 times)"),
        (
            {**WEB, "replicasets": [a_replica_set(condition("ReplicaFailure", message=NO_TOKEN))]},
            "ReplicaFailure: Error creating: No API token found",
        ),
        ({"deployments": [a_deployment()]}, "it has no token yet"),  # in the moment before there is a ReplicaSet
    ],
)
def test_a_missing_token_is_the_service_accounts(
    objects: Any, evidence: str, diagnose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(diagnose(objects, UP_TO_ENGINE[:4], token="it has no token yet"), capsys)
    assert "\nnext: scripts/doit service_account\n" in text
    assert evidence in text


def test_with_scheduling_by_hand_the_next_is_a_binding(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    up = [*UP_TO_KUBELET, "scheduler"]  # no other component is the cause
    text = told(diagnose({**WEB, "pods": [a_pod()]}, up, scheduling="manual"), capsys)
    assert "\nnext: scripts/doit binding\n" in text


@pytest.mark.parametrize(
    ("container", "events"),
    [
        (None, []),
        (waiting("ContainerCreating"), []),
        (waiting("ContainerCreating"), [an_event("web-1-x", "Pulling", 'Pulling image "nginx"')]),
        (waiting("ImagePullBackOff"), []),  # it is the right one: the kubelet tries again by itself
    ],
)
def test_what_only_takes_time_is_waited_for(
    container: Any, events: Any, diagnose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pod = a_pod(condition("PodScheduled"), node="dmuc1", container=container)
    objects = {**COMPLETE, "pods": [pod], "events": events, "endpoints": [endpoints()]}
    text = told(diagnose(objects, page="connection refused"), capsys)
    assert "waiting for: container: " in text
    assert "\nnext: scripts/doit service_reachable\n" in text
    assert "… page               (because of container) connection refused" in text
    assert all(event["message"] in text for event in events)


def test_a_complete_cluster_works(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(diagnose(), capsys)
    assert "✓ rules              default/web has its rules\n" in text
    assert "✓ page               http://10.82.0.7:80/ answers\n" in text
    assert set(re.findall(r"^\S", text, re.MULTILINE)) == {"✓", "E"}


# One component gone


@pytest.mark.parametrize("name", EVERYTHING)
def test_in_a_complete_cluster_the_one_that_is_gone_is_the_cause_and_the_page_is_told_truly(
    name: str, diagnose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    up = [other for other in EVERYTHING if other != name]
    # What a real cluster shows of it elsewhere, too.
    up = [other for other in up if name != "etcd" or other != "apiserver"]
    text = told(diagnose(up=up if name != "machine" else ()), capsys)
    assert f"\ncause: {name}: its process (pid 7) is gone\n" in text
    assert f"\nnext: scripts/doit {name}\n" in text
    assert text.count("✗") == len(re.findall(rf"^✗ (\w+ +\(because of )?{name}\b", text, re.MULTILINE))
    if name == "machine":
        assert "page: cannot be checked without machine" in re.sub(r"\s+", " ", text)
    else:  # also where the API cannot be asked: the rules know where
        assert "✓ page               http://10.82.0.7:80/ answers\n" in text


def test_what_the_kubelet_said_before_it_went_is_no_news(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(diagnose(up=[name for name in EVERYTHING if name != "kubelet"]), capsys)
    assert "? container, ready:  cannot be checked without kubelet\n" in text


# Other faults


def test_an_image_that_there_is_not(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = 'Failed to pull image "nosuch": rpc error: manifest unknown'
    objects = {
        "deployments": [a_deployment(image="nosuch", ready=1)],
        "replicasets": [a_replica_set(), a_replica_set(revision=2)],
        "pods": [
            READY_POD,
            a_pod(node="dmuc1", of="web-2", container={**waiting("ImagePullBackOff"), "image": "nosuch"}),
        ],
        "services": [a_service()],
        "endpoints": [endpoints("10.83.0.2")],
        "events": [
            an_event("web-2-x", "Failed", said),
            an_event("web-2-x", "Failed", "Error: ImagePullBackOff", at="2026-11-23T09:49:13Z"),
        ],
    }
    text = told(diagnose(objects), capsys)
    assert f"cause: container: ImagePullBackOff: Failed (event): {said}." in " ".join(text.split())
    assert "Images that are here: none. One of your own: scripts/doit load IMAGE|FILE;" in " ".join(text.split())
    assert "next: scripts/doit shell -- kubectl set image deployment/web nginx=nginx\n" in text
    assert "✓ page " in text  # the Pod from before still answers
    without = [name for name in EVERYTHING if name != "registry"]
    assert "\nnext: scripts/doit registry\n" in told(diagnose(objects, without), capsys)


def test_a_deployment_that_is_scaled_to_nothing(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    objects = {**COMPLETE, "deployments": [a_deployment(replicas=0)], "pods": [], "endpoints": [endpoints()]}
    text = told(diagnose(objects, rules=NO_POD, page="refused"), capsys)
    assert "cause: pod: the Deployment is scaled to 0" in text
    assert "next: scripts/doit shell -- kubectl scale deployment web --replicas=1\n" in text
    assert (
        "✗ rules              (because of pod) kube-proxy's rules for ClusterIP 10.82.0.7:80/tcp lead to no Pod" in text
    )


def test_a_service_that_kube_proxy_has_not_seen(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    objects = {**COMPLETE, "services": [a_service("10.82.0.9")]}
    text = told(diagnose(objects, page="timed out"), capsys)
    assert "waiting for: rules: kube-proxy has written no rules for ClusterIP 10.82.0.9:80/tcp\n" in text


def test_a_container_that_ends_again_and_again(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    crash = waiting("CrashLoopBackOff", last={"terminated": {"exitCode": 3, "reason": "Error"}})
    objects = {**COMPLETE, "pods": [a_pod(node="dmuc1", container=crash)], "endpoints": [endpoints()]}
    text = told(diagnose(objects), capsys)
    assert "cause: container: CrashLoopBackOff: nginx ended with exit code 3\n" in text
    assert "next: scripts/doit shell -- kubectl logs web-1-x -c nginx --previous\n" in text


def test_an_init_container_that_has_done_its_work_is_none_of_it(diagnose: Any) -> None:
    pod = a_pod(condition("Ready"), node="dmuc1", container=RUNNING)
    pod["status"]["initContainerStatuses"] = [{"name": "first", "state": {"terminated": {"exitCode": 0}}}]
    assert diagnose({**COMPLETE, "pods": [pod]}).cause is None


def test_a_pod_that_fails_its_readiness_probe(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pod = a_pod(condition("Ready", "False", "containers with unready status"), node="dmuc1", container=RUNNING)
    event = an_event("web-1-x", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404", 7)
    text = told(diagnose({**COMPLETE, "pods": [pod], "events": [event], "endpoints": [endpoints()]}), capsys)
    assert "cause: ready: web-1-x: Unhealthy (event, 7 times): Readiness probe failed" in text
    assert "✗ endpoints          (because of ready) the Service web has no endpoints" in text


def test_a_service_that_selects_nothing(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    objects = {**COMPLETE, "services": [a_service(app="other")], "endpoints": [endpoints()]}
    text = told(diagnose(objects), capsys)
    assert "cause: service: its selector is app=other; the Pods have the labels app=web\n" in text
    assert "next: scripts/doit shell -- kubectl set selector service web app=web\n" in text


@pytest.mark.parametrize(
    ("taint", "next_command"),
    [
        ("node.kubernetes.io/unschedulable", "scripts/doit shell -- kubectl uncordon dmuc1"),
        ("mine, theirs", "scripts/doit shell -- kubectl taint node dmuc1 mine- theirs-"),
    ],
)
def test_a_node_that_takes_no_pods(
    taint: str, next_command: str, diagnose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "0/1 nodes are available: 1 node(s) had taints that the pod didn't tolerate."
    objects = {**COMPLETE, "pods": [a_pod(condition("PodScheduled", "False", said))]}
    text = told(diagnose(objects, taint=f"node dmuc1 has the taint {taint}"), capsys)
    assert f"cause: node: node dmuc1 has the taint {taint}" in text
    assert f"next: {next_command}\n" in text
    assert "✗ scheduled          (because of node) web-1-x has no node, says the scheduler: 0/1 nodes" in text
    assert "cause: scheduled: web-1-x has no node, says the scheduler: 0/1 nodes" in told(diagnose(objects), capsys)


def test_a_change_that_is_not_followed_is_the_controller_managers(
    diagnose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    up = [name for name in EVERYTHING if name != "controller_manager"]
    text = told(diagnose({**COMPLETE, "deployments": [a_deployment(ready=1, seen=0)]}, up), capsys)
    assert "✗ replicaset         (because of controller_manager) the controller manager has not handled" in text


def test_a_port_without_a_listener(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(diagnose(page="http://10.82.0.7:80/ does not answer: connection refused"), capsys)
    assert "cause: page: http://10.82.0.7:80/ does not answer: connection refused\n" in text


# Which Deployment


def test_another_deployment_is_followed_by_its_name(diagnose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    objects = {**COMPLETE, "deployments": [a_deployment("other"), a_deployment(ready=1)]}
    text = told(diagnose(objects), capsys)
    assert "✓ deployment         default/web" in text
    assert "next: scripts/doit why default/other\n" in text
    for name in ("other", "default/other"):
        assert "… replicaset         there is no ReplicaSet" in told(diagnose(objects, wanted=name), capsys)


def test_an_unknown_deployment_is_said_with_those_that_there_are(diagnose: Any) -> None:
    objects = {**COMPLETE, "deployments": [a_deployment("other"), a_deployment()]}
    with pytest.raises(
        DmucError, match=r"no Deployment or Pod or Service called 'nosuch'\nDeployments: default/other, default/web\."
    ):
        diagnose(objects, wanted="nosuch")
    diagnose({}, wanted="web")  # that one is ours to create


# What it stands on


def test_a_process_that_is_gone_and_its_last_words(tmp_path: Path) -> None:
    context = a_context(tmp_path)
    program = a_program(tmp_path / "server", "exit 1")
    set_programs(context, {"server": program})
    daemon = Daemon("server", "serve", "server", lambda context: (), ready=Http("http://127.0.0.1:1/"))
    link = diagnosis.daemon(daemon, context)
    assert (link.name, link.do, link.check()) == ("server", "scripts/doit server", broken("not started", stays=True))
    for path in (context.logs, context.pidfiles):
        path.mkdir()
    daemon.log(context).write_text(
        "--- 1 server\nF1123 old\n--- 2 server\nI1123 all is well\n"
        "F1123 11:51:14.529527     225 controllermanager.go:294] leaderelection lost\n\ngoroutine 1 [running]:\n"
    )
    Record(2**22 + 1, 1, "", 0.0, [str(program)]).save(daemon.record(context))
    seen = link.check().evidence
    assert seen == f"its process (pid {2**22 + 1}) is gone; its log says: leaderelection lost"


def test_several_that_hang_cost_no_more_than_one() -> None:
    import threading

    together = threading.Barrier(3, timeout=20)

    def hang() -> Finding:
        together.wait()
        return works("")

    assert Diagnosis([Link(str(n), hang, "") for n in range(3)]).cause is None


def test_what_fails_for_the_sake_of_what_waits_waits_too() -> None:
    found = Diagnosis(
        [
            Link("a", lambda: waits("soon"), "wait"),
            Link("b", lambda: broken("not yet"), "mend", needs=("a",)),
            Link("c", lambda: works(""), "", asks=("b",)),
        ]
    )
    assert [found[name].state for name in "abc"] == [State.WAITS, State.WAITS, State.UNKNOWN]
    assert found.cause is not None and found.do(found.cause) == "wait"


def test_an_error_in_a_check_is_an_answer() -> None:
    def fail() -> Finding:
        raise DmucError("on dmuc1: iptables-save", "exit code 1")

    assert Diagnosis([Link("rules", fail, "")])["rules"] == broken("on dmuc1: iptables-save\nexit code 1")


def test_every_component_has_its_place_in_the_chain(tmp_path: Path) -> None:
    parts = load_dodo(tmp_path).PARTS
    assert {part.name for part in parts if isinstance(part, Daemon)} <= set(why.CHAIN)
