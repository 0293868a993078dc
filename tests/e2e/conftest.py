"""The real thing: real etcd, Kubernetes, Docker and nginx on a machine of its own, beside whatever else runs here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import host_picture

ROOT = Path(__file__).parents[2]
STATE = ROOT / "var" / "e2e"
KUBECONFIG = STATE / "kubeconfig"

# A machine and ranges that are not the default ones: a dmuc1 that runs in this checkout is left alone. Nothing is
# looked for outside: what is missing comes from Debian's packages.
ENVIRONMENT = {
    "DMUC_OBTAIN": "debian",
    "DMUC_REGISTRY": "local",
    **os.environ,
    "DMUC_MACHINE": "e2e",
    "DMUC_LINK_RANGE": "10.98.0.0/30",
    "DMUC_SERVICE_RANGE": "10.99.0.0/16",
    "DMUC_POD_RANGE": "10.245.0.0/24",
}

if os.geteuid() != 0:
    pytest.skip("the end-to-end tests power on a machine, which takes root", allow_module_level=True)


def doit(*arguments: str, status: int | None = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run scripts/doit as a user would; whatever happens, no traceback is shown."""
    done = subprocess.run(
        [ROOT / "scripts" / "doit", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    said = f"doit {' '.join(arguments)}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr, said
    assert status is None or done.returncode == status, said
    return done


def executed(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The tasks that did something in this run."""
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[1] for words in lines if len(words) > 2 and words[0] in {"✓", "✗"}}


def kubectl(*arguments: str) -> str:
    """Run the kubectl that was chosen, on the host."""
    command: list[str | Path] = [STATE / "bin" / "kubectl", "--kubeconfig", KUBECONFIG, *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "HOME": str(STATE / "home")},  # it keeps a cache there
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def pid_of(component: str) -> int:
    """The pid in the component's file."""
    return int((STATE / "run" / f"{component}.pid").read_text().splitlines()[0])


def take_beside(before: host_picture.Picture) -> host_picture.Picture:
    """The picture, in which the processes of others that have ended since `before` are still there: that is theirs."""
    now = take()
    for section in ("processes", "namespaces", "listening sockets"):
        now[section] = sorted({*now[section], *before[section]})
    return now


def take() -> host_picture.Picture:
    """The picture of the host, without the test run's own traces, and what else is at work (E2E_IGNORE=DIR:DIR)."""
    others = [Path(path) for path in os.environ.get("E2E_IGNORE", "").split(":") if path]
    return host_picture.take(ignore_files=[ROOT / ".pytest_cache", Path("/tmp/pytest-of-root"), *others])


@pytest.fixture(scope="session")
def prepared() -> Iterator[None]:
    """Nothing of us is on the host, and everything that is obtained once is there."""
    doit("clean")
    # Building Kubernetes takes minutes, once for each machine that the tests run on.
    doit("binaries", "_image_content", timeout=3600)
    doit("clean")
    yield
    doit("clean")


@pytest.fixture(scope="session")
def before(prepared: None) -> host_picture.Picture:
    """The picture of the host before anything ran."""
    return take()


@pytest.fixture
def cluster(before: host_picture.Picture) -> None:
    """The whole cluster is up."""
    doit("service_reachable")
