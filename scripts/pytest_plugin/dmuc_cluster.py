"""A pytest plugin: tests on a cluster of dmuc, which starts before the first of them and is removed after the last.

In the project of the tests, whose environment needs only pytest:

    # pyproject.toml
    [tool.pytest.ini_options]
    pythonpath = ["../dmuc/scripts/pytest_plugin"]

    # conftest.py
    pytest_plugins = ["dmuc_cluster"]

Fixtures: `dmuc_cluster` (of the whole run), `dmuc_reset` (the same, without any object of another test) and
`dmuc_namespace` (a namespace for one test). What the cluster is follows from `dmuc_task` and `dmuc_settings`, which a
project can override in its conftest.py. With `pytest --dmuc-keep` the cluster goes on after the last test, and the next
run uses it again.
"""

from __future__ import annotations

import os
import subprocess
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_DOIT = Path(__file__).resolve().parents[1] / "doit"


@dataclass(frozen=True)
class DmucCluster:
    """A running cluster."""

    machine: str
    kubeconfig: Path
    environment: dict[str, str]  # KUBECONFIG, KUBEBUILDER_ASSETS and NO_PROXY, as `scripts/doit env` exports them

    def doit(self, *words: str) -> str:
        """Run scripts/doit with these words for this cluster, and return its output; fail the test when it fails."""
        return _doit(self.machine, *words)

    def kubectl(self, *words: str, text: str | None = None) -> str:
        """Run the cluster's kubectl, with `text` as its input, and return its output; fail the test when it fails."""
        kubectl = Path(self.environment["KUBEBUILDER_ASSETS"]) / "kubectl"
        cache = self.kubeconfig.parent / "home" / "cache"  # goes with the cluster
        return _run([str(kubectl), f"--kubeconfig={self.kubeconfig}", f"--cache-dir={cache}", *words], text)

    def reset(self) -> None:
        """Remove all objects: a fresh etcd. Certificates, addresses and images stay."""
        self.doit("reset")


def _doit(machine: str, *words: str) -> str:
    return _run([str(_DOIT), f"machine={machine}", *words])


def _run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(
        command, input=text or "", capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --dmuc-keep."""
    parser.getgroup("dmuc").addoption("--dmuc-keep", action="store_true", help="leave the cluster running at the end")


@pytest.fixture(scope="session")
def dmuc_machine(pytestconfig: pytest.Config) -> str:
    """The cluster's machine: DMUC_MACHINE, else one that belongs to this project (and to this worker of pytest-xdist).

    Without root it is one of any number of clusters on the host itself: an API server and controllers, but no node.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    name = f"t{zlib.crc32(str(pytestconfig.rootpath).encode()):08x}{worker}"
    return os.environ.get("DMUC_MACHINE") or (name if os.geteuid() == 0 else f"host.{name}")


@pytest.fixture(scope="session")
def dmuc_task() -> str:
    """The tasks of which what they need must run: `controller_manager` (no node), or `service_account schedulable`."""
    return "controller_manager"


@pytest.fixture(scope="session")
def dmuc_settings() -> Sequence[str]:
    """Settings of the cluster, such as kubernetes=1.36."""
    return ()


@pytest.fixture(scope="session")
def dmuc_cluster(
    dmuc_machine: str, dmuc_task: str, dmuc_settings: Sequence[str], pytestconfig: pytest.Config
) -> Iterator[DmucCluster]:
    """The cluster of this run: started now, removed at its end."""
    try:
        _doit(dmuc_machine, *dmuc_settings, *dmuc_task.split())
        exports = [line.removeprefix("export ") for line in _doit(dmuc_machine, "env").splitlines()]
        environment = {name: value.strip("'") for name, _, value in (line.partition("=") for line in exports)}
        yield DmucCluster(dmuc_machine, Path(environment["KUBECONFIG"]), environment)
    finally:
        if not pytestconfig.getoption("--dmuc-keep"):
            _doit(dmuc_machine, "clean")


@pytest.fixture
def dmuc_reset(dmuc_cluster: DmucCluster) -> DmucCluster:
    """The cluster, without any object of the tests before."""
    dmuc_cluster.reset()
    return dmuc_cluster


@pytest.fixture
def dmuc_namespace(dmuc_cluster: DmucCluster) -> Iterator[str]:
    """The name of a namespace for this test, which is deleted at its end."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    dmuc_cluster.kubectl("create", "namespace", name)
    yield name
    dmuc_cluster.kubectl("delete", "namespace", name, "--wait=false")
