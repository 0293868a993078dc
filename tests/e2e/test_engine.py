"""containerd with CNI in Docker's place, with 1.20, which knows both; and from the one to the other."""

from __future__ import annotations

import json
import os
import signal
from ipaddress import ip_address, ip_network
from typing import Any

from tests.e2e import host_picture
from tests.e2e.conftest import ENVIRONMENT, STATE, doit, executed, kubectl, pid_of

CONTAINERD, DOCKER = ("engine=containerd",), ("engine=docker",)


def the_pod() -> dict[str, Any]:
    pods = json.loads(kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
    assert len(pods) == 1
    return dict(pods[0])


def containers() -> list[tuple[str, int]]:
    """The Pod's containers, each with how often it was started again."""
    return [(status["containerID"], status["restartCount"]) for status in the_pod()["status"]["containerStatuses"]]


def inside(command: str) -> str:
    return doit("shell", "--", "sh", "-c", command, status=None).stdout


def links() -> set[str]:
    """The machine's bridges and what hangs on them."""
    return {name.strip() for name in inside("ls /sys/class/net").split()} - {"lo", "eth0"}


def test_from_nothing_with_containerd(before: host_picture.Picture) -> None:
    doit("clean")
    done = doit(*CONTAINERD, "service_reachable")
    assert "answers: Welcome to nginx!" in done.stdout
    assert not executed(doit(*CONTAINERD))
    pod = the_pod()
    assert ip_address(pod["status"]["podIP"]) in ip_network(ENVIRONMENT["DMUC_POD_RANGE"])
    assert containers()[0][0].startswith("containerd://")
    name, address = pod["metadata"]["name"], kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    assert '"GET / HTTP/1.1" 200' in kubectl("logs", name)
    assert kubectl("exec", name, "--", "hostname") == f"{name}\n"
    # A Pod reaches itself through its Service, and the API server through its own.
    assert "Welcome to nginx!" in kubectl("exec", name, "--", "wget", "-qO-", f"http://{address}")
    api = json.loads(kubectl("get", "service", "kubernetes", "-o", "json"))["spec"]["clusterIP"]
    asked = f"wget -qO- http://{api}:443 2>&1 || true"
    assert "400 Bad Request" in kubectl("exec", name, "--", "sh", "-c", asked)  # it wants TLS
    # Images of other registries come from ours, too.
    pulled = f"ctr -n k8s.io images pull --hosts-dir {STATE}/registries k8s.gcr.io/pause:3.2 && echo it is here"
    assert "it is here" in inside(pulled)
    # What people look with.
    assert "Everything works." in doit(*CONTAINERD, "why").stdout
    assert "1.6" in next(x for x in doit(*CONTAINERD, "status").stdout.splitlines() if "container_engine" in x)
    assert "100 answered" in doit(*CONTAINERD, "trace", "web").stdout
    assert "docker.io/library/nginx:latest" in inside("ctr -n k8s.io containers ls")
    assert "containerd successfully booted" in doit("logs", "container_engine").stdout
    refused = doit(*CONTAINERD, "tour", "--yes", status=3)
    assert "it needs Docker, and engine=containerd was set" in refused.stderr


def test_a_killed_containerd_comes_back_and_its_pods_have_not_noticed(before: host_picture.Picture) -> None:
    doit(*CONTAINERD, "service_reachable")
    were = containers()
    os.kill(pid_of("container_engine"), signal.SIGKILL)
    host_picture.wait_gone(pid_of("container_engine"))
    why = doit(*CONTAINERD, "why", status=1).stdout
    assert "cause: container_engine" in why and "next: scripts/doit container_engine" in why
    assert executed(doit(*CONTAINERD)) == {"container_engine"}
    assert containers() == were
    assert "Everything works." in doit(*CONTAINERD, "why").stdout


def test_from_one_engine_to_the_other_and_back(before: host_picture.Picture) -> None:
    doit(*CONTAINERD, "service_reachable")
    assert "cni0" in links()
    assert "answers: Welcome to nginx!" in doit(*DOCKER, "service_reachable").stdout
    assert containers()[0][0].startswith("docker://")
    now = links()
    assert "docker0" in now and "cni0" not in now and len(now) == 2  # and the Pod's own
    assert "/run/containerd/containerd.sock" not in inside("ps -e -o args")
    assert not executed(doit(*DOCKER))
    assert "answers: Welcome to nginx!" in doit(*CONTAINERD, "service_reachable").stdout
    assert containers()[0][0].startswith("containerd://")
    now = links()
    assert "cni0" in now and "docker0" not in now and len(now) == 2
    assert "dockerd" not in inside("ps -e -o args") and "docker0" not in inside("iptables-save")
    doit(*CONTAINERD, "clean", "container_engine")
    assert links() == set() and "containerd" not in inside("ps -e -o comm")
    assert [*(STATE / "containerd").iterdir()] == []
    doit("clean")
