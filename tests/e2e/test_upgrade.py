"""An upgrade in place, of a real cluster with a page that is asked for all the while, and a kubelet of one's own.

Only 1.20.2 is here. Its second build is a copy of each program in which "v1.20.2" was written over with "v1.20.3",
which is as long: other files, and they say so when they are asked for their version.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.core.process import Record
from tests.e2e import host_picture
from tests.e2e.conftest import ENVIRONMENT, ROOT, STATE, doit, executed, kubectl, pid_of
from tests.unit.support import a_program, eventually

COMPONENTS = {
    "apiserver": "kube-apiserver",
    "controller_manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
    "kubelet": "kubelet",
    "kube_proxy": "kube-proxy",
}
OTHERS = ("etcd", "container_engine")


@pytest.fixture(scope="module")
def newer(before: host_picture.Picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the second build."""
    doit("binaries")
    directory = tmp_path_factory.mktemp("v1.20.3")
    for name in (*COMPONENTS.values(), "kubectl"):
        program = directory / name
        program.write_bytes((STATE / "bin" / name).read_bytes().replace(b"v1.20.2", b"v1.20.3"))
        program.chmod(0o755)
    said = subprocess.run([directory / "kubelet", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["Kubernetes", "v1.20.3"]
    return directory


def since(component: str) -> float:
    record = Record.load(STATE / "run" / f"{component}.pid")
    assert record is not None and record.alive()
    return record.since


def pids() -> dict[str, int]:
    return {component: pid_of(component) for component in (*COMPONENTS, *OTHERS)}


def containers() -> list[str]:
    """Of each Pod that is there: which, and its containers, each with how often it was started again."""
    pods = json.loads(kubectl("get", "pods", "-o", "json"))["items"]
    return sorted(
        f"{pod['metadata']['uid']} {status.get('containerID')} {status['restartCount']}"
        for pod in pods
        for status in pod["status"].get("containerStatuses", [])
    )


def complete() -> tuple[dict[str, int], list[str]]:
    """Start the whole cluster with its one Pod and Debian's programs; return the components' pids, and the Pods."""
    doit("bin_dir=", "kubelet_bin=", "service_reachable")
    eventually(lambda: len(containers()) == 1, "the Pods of an earlier test are gone", 90)
    return pids(), containers()


def versions() -> dict[str, str]:
    """What the API server and the kubelet say of themselves."""
    node = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["status"]["nodeInfo"]
    server = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    return {"apiserver": server, "kubelet": node["kubeletVersion"]}


@contextmanager
def asking() -> Iterator[list[str]]:
    """Run a client in the machine that requests the Service's page ten times a second; return the answers."""
    results: list[str] = []
    address, end = (
        kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"),
        STATE / "end",
    )  # the machine has a /tmp of its own
    script = f"until [ -e {end} ]; do curl -s -m 1 -o /dev/null -w '%{{http_code}}\\n' {address}; sleep 0.1; done"
    command: list[str | Path] = [ROOT / "scripts" / "doit", "shell", "--", "sh", "-c", script]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield results
        finally:
            end.touch()
            results += (process.communicate(timeout=20)[0] or "").split()
            end.unlink()


def test_an_upgrade_in_place_goes_in_order_and_the_page_answers(before: host_picture.Picture, newer: Path) -> None:
    old, pods = complete()
    with asking() as results:
        done = doit("kubernetes=1.20.3", f"bin_dir={newer}")
    assert "Kubernetes v1.20.3" in done.stdout and "answers: Welcome to nginx!" in done.stdout
    new = pids()
    assert {component for component in new if new[component] != old[component]} == {*COMPONENTS}
    assert since("apiserver") < min(since("controller_manager"), since("scheduler"))
    assert max(since("controller_manager"), since("scheduler")) < since("kubelet") < since("kube_proxy")
    assert versions() == {"apiserver": "v1.20.3", "kubelet": "v1.20.3"}
    assert containers() == pods
    assert len(results) > 10 and {*results} == {"200"}
    assert not executed(doit("kubernetes=1.20.3"))  # nothing is left to do


def test_with_ones_own_kubelet_only_the_kubelet_is_restarted(before: host_picture.Picture, newer: Path) -> None:
    old, pods = complete()
    done = doit(f"kubelet_bin={newer / 'kubelet'}", "service_reachable")
    assert "answers: Welcome to nginx!" in done.stdout
    new = pids()
    assert [component for component in new if new[component] != old[component]] == ["kubelet"]
    assert versions() == {"apiserver": "v1.20.2", "kubelet": "v1.20.3"}
    assert containers() == pods


def test_an_upgrade_that_fails_leaves_the_others_and_the_old_setting_heals_it(
    before: host_picture.Picture, newer: Path, tmp_path: Path
) -> None:
    old, pods = complete()
    broken = tmp_path / "broken"
    shutil.copytree(newer, broken)
    a_program(  # it says what it is, and does not run
        broken / "kube-scheduler",
        f'case $1 in --version|--help) exec {newer}/kube-scheduler "$1";; esac; echo not today; exit 7',
    )
    done = doit("kubernetes=1.20.3", f"bin_dir={broken}", status=None)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "scheduler did not start" in said and "not today" in said
    for component in ("kubelet", "kube_proxy", *OTHERS):  # those after it, and those that it does not concern
        assert pid_of(component) == old[component]
    assert executed(doit("bin_dir=")) >= {"apiserver", "scheduler"}
    assert versions() == {"apiserver": "v1.20.2", "kubelet": "v1.20.2"}
    assert containers() == pods
    doit("clean")
