"""security=rbac on the real thing: what users may do, which component may call which, renewed certificates."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest

from tasks.core import certificates
from tasks.core.certificates import Certificate
from tests.e2e import host_picture
from tests.e2e.conftest import STATE, doit, executed, kubectl, pid_of
from tests.unit.support import eventually

PKI = STATE / "pki"
DAEMONS = ["etcd", "apiserver", "controller_manager", "container_engine", "kubelet", "scheduler", "kube_proxy"]


def kubectl_as(kubeconfig: str, *arguments: str) -> tuple[bool, str]:
    """Run kubectl with another kubeconfig; return whether it succeeded, and its output."""
    command: list[str | Path] = [STATE / "bin" / "kubectl", "--kubeconfig", STATE / kubeconfig, *arguments]
    environment = {**os.environ, "HOME": str(STATE / "home")}
    pipe, to = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=to, text=True, timeout=60, check=False
    )
    return done.returncode == 0, done.stdout


def inside(script: str) -> str:
    """What a shell in the machine says."""
    done = doit("shell", "--", "sh", "-c", script, status=None)
    return done.stdout + done.stderr


def shows(name: str) -> str:
    """The words for curl with which it shows this certificate."""
    return f"--cert {PKI}/{name}.crt --key {PKI}/{name}.key"


def pids() -> dict[str, int]:
    return {name: pid_of(name) for name in DAEMONS}


def restarted(before: dict[str, int]) -> set[str]:
    return {name for name, pid in pids().items() if pid != before[name]}


# Who may do what


@pytest.mark.parametrize(
    ("who", "may", "may_not"),
    [
        ("kube-scheduler", "create pods --subresource=binding", "get secrets"),
        ("kube-proxy", "watch services", "get secrets"),
        ("kube-controller-manager", "create serviceaccounts --subresource=token", "create deployments"),
        ("kubelet", "patch nodes --subresource=status", "list secrets"),
    ],
)
def test_a_component_may_do_what_it_must_and_no_more(cluster: None, who: str, may: str, may_not: str) -> None:
    assert kubectl_as(f"kubeconfigs/{who}", "auth", "can-i", *may.split())[0]
    assert not kubectl_as(f"kubeconfigs/{who}", "auth", "can-i", *may_not.split())[0]


def test_a_node_changes_itself_and_no_other(cluster: None) -> None:
    assert kubectl_as("kubeconfigs/kubelet", "label", "node", "e2e", "mine=yes") == (True, "node/e2e labeled\n")
    other = STATE / "other.json"
    other.write_text(json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}}))
    kubectl("create", "-f", str(other))
    try:
        done, said = kubectl_as("kubeconfigs/kubelet", "label", "node", "other", "mine=yes")
        assert not done and 'node "e2e" is not allowed to modify node "other"' in said
    finally:
        kubectl("delete", "node", "other")
    assert not kubectl_as("kubeconfigs/kubelet", "get", "secrets", "--all-namespaces")[0]


def test_who_shows_no_certificate_gets_nothing(cluster: None) -> None:
    api = "https://10.98.0.2:6443/api/v1"
    assert inside(f"curl -sk -o /dev/null -w '%{{http_code}}' {api}/secrets") == "403"
    kubelet = "https://127.0.0.1:10250/pods"
    assert inside(f"curl -sk {kubelet} -w ' %{{http_code}}'") == "Unauthorized 401"
    assert "Forbidden (user=system:kube-scheduler" in inside(f"curl -sk {kubelet} {shows('kube-scheduler')}")


def test_etcd_answers_the_api_server_alone(cluster: None) -> None:
    assert inside("ss -lntpH").count('"etcd"') == 1  # no port for peers
    url, ca = "https://127.0.0.1:2379/version", f"--cacert {PKI}/etcd-ca.crt"
    refusals = {
        f"{ca} {shows('admin')} {url}": "certificate signed by unknown authority",
        f"{ca} {url}": "client didn't provide a certificate",
        url.replace("https", "http"): "first record does not look like a TLS handshake",
    }
    log = STATE / "logs" / "etcd.log"
    for asks, reason in refusals.items():
        before = log.read_text().count(reason)
        assert inside(f"curl -sS {asks}").startswith("curl: ("), asks
        eventually(lambda: log.read_text().count(reason) > before, reason)  # noqa: B023
    assert "curl: (7)" in inside("curl -sS http://127.0.0.1:2380/version")
    assert '{"etcdserver":' in inside(f"curl -sS {ca} {shows('apiserver-etcd-client')} {url}")


def test_logs_exec_and_port_forward(cluster: None) -> None:
    assert "Welcome to nginx!" in kubectl("exec", "deploy/web", "--", "wget", "-q", "-O", "-", "localhost")
    assert "GET /" in kubectl("logs", "deploy/web")
    ask = "for try in $(seq 100); do curl -sf http://127.0.0.1:18080 && break; sleep 0.1; done"
    assert "Welcome to nginx!" in inside(f"kubectl port-forward deploy/web 18080:80 > /dev/null & {ask}; kill $!")


# A user


def test_a_user_deploys_in_her_namespace_and_nowhere_else(cluster: None) -> None:
    said = doit("user", "name=ada", "namespace=lovelace").stdout
    file = STATE / "users" / "ada"
    assert f"--kubeconfig {file} create deployment web --image=nginx" in said
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    assert doit("user", "name=ada", "namespace=lovelace").stdout == said  # and nothing is created again
    assert file.read_bytes() == before
    assert kubectl_as("users/ada", "create", "deployment", "hers", "--image=nginx")[0]
    assert kubectl_as("users/ada", "wait", "deployment/hers", "--for=condition=Available", "--timeout=60s")[0]
    assert kubectl_as("users/ada", "logs", "deploy/hers")[0]
    for words in (
        ("create", "deployment", "hers", "--image=nginx", "--namespace=default"),
        ("get", "pods", "--namespace=default"),
        ("get", "secrets", "--namespace=kube-system"),
        ("get", "nodes"),
        ("create", "namespace", "another"),
        ("create", "rolebinding", "more", "--clusterrole=admin", "--user=ada"),
    ):
        done, said = kubectl_as("users/ada", *words)
        assert not done and 'User "ada" cannot' in said, words
    assert executed(doit("service_reachable")) == set()
    kubectl("delete", "namespace", "lovelace", "--wait=false")


def test_bad_names_are_said(cluster: None) -> None:
    assert "name=Ada: not a valid name" in doit("user", "name=Ada", status=3).stderr
    assert "no setting called 'nam'" in doit("user", "nam=ada", status=None).stderr


# Certificates are renewed


def make_at(ahead: timedelta, *wanted: Certificate) -> None:
    """Renew these certificates as if the clock were ahead by `ahead`."""
    real = time.time
    with mock.patch.object(time, "time", lambda: real() + ahead.total_seconds()):
        certificates.make(PKI, wanted)


def component(name: str) -> Certificate:
    return Certificate(name, "ca", f"system:{name}", client=True)


def test_what_has_ended_or_is_not_valid_yet_is_renewed_and_its_readers_restarted(cluster: None) -> None:
    begun, key = pids(), (PKI / "kube-scheduler.key").read_bytes()
    make_at(-timedelta(days=400), component("kube-scheduler"))
    make_at(timedelta(hours=2), component("kube-proxy"))
    assert "kube-scheduler.crt expired on 20" in doit("info", "pki", status=1).stdout
    done = doit("service_reachable")
    assert executed(done) == {"pki", "kubeconfig", "scheduler", "kube_proxy"}, done.stdout
    assert restarted(begun) == {"scheduler", "kube_proxy"}
    assert (PKI / "kube-scheduler.key").read_bytes() == key
    assert executed(doit("service_reachable")) == set()


def test_when_all_has_ended_the_next_doit_renews_it(cluster: None) -> None:
    """The administrator's certificate has expired, too: then no client can use the API server."""
    begun = pids()
    admin = Certificate("admin", "ca", "admin", "system:masters", client=True)
    make_at(-timedelta(days=400), admin)
    text = doit("why", status=1).stdout
    assert re.search(r"^cause: pki: admin\.crt expired on 20", text, re.MULTILINE), text
    assert text.endswith("\nnext: scripts/doit pki\n")
    done = doit("service_reachable")
    assert executed(done) == {"pki", "kubeconfig"}, done.stdout
    assert restarted(begun) == set()
    assert kubectl("get", "nodes", "--no-headers").split()[0] == "e2e"


# The other way


def test_security_none_on_a_running_cluster_and_back(cluster: None, before: host_picture.Picture) -> None:
    uid = kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")
    pod = kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}")
    doit("user", "name=grace")
    none = ("security=none",)
    assert "Welcome to nginx!" in doit(*none, "service_reachable").stdout
    assert Path(f"/proc/{pid_of('etcd')}/cmdline").read_text().split("\0")[1:] == [""]
    assert f"--kubeconfig={STATE}/kubeconfig\0" in Path(f"/proc/{pid_of('scheduler')}/cmdline").read_text()
    assert executed(doit("service_reachable")) == set()  # the cluster remembers the setting
    assert "security=none" in doit("user", "name=grace", status=3).stderr
    assert kubectl_as("users/grace", "get", "secrets", "--namespace=kube-system")[0]  # as it says there
    assert "security: auto from now on (before: none)" in doit("security=", "service_reachable").stdout
    eventually(lambda: not kubectl_as("users/grace", "get", "secrets", "--namespace=kube-system")[0], "RBAC", 30)
    assert kubectl_as("users/grace", "get", "pods")[0]
    assert uid == kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")
    assert pod == kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}")
    doit("clean")
    assert not STATE.exists()
