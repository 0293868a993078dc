"""Cluster DNS, on a real cluster. CoreDNS is no package of Debian's: COREDNS=PATH says where it is, or PATH."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from tests.e2e.conftest import doit, executed, kubectl

COREDNS = os.environ.get("COREDNS") or shutil.which("coredns") or ""
RESOLV_CONF = ("cat", "/etc/resolv.conf")


@pytest.mark.skipif(bool(shutil.which("coredns")), reason="coredns is on PATH")
def test_without_coredns_it_is_said_and_nothing_else_needs_it(cluster: None) -> None:
    done = doit("obtain=debian", "dns", status=1)
    said = done.stdout + done.stderr
    assert "has no Debian package" in said and "coredns_bin=PATH" in said, said
    assert executed(doit("service_reachable")) == set()


def a_new_pod() -> str:
    kubectl("rollout", "restart", "deployment", "web")
    kubectl("rollout", "status", "deployment", "web", "--timeout=50s")
    return kubectl("get", "pods", "-l", "app=web", "--sort-by=.metadata.creationTimestamp", "-o", "name").split()[-1]


def address(service: str) -> str:
    return kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIP}")


@pytest.mark.skipif(not COREDNS, reason="there is no program coredns: neither COREDNS=PATH nor on PATH")
def test_new_pods_know_services_by_name(cluster: None) -> None:
    old = kubectl("get", "pods", "-l", "app=web", "-o", "name").split()[0]
    done = doit(f"coredns_bin={COREDNS}", "dns")
    assert "kubernetes.default.svc.cluster.local is 10.99.0.1, says 10.99.0.10" in done.stdout
    assert {"coredns", "kubelet", "dns"} <= executed(done)
    assert executed(doit()) == set()  # it is remembered, and up to date
    assert "10.99.0.10" not in kubectl("exec", old, "--", *RESOLV_CONF)

    new = a_new_pod()
    assert "nameserver 10.99.0.10" in kubectl("exec", new, "--", *RESOLV_CONF)
    for name in ("web", "kubernetes"):
        # ping says first what the C library has found.
        text = kubectl("exec", new, "--", "sh", "-c", f"ping -c 1 -W 1 {name} || true")
        assert f"PING {name} ({address(name)})" in text
    assert re.search(r"✓ coredns .*\n✓ dns +\S*kubernetes.default", doit("why").stdout)

    doit("clean", "dns")
    assert kubectl("get", "services,endpoints", "-n", "kube-system", "-o", "name") == ""
    assert executed(doit("service_reachable")) >= {"kubelet"}
    assert "10.99.0.10" not in kubectl("exec", a_new_pod(), "--", *RESOLV_CONF)
