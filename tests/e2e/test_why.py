"""`doit why` on the real thing: in each state that the tour passes through, and for each component that is killed."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from tests.e2e import host_picture
from tests.e2e.conftest import doit, kubectl, pid_of

SETTINGS = ("service_account=no-mount", "insecure_port=on")
PAGE = re.compile(r"^✓ page +http://10\.99\.\d+\.\d+:80/ answers: Welcome to nginx!$", re.MULTILINE)
DAEMONS = ["etcd", "apiserver", "controller_manager", "container_engine", "kubelet", "scheduler", "kube_proxy"]


def why(*arguments: str) -> str:
    """What it prints, within a screen; its status and its last line agree."""
    began = time.monotonic()
    done = doit("why", *arguments, status=None)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 28 and all(len(line) <= 110 for line in lines), done.stdout
    assert (done.returncode, lines[-1] == "Everything works.") in {(0, True), (1, False)}, done.stdout
    assert time.monotonic() - began < 10  # 2.5 s on a machine that has nothing else to do
    return done.stdout


def why_eventually(*parts: str, arguments: tuple[str, ...] = ()) -> str:
    """The same, as soon as all of these are in it; components need a moment to notice what has happened."""
    deadline = time.monotonic() + 60
    while True:
        text = why(*arguments)
        unwrapped = " ".join(text.split())
        if all(part in text or part in unwrapped for part in parts):
            return text
        assert time.monotonic() < deadline, f"not within 60 s: {parts}\n{text}"


def test_it_leads_through_the_tour(before: host_picture.Picture) -> None:
    doit("clean")
    try:
        evidence = {
            "machine": "(because of machine) not started",
            "binaries": "✗ binaries ",
            "etcd": "✗ apiserver          (because of etcd) not started",
            "apiserver": "cannot be asked: the API server does not answer",
            "kubectl_proxy": "✗ controller_manager (because of kubectl_proxy) not started",
            "deployment": "there is no Deployment",
            "controller_manager": "✗ replicaset         (because of controller_manager) there is no ReplicaSet",
            "service_account": "cause: pod: no Pod: FailedCreate (event",
            "container_engine": "✓ pod                web-",
            "images": "✗ images             unix:///run/docker.sock",
            "kubelet": "✗ scheduled          (because of kubelet)",
            "scheduler": "Pending without the condition PodScheduled",
            "service": "✓ ready              web-",
            "kube_proxy": "no chain KUBE-SERVICES",
        }
        for task, seen in evidence.items():
            text = why_eventually(seen, f"\nnext: scripts/doit {task}\n", arguments=SETTINGS)
            assert not PAGE.search(text)
            if task == "service_account":
                assert "No API token found for service account" in " ".join(text.split())
            doit(*SETTINGS, task)
        doit(*SETTINGS, "service_reachable")
        assert PAGE.search(why_eventually("\nEverything works.\n", arguments=SETTINGS))
        assert "apiserver" not in why("web", *SETTINGS)
    finally:
        doit("clean")


def test_with_scheduling_by_hand_a_binding_is_missing(before: host_picture.Picture) -> None:
    settings = ("scheduling=manual",)
    try:
        doit(*settings, "deployment", "service_account", "images", "schedulable")
        text = why_eventually(
            "without the condition PodScheduled", "\nnext: scripts/doit binding\n", arguments=settings
        )
        assert not re.search("^. scheduler ", text, re.MULTILINE)
        doit(*settings, "binding")
        why_eventually("\nnext: scripts/doit service\n", arguments=settings)
    finally:
        doit("clean")


@pytest.mark.parametrize("name", [*DAEMONS, "registry"])
def test_a_killed_daemon_is_the_cause(cluster: None, name: str) -> None:
    pid = pid_of(name)
    os.kill(pid, signal.SIGKILL)
    host_picture.wait_gone(pid)
    task = "registry" if name == "registry" else name
    text = why()
    assert f"\ncause: {name}: its process (pid {pid}) is gone\n" in text
    assert text.endswith(f"\nnext: scripts/doit {task}\n")
    assert f"✗ {name:<18} its process (pid {pid}) is gone\n" in text
    # Nothing else is a cause, and what still works is said to.
    consequences = [line for line in text.splitlines() if line[0:1] == "✗" and f"✗ {name} " not in line]
    assert all(f"(because of {name})" in line for line in consequences), text
    assert PAGE.search(text), text
    if name in {"etcd", "apiserver"}:
        assert "cannot be asked" in text
    doit(task)
    doit("service_reachable")
    assert "\nEverything works.\n" in why_eventually("\nEverything works.\n")


def test_a_killed_machine_is_the_cause(cluster: None) -> None:
    pid = pid_of("machine")
    os.kill(pid, signal.SIGKILL)
    host_picture.wait_gone(pid)
    text = why()
    assert f"\ncause: machine: e2e is off: its first process (pid {pid}) is gone\n" in text
    assert text.endswith("\nnext: scripts/doit machine\n")
    assert "page:" in text and not PAGE.search(text)
    doit("machine", "etcd", "apiserver")
    # What the database says of the containers is from before.
    assert "container, ready" in why_eventually("cannot be checked without container_engine")
    doit("service_reachable")
    why_eventually("\nEverything works.\n")


def test_a_killed_kubectl_proxy_is_the_cause(before: host_picture.Picture) -> None:
    # From nothing: a restarted kubelet can call its Pod not Ready for a moment, and without the proxy that stays so.
    doit("clean")
    try:
        doit("insecure_port=on", "service_reachable")
        pid = pid_of("kubectl_proxy")
        os.kill(pid, signal.SIGKILL)
        host_picture.wait_gone(pid)
        text = why("insecure_port=on")
        assert f"\ncause: kubectl_proxy: its process (pid {pid}) is gone\n" in text
        assert text.endswith("\nnext: scripts/doit kubectl_proxy\n")
        assert PAGE.search(text), text
        doit("insecure_port=on")  # a controller manager that was not done with its start has ended, too
        why_eventually("\nEverything works.\n", arguments=("insecure_port=on",))
    finally:
        doit("clean")


def test_a_hanging_api_server_is_said_in_time(cluster: None) -> None:
    os.kill(pid_of("apiserver"), signal.SIGSTOP)
    try:
        text = why()
        assert re.search(r"^(cause|waiting for): apiserver: .*timed\sout$", text, re.MULTILINE | re.DOTALL), text
        assert text.endswith("\nnext: scripts/doit apiserver\n")
        assert PAGE.search(text), text
    finally:
        os.kill(pid_of("apiserver"), signal.SIGCONT)
    why_eventually("\nEverything works.\n")


def test_what_is_wrong_with_the_deployment_is_said_with_what_mends_it(cluster: None) -> None:
    kubectl("set", "image", "deployment/web", "nginx=nosuch")
    why_eventually("cause: container: ", "Failed to pull image", "next: scripts/doit shell -- kubectl set image ")
    kubectl("set", "image", "deployment/web", "nginx=nginx")
    why_eventually("\nEverything works.\n")
    kubectl("scale", "deployment", "web", "--replicas=0")
    text = why_eventually("the Deployment is scaled to 0", "✗ page ")
    repair = text.splitlines()[-1].removeprefix("next: scripts/doit ")
    doit(*repair.split())
    why_eventually("\nEverything works.\n", arguments=("web",))
    kubectl("create", "deployment", "ends", "--image=nginx", "--", "sh", "-c", "echo it is broken; exit 3")
    try:
        why_eventually("ended with exit code 3; its log ends: it is broken", arguments=("ends",))
        assert "Deployments: default/ends, default/web." in doit("why", "nosuch", status=3).stderr
    finally:
        kubectl("delete", "deployment", "ends")
    why_eventually("\nEverything works.\n")
