"""The way to a Service, on a real cluster: from kube-proxy's own rules, with requests that real Pods answer."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import doit, kubectl


@pytest.fixture
def four_pods(cluster: None) -> Iterator[None]:
    """The Deployment web has four replicas, all of them ready."""

    def scale(replicas: int) -> None:
        kubectl("scale", "deployment", "web", f"--replicas={replicas}")
        kubectl("rollout", "status", "deployment", "web", "--timeout=50s")

    scale(4)
    yield
    scale(1)


def test_four_pods_have_a_quarter_each(four_pods: None) -> None:
    text = doit("trace", "web").stdout
    for chain in ("OUTPUT, PREROUTING", "KUBE-SERVICES", "KUBE-SVC-"):
        assert f"└── {chain}" in text, text
    assert re.findall(r"── (\S+) +KUBE-SEP-", text) == ["1/4", "1/3", "1/2", "1"], text
    ends = re.findall(r"DNAT to (\S+):80, Pod (\S+) +(\S+) +(\d+)$", text, re.MULTILINE)
    assert {share for _, _, share, _ in ends} == {"1/4"}, text
    pods = kubectl(
        "get", "pods", "-l", "app=web", "-o", "jsonpath={range .items[*]}{.status.podIP} {.metadata.name}\n{end}"
    )
    assert {f"{ip} {name}" for ip, name, _, _ in ends} == set(pods.split("\n")) - {""}, text
    assert sum(int(number) for *_, number in ends) == 100, text
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[-1].endswith("100 requests, 100 answered")


def test_the_api_server_has_no_pod(cluster: None) -> None:
    text = doit("trace", "default/kubernetes").stdout
    assert re.search(
        r"DNAT to 10\.98\.0\.2:6443, an address in the Endpoints, not a Pod +1 +100$", text, re.MULTILINE
    ), text


def test_an_unknown_service_is_said(cluster: None) -> None:
    assert "Services: default/kubernetes, default/web." in doit("trace", "nosuch", status=3).stderr


def test_without_kube_proxy_there_is_no_way(cluster: None) -> None:
    doit("clean", "kube_proxy")
    said = doit("trace", "web", status=3).stderr
    assert "kube-proxy has written no rules" in said and "Run: scripts/doit kube_proxy" in said
    doit("service_reachable")
    assert "100 answered" in doit("trace", "web").stdout
