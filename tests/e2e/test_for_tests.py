"""For people who test controllers: `doit reset`, the pytest plugin with its sample, the programs for envtest."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

import pytest

from tasks.core.certificates import Certificate, KeyPair, make
from tests.e2e.conftest import (
    ENVIRONMENT,
    KUBECONFIG,
    ROOT,
    STATE,
    doit,
    executed,
    kubectl,
    nothing_left,
    pid_of,
    shell,
    within,
)

SOON = 15.0  # seconds; 5 on a quiet machine


@pytest.fixture(autouse=True)
def begin_and_end(prepared: None) -> Iterator[None]:
    with nothing_left():
        yield


def test_reset_leaves_an_empty_api_server_with_the_same_certificates() -> None:
    doit("controller_manager")
    kubectl("create", "configmap", "mine")
    before = {path: path.read_bytes() for path in [*(STATE / "pki").iterdir(), KUBECONFIG]}
    began = time.monotonic()
    done = doit("reset")
    assert time.monotonic() - began < SOON
    assert "all objects are removed" in done.stdout
    assert executed(done) <= {"etcd", "apiserver", "roles", "controller_manager", "service_account"}
    assert "mine" not in kubectl("get", "configmaps")
    assert "default" in kubectl("get", "serviceaccounts")
    assert before == {path: path.read_bytes() for path in [*(STATE / "pki").iterdir(), KUBECONFIG]}
    assert not (STATE / "run" / "kubelet.pid").exists()


def test_reset_of_a_whole_node_removes_its_pods() -> None:
    doit("service_reachable")
    engine = pid_of("container_engine")
    doit("reset")
    assert kubectl("get", "deployments,pods") == ""
    assert re.search(r"e2e +Ready", kubectl("get", "nodes")) and pid_of("container_engine") == engine

    @within(60)
    def containers_are_gone() -> None:
        assert shell("docker", "ps", "-q") == ""

    containers_are_gone()
    assert "answers: Welcome to nginx!" in doit().stdout
    assert doit("why").stdout.endswith("Everything works.\n")


def test_without_a_cluster_there_is_nothing_to_reset() -> None:
    done = doit("reset", status=3)
    assert "there is nothing to reset" in done.stderr and not (STATE / "run" / "etcd.pid").exists()


@pytest.mark.parametrize("machine", ["e2e", "host.one"])
def test_the_sample_passes_twice(machine: str) -> None:
    ranges = {name: value for name, value in ENVIRONMENT.items() if machine == "e2e" or not name.endswith("_RANGE")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for options in (["--dmuc-keep"], []):
        done = subprocess.run(
            [*command, *options],
            cwd=ROOT / "docs" / "sample",
            env={**ranges, "DMUC_MACHINE": machine},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "3 passed" in done.stdout, done.stdout + done.stderr
        assert (ROOT / "var" / machine / "pki").exists() == bool(options)


def test_envtests_own_control_plane_runs_with_these_programs(tmp_path: Path) -> None:
    """As controller-runtime starts it: pkg/internal/testing/controlplane, the default arguments."""
    doit("apiserver")
    exported = dict(re.findall(r"^export (\w+)=(.*)$", doit("env").stdout, re.MULTILINE))
    assets = Path(exported["KUBEBUILDER_ASSETS"])
    programs = {name: str((assets / name).resolve()) for name in ("etcd", "kube-apiserver", "kubectl")}
    make(
        tmp_path,
        [
            Certificate("ca", "ca", "envtest"),
            Certificate("apiserver", "ca", "apiserver", server=["127.0.0.1"]),
            Certificate("admin", "ca", "admin", "system:masters", client=True),
            KeyPair("sa"),
        ],
    )
    etcd, server = (free_port() for _ in range(2))
    client = f"http://127.0.0.1:{etcd}"
    commands = [
        [
            *(programs["etcd"], f"--data-dir={tmp_path}/etcd", "--listen-peer-urls=http://localhost:0"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
        ],
        [
            *(programs["kube-apiserver"], f"--etcd-servers={client}", f"--secure-port={server}"),
            *("--advertise-address=127.0.0.1", "--bind-address=127.0.0.1", "--allow-privileged=true"),
            *("--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"),
            *("--disable-admission-plugins=ServiceAccount", f"--client-ca-file={tmp_path}/ca.crt"),
            *(f"--tls-cert-file={tmp_path}/apiserver.crt", f"--tls-private-key-file={tmp_path}/apiserver.key"),
            *(f"--service-account-key-file={tmp_path}/sa.pub", f"--service-account-signing-key-file={tmp_path}/sa.key"),
            f"--service-account-issuer=https://127.0.0.1:{server}/",
        ],
    ]
    tls = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    tls.load_cert_chain(tmp_path / "admin.crt", tmp_path / "admin.key")
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=tls))
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (tmp_path / f"{number}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
                )

        @within(60)
        def is_ready() -> None:
            assert opener.open(f"https://127.0.0.1:{server}/readyz", timeout=5).read() == b"ok"

        is_ready()
        found = json.loads(opener.open(f"https://127.0.0.1:{server}/api/v1/namespaces", timeout=5).read())
        assert "default" in {one["metadata"]["name"] for one in found["items"]}
    finally:
        for process in reversed(running):
            process.kill()
            process.wait(20)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
