"""etcd 3.5 and containerd 1.7 and 2.x, as later releases of Debian have them, in place of the host's.

With the programs of a current release of Kubernetes (CURRENT_BIN=DIRECTORY) also what 1.20 rules out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import newer
from tests.e2e.conftest import ENVIRONMENT, doit, kubectl
from tests.e2e.own_host import CACHE

pytestmark = pytest.mark.long
CURRENT_BIN = os.environ.get("CURRENT_BIN", "")
# 1.20 is Debian's, and can be built here.
KUBERNETES = [f"bin_dir={CURRENT_BIN}"] if CURRENT_BIN else []
CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")


@pytest.fixture(params=newer.SUITES)
def programs(request: pytest.FixtureRequest) -> Path:
    """The directory of a suite's programs."""
    return programs_of(request.param)


def programs_of(suite: str) -> Path:
    directory = newer.of(suite, CACHE)
    if not directory.exists():
        pytest.skip(f"Debian {suite} could not be reached")
    return directory


@pytest.fixture(autouse=True)
def no_cluster(prepared: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end without a cluster; the release is that of the programs where there are current ones."""
    if CURRENT_BIN:
        monkeypatch.delitem(ENVIRONMENT, "DMUC_KUBERNETES")
    doit("clean")
    yield
    doit("clean")


def containerd(programs: Path) -> list[str]:
    """The settings that name containerd and its tools."""
    return [f"{name.replace('-', '_')}_bin={programs}/usr/bin/{name}" for name in CONTAINERD]


def state_of(component: str) -> str:
    """The line of a component in `doit status`."""
    return next(line for line in doit("status").stdout.splitlines() if line.startswith(component))


def test_the_main_job_with_newer_programs(programs: Path) -> None:
    etcd, engine = ((programs / name).read_text() for name in newer.PACKAGES)
    settings = [*KUBERNETES, "engine=containerd", f"etcd_bin={programs}/usr/bin/etcd", *containerd(programs)]
    if engine.startswith("2.") and not CURRENT_BIN:
        done = doit(*settings, "service_reachable", status=1)
        assert f"A kubelet of 1.20 needs CRI v1alpha2, which containerd {engine}" in done.stdout + done.stderr
        return
    done = doit(*settings, "service_reachable")
    assert f"etcd {etcd}, containerd {engine}" in done.stdout
    assert "answers: Welcome to nginx!" in done.stdout
    assert re.search(rf" {re.escape(etcd)} +ready", state_of("etcd"))
    assert f"containerd://{engine}" in kubectl("get", "nodes", "-o", "wide")
    assert "GET / HTTP" in kubectl("logs", "deployment/web")
    doit("why")
    doit("down")
    assert "answers: Welcome to nginx!" in doit().stdout


def pods() -> str:
    """The Pods, each with how often its container was started again."""
    return kubectl("get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status..restartCount}{end}")


def test_containerd_is_replaced_under_running_pods() -> None:
    suites = [suite for suite in newer.SUITES if CURRENT_BIN or suite != "sid"]
    doit(*KUBERNETES, "engine=containerd", "service_reachable")
    before = pods()
    for directory in [*map(programs_of, suites), None]:
        named = containerd(directory) if directory else [f"{name.replace('-', '_')}_bin=" for name in CONTAINERD]
        assert "✓ container_engine" in doit(*named, "service_reachable").stdout
        assert pods() == before


def test_etcd_reads_what_an_older_one_has_written_and_not_the_other_way_round() -> None:
    doit(*KUBERNETES, "apiserver", "kubeconfig")
    kubectl("create", "namespace", "kept")
    for directory in map(programs_of, newer.SUITES):
        done = doit(f"etcd_bin={directory}/usr/bin/etcd", "apiserver")
        assert f"etcd {(directory / 'etcd-server').read_text()}" in done.stdout and "✓ etcd" in done.stdout
        assert "kept" in kubectl("get", "namespaces")
    failed = doit("etcd_bin=", "apiserver", status=1)  # the host's, which is 3.4
    said = failed.stdout + failed.stderr
    assert "cluster cannot be downgraded" in said and "A newer etcd has written this data" in said
    doit(f"etcd_bin={programs_of('sid')}/usr/bin/etcd", "apiserver")
    assert "kept" in kubectl("get", "namespaces")
