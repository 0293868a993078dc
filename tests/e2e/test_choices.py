"""The settings that choose another way, each on a real cluster."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

from tests.e2e import host_picture
from tests.e2e.conftest import STATE, command_line, doit, executed, kubectl, pid_of
from tests.unit.support import eventually


def the_pod() -> dict[str, object]:
    pods = json.loads(kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    assert len(alive) == 1
    return dict(alive[0]["spec"])


def test_the_insecure_port_and_the_flags_of_the_walk_through(before: host_picture.Picture) -> None:
    doit("clean")
    settings = ("insecure_port=on", "service_account=no-mount")
    done = doit(*settings, "service_reachable")
    assert "answers: Welcome to nginx!" in done.stdout
    master = "--master=http://localhost:8080"
    home = STATE / "home" / ".kube" / "config"
    swap = ["--fail-swap-on=false"] if len(Path("/proc/swaps").read_text().splitlines()) > 1 else []
    assert command_line("etcd") == ["etcd"]
    assert command_line("container_engine") == ["dockerd"]
    assert command_line("controller_manager") == ["kube-controller-manager", master]
    assert command_line("scheduler") == ["kube-scheduler", master]
    assert command_line("kube_proxy") == ["kube-proxy", master]
    assert command_line("kubelet") == ["kubelet", f"--kubeconfig={home}", *swap]
    # The commands of the walk-through, as printed there.
    for typed, seen in {
        "rm -r ~/.kube; kubectl get nodes": "e2e .* Ready",
        "kubectl get services": "kubernetes .* 443/TCP",
        "kubectl create deployment more --image=nginx": "deployment.apps/more created",
        "kubectl get all": "deployment.apps/more",
        "kubectl delete deployment more": "deleted",
        "kubectl config set-cluster localhost --server http://localhost:8080": "set",
        "kubectl config set-context localhost --cluster localhost": "created",
        "kubectl config use-context localhost": "Switched",
        "kubectl --server http://localhost:8080 get pods -o wide": "web-.* e2e ",
        "curl -s http://localhost:8080/version": "gitVersion",
    }.items():
        assert re.search(seen, doit("shell", "--", "sh", "-c", typed).stdout.replace("\n", " ")), typed
    # Each component, ended and then started by hand as on the slide, answers.
    for component, (typed, asked) in {
        "controller_manager": (
            "kube-controller-manager --master http://localhost:8080",
            "https://localhost:10257/healthz",
        ),
        "kubelet": (f"kubelet --kubeconfig ~/.kube/config {' '.join(swap)}", "http://localhost:10248/healthz"),
        "scheduler": ("kube-scheduler --master http://localhost:8080", "https://localhost:10259/healthz"),
        "kube_proxy": ("kube-proxy --master http://localhost:8080", "http://localhost:10256/healthz"),
        "container_engine": ("dockerd", "--unix-socket /run/docker.sock http://localhost/_ping"),
    }.items():
        os.kill(pid_of(component), signal.SIGTERM)
        host_picture.wait_gone(pid_of(component))
        ask = f"for try in $(seq 300); do curl -skf {asked} && echo it answers && break; sleep 0.1; done"
        done = doit("shell", "--", "sh", "-c", f"{typed} & {ask}; kill $!; wait", status=None)
        assert "it answers" in done.stdout, (component, done.stderr[-1000:])
    assert "answers: Welcome to nginx!" in doit(*settings).stdout
    # Without the setting the port is closed again, and the cluster works as before.
    done = doit("insecure_port=", "service_account=no-mount", "service_reachable")
    assert "answers: Welcome to nginx!" in done.stdout
    assert doit("shell", "--", "curl", "-sS", "http://localhost:8080/version", status=None).returncode == 7  # refused


def test_pods_without_a_token_and_without_an_account(before: host_picture.Picture) -> None:
    doit("service_account=no-mount", "service_reachable")
    account = json.loads(kubectl("get", "serviceaccount", "default", "-o", "json"))
    assert account["automountServiceAccountToken"] is False
    assert "secrets" not in account
    assert not any("private-key" in word for word in command_line("controller_manager"))
    assert the_pod()["serviceAccountName"] == "default" and "volumes" not in the_pod()
    # The cluster goes on, with another way: a new Pod has no account at all.
    doit("service_account=disabled", "service_reachable")
    assert "--disable-admission-plugins=ServiceAccount" in command_line("apiserver")
    kubectl("delete", "pod", "-l", "app=web")
    doit("service_reachable")  # the cluster remembers the setting
    assert "serviceAccountName" not in the_pod()
    # And with keys, the third: a new Pod has the token.
    doit("service_account=keys", "service_reachable")
    kubectl("delete", "pod", "-l", "app=web")
    doit("service_reachable")
    account = json.loads(kubectl("get", "serviceaccount", "default", "-o", "json"))
    assert "automountServiceAccountToken" not in account and len(account["secrets"]) == 1
    assert "default-token" in json.dumps(the_pod()["volumes"])


def test_a_replica_set_that_has_failed_for_long_is_not_waited_for(before: host_picture.Picture) -> None:
    doit("clean")
    doit("service_account=no-mount", "deployment", "controller_manager")
    kubectl("wait", "deployment/web", "--for=condition=ReplicaFailure", "--timeout=60s")
    first = kubectl("get", "replicaset", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.uid}")
    doit("service_account=no-mount", "service_account")
    kubectl("wait", "deployment/web", "--for=condition=Progressing", "--timeout=60s")
    assert first != kubectl("get", "replicaset", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.uid}")
    doit("service_account=no-mount", "service_reachable")


def test_scheduling_by_hand(before: host_picture.Picture) -> None:
    settings = ("service_account=no-mount", "scheduling=manual")
    doit(*settings, "service_reachable")
    assert not (STATE / "run" / "scheduler.pid").exists()
    assert "kube-scheduler" not in doit("shell", "--", "ps", "-e", "-o", "comm").stdout
    names = ("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}")
    first = kubectl(*names)
    kubectl("scale", "deployment", "web", "--replicas=2")
    eventually(lambda: kubectl(*names) != first, "a second Pod")
    assert "binding" in executed(doit(*settings))
    kubectl("rollout", "status", "deployment", "web", "--timeout=60s")
    (second,) = {*kubectl(*names).split()} - {first}
    selector = f"reason=Scheduled,involvedObject.name={second}"
    assert kubectl("get", "events", "--field-selector", selector, "-o", "name") == ""  # those are the scheduler's
    assert executed(doit("scheduling=")) >= {"scheduler"}  # and back
    doit("clean")
