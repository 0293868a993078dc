"""What docs/network.md promises about Pods and Services, on both engines and each way of kube-proxy."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ENVIRONMENT, ROOT, doit, kubectl, nothing_left, shell, within
from tests.e2e.test_apis import apply

CURRENT_BIN = os.environ.get("CURRENT_BIN", "")
HOST, MACHINE, OUTSIDE = "10.98.0.1", "10.98.0.2", "192.0.2.80"
NO_PROGRAMS = pytest.mark.skipif(not CURRENT_BIN, reason="no current programs here; with some: CURRENT_BIN=DIRECTORY")
WAYS = [
    pytest.param(["engine=docker"], id="docker"),
    pytest.param(["engine=containerd"], id="containerd"),
    pytest.param([f"bin_dir={CURRENT_BIN}", "proxy_mode=iptables"], id="current-iptables", marks=NO_PROGRAMS),
    pytest.param([f"bin_dir={CURRENT_BIN}", "proxy_mode=nftables"], id="current-nftables", marks=NO_PROGRAMS),
]
PAGE = "/usr/share/nginx/html/index.html"


def replicas(name: str, number: int, **container: Any) -> dict[str, Any]:
    """A Deployment whose Pods answer with their names."""
    script = f"hostname > {PAGE}; exec nginx -g 'daemon off;'"
    one = {"name": "nginx", "image": "nginx", "command": ["sh", "-c", script], **container}
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    labels = {"of": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": number,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{**one, "readinessProbe": probe}], "terminationGracePeriodSeconds": 1},
            },
        },
    }


def service(name: str, of: str, **spec: Any) -> dict[str, Any]:
    spec = {"selector": {"of": of}, "ports": [{"port": 80}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module", params=WAYS, autouse=True)
def network(prepared: None, request: pytest.FixtureRequest) -> Iterator[None]:
    with nothing_left(), pytest.MonkeyPatch.context() as patch:
        if any(setting.startswith("bin_dir") for setting in request.param):
            patch.delitem(ENVIRONMENT, "DMUC_KUBERNETES")
        doit(*request.param, "service_reachable")
        apply(
            replicas("one", 1, ports=[{"containerPort": 80, "hostPort": 8081}]),
            replicas("two", 2),
            service("one", "one"),
            service("sticky", "two", sessionAffinity="ClientIP"),
            service("both", "two", type="NodePort", ports=[{"port": 80, "nodePort": 30080}]),
            service(
                *("local", "one"),
                type="NodePort",
                externalTrafficPolicy="Local",
                ports=[{"port": 80, "nodePort": 30081}],
            ),
            service("outside", "one", externalIPs=[OUTSIDE]),
            service("headless", "two", clusterIP="None"),
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "elsewhere"},
                "spec": {"type": "ExternalName", "externalName": "example.com"},
            },
        )
        for name in ("one", "two"):
            kubectl("rollout", "status", f"deployment/{name}", "--timeout=55s")
        yield
        doit("clean")


def names(of: str) -> list[str]:
    return kubectl("get", "pods", "-l", f"of={of}", "-o", "jsonpath={.items[*].metadata.name}").split()


def address(name: str) -> str:
    return kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}")


def pod_ip(name: str) -> str:
    return kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")


def from_pod(pod: str, where: str) -> str:
    return kubectl("exec", pod, "--", "wget", "-T", "5", "-t", "1", "-qO-", f"http://{where}/").strip()


ASK = """
import sys
from urllib.request import ProxyHandler, build_opener
print(build_opener(ProxyHandler({})).open(f"http://{sys.argv[1]}/", timeout=5).read().decode().strip())
"""


def from_machine(where: str) -> str:
    return shell(str(ROOT / ".venv" / "bin" / "python"), "-c", ASK, where).strip()


def from_host(where: str) -> str:
    return subprocess.run([sys.executable, "-c", ASK, where], capture_output=True, text=True, check=True).stdout.strip()


def answers(ask: Callable[[], str], *wanted: str) -> None:
    """Wait until the question gets one of these answers: rules are written a moment after an object is created."""

    @within(20)
    def look() -> None:
        assert ask() in wanted, wanted

    look()


def test_a_pod_reaches_itself_through_its_service() -> None:
    (pod,) = names("one")
    answers(lambda: from_pod(pod, address("one")), pod)


def test_a_pod_reaches_other_pods_by_their_addresses() -> None:
    (pod,) = names("one")
    for other in names("two"):
        assert from_pod(pod, pod_ip(other)) == other


def test_the_host_reaches_pods_and_services() -> None:
    (pod,) = names("one")
    assert from_host(pod_ip(pod)) == pod
    answers(lambda: from_host(address("one")), pod)
    answers(lambda: from_machine(address("one")), pod)


class Remembers(http.server.BaseHTTPRequestHandler):
    """A server on the host that answers with the address of who asks."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())

    def log_message(self, *_: object) -> None: ...


def test_a_pod_reaches_the_host_at_its_end_of_the_link() -> None:
    (pod,) = names("one")
    with http.server.ThreadingHTTPServer((HOST, 0), Remembers) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        assert from_pod(pod, f"{HOST}:{site.server_address[1]}") in {pod_ip(pod), MACHINE}
        site.shutdown()


def test_a_host_port_leads_to_the_pod() -> None:
    (pod,) = names("one")
    answers(lambda: from_host(f"{MACHINE}:8081"), pod)
    answers(lambda: from_machine(f"{MACHINE}:8081"), pod)
    assert from_pod(names("two")[0], f"{MACHINE}:8081") == pod


def test_a_node_port_is_on_all_addresses_of_the_node(request: pytest.FixtureRequest) -> None:
    two = names("two")
    answers(lambda: from_host(f"{MACHINE}:30080"), *two)
    assert from_machine(f"{MACHINE}:30080") in two
    assert from_pod(names("one")[0], f"{MACHINE}:30080") in two
    if "nftables" not in request.node.name:  # there kube-proxy leaves out the loopback
        assert from_machine("127.0.0.1:30080") in two


def test_a_local_node_port_keeps_the_clients_address() -> None:
    (pod,) = names("one")
    answers(lambda: from_host(f"{MACHINE}:30081"), pod)
    assert re.search(rf"^{re.escape(HOST)} .*GET /", kubectl("logs", pod), re.MULTILINE), kubectl("logs", pod)


def test_an_external_address_leads_to_the_service() -> None:
    (pod,) = names("one")
    # As a router of the network would send the packets.
    subprocess.run(["ip", "route", "add", OUTSIDE, "via", MACHINE], check=True)
    try:
        answers(lambda: from_host(OUTSIDE), pod)
    finally:
        subprocess.run(["ip", "route", "delete", OUTSIDE], check=True)


def test_a_client_stays_with_its_pod_where_the_service_says_so() -> None:
    (pod,) = names("one")
    answers(lambda: from_pod(pod, address("sticky")), *names("two"))
    assert len({from_pod(pod, address("sticky")) for _ in range(10)}) == 1
    assert {from_pod(pod, address("both")) for _ in range(30)} == set(names("two"))


def test_a_headless_service_lists_its_pods() -> None:
    assert address("headless") == "None"
    found = json.loads(kubectl("get", "endpoints", "headless", "-o", "json"))["subsets"][0]["addresses"]
    assert {one["ip"] for one in found} == {pod_ip(pod) for pod in names("two")}


def test_why_and_trace_agree() -> None:
    for name in ("one", "both", "sticky", "local", "outside"):
        assert doit("trace", name).returncode == 0, name
    assert doit("why").stdout.endswith("Everything works.\n")


def test_each_promise_is_on_the_page() -> None:
    page = Path(ROOT / "docs" / "network.md").read_text("utf-8")
    tests = [name for name in globals() if name.startswith("test_") and "promise" not in name and "why" not in name]
    assert set(re.findall(r"`(test_\w+)`", page)) == set(tests)
