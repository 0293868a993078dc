"""machine=host: on the machine that you are on. Without root up to the scheduler; as root all of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e import host_picture
from tests.e2e.conftest import ENVIRONMENT, ROOT, doit, executed

NOBODY = 65534
# To read what is root's own here (the virtual environment, the cache), and nothing else.
UNPRIVILEGED = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *(
        "--bounding-set=-all,+dac_read_search",
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
    ),
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that belongs to somebody who is not root."""
    for name in ("dodo.py", "pyproject.toml", "tasks", "scripts", "requirements.lock"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tmp_path / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return tmp_path


def as_nobody(checkout: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {
        **{key: value for key, value in ENVIRONMENT.items() if not key.startswith("DMUC_") or key == "DMUC_OBTAIN"},
        "DMUC_REGISTRY": "local",
        "DMUC_CACHE": ENVIRONMENT.get("DMUC_CACHE", str(Path.home() / ".cache" / "dmuc")),
        "HOME": str(checkout),
    }
    command: list[str | Path] = [*UNPRIVILEGED, checkout / "scripts" / "doit", *arguments]
    done = subprocess.run(
        command, env=environment, cwd=checkout, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr, done
    assert done.returncode == status, done
    return done


def test_without_root_everything_up_to_the_scheduler_works(before: host_picture.Picture, checkout: Path) -> None:
    try:
        done = as_nobody(checkout, "machine=host", "scheduler", "controller_manager", "deployment", "service")
        assert {"etcd", "apiserver", "controller_manager", "scheduler", "deployment", "service"} <= executed(done)
        kubeconfig = checkout / "var" / "host" / "kubeconfig"
        assert kubeconfig.stat().st_uid == NOBODY
        kubectl: list[str | Path] = [checkout / "var" / "host" / "bin" / "kubectl", "--kubeconfig", kubeconfig]
        seen = subprocess.run([*kubectl, "get", "all"], capture_output=True, text=True, check=True).stdout
        assert "deployment.apps/web   0/1" in seen
        refused = as_nobody(checkout, "machine=host", "kubelet", status=1)
        assert "dockerd takes root." in refused.stderr
    finally:
        as_nobody(checkout, "machine=host", "clean")
    assert not (checkout / "var").exists()


def test_without_root_a_machine_of_its_own_is_refused(before: host_picture.Picture, checkout: Path) -> None:
    done = as_nobody(checkout, "machine", status=1)
    assert "A machine of its own takes namespaces, links and mounts, and these take root." in done.stderr
    assert "machine=host" in done.stderr


def test_all_of_it_on_the_host(before: host_picture.Picture) -> None:
    # The host is a machine of ours here: what happens to it happens to nobody else.
    doit("machine")
    cache = ENVIRONMENT.get("DMUC_CACHE", str(Path.home() / ".cache" / "dmuc"))
    settings = ("DMUC_OBTAIN=debian", "DMUC_REGISTRY=local", f"DMUC_CACHE={cache}", "DMUC_SERVICE_RANGE=10.99.0.0/16")
    inside = ("shell", "--", "env", *settings)
    there = (*inside, str(ROOT / "scripts" / "doit"), "machine=host")
    try:
        assert "Welcome to nginx!" in doit(*there, "service_reachable").stdout
        assert executed(doit(*there, "service_reachable")) == set()
        doit(*there, "clean")
        assert "KUBE" not in (rules := doit("shell", "--", "iptables-save").stdout)
        assert "DOCKER" not in rules
        assert doit("shell", "--", "sh", "-c", "ls -A /var/lib/docker /var/lib/kubelet").stdout.split() == [
            "/var/lib/docker:",
            "/var/lib/kubelet:",
        ]
        processes = doit("shell", "--", "ps", "-e", "-o", "comm=").stdout.split()
        assert sorted(processes) == ["ps", "sh", "sleep"]
    finally:
        doit("clean")
    assert not (ROOT / "var" / "host").exists()
