"""machine=host: on the machine that you are on. Without root up to the scheduler; as root all of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e import host_picture
from tests.e2e.conftest import ENVIRONMENT, ROOT, User, doit, executed


def test_without_root_everything_up_to_the_scheduler_works(before: host_picture.Picture, user: User) -> None:
    try:
        done = user.doit("machine=host", "scheduler", "controller_manager", "deployment", "service")
        assert {"etcd", "apiserver", "controller_manager", "scheduler", "deployment", "service"} <= executed(done)
        kubeconfig = user.checkout / "var" / "host" / "kubeconfig"
        assert kubeconfig.stat().st_uid == user.uid
        kubectl: list[str | Path] = [user.checkout / "var" / "host" / "bin" / "kubectl", "--kubeconfig", kubeconfig]
        seen = subprocess.run([*kubectl, "get", "all"], capture_output=True, text=True, check=True).stdout
        assert "deployment.apps/web   0/1" in seen
        refused = user.doit("machine=host", "kubelet", status=3)
        assert "dockerd needs root." in refused.stderr
    finally:
        user.doit("machine=host", "clean")
    assert not (user.checkout / "var").exists()


def test_without_root_a_machine_of_its_own_is_refused(before: host_picture.Picture, user: User) -> None:
    done = user.doit("machine", status=1)
    assert "A machine of its own needs namespaces, links and mounts, and these need root." in done.stderr
    assert "machine=host" in done.stderr


def test_all_of_it_on_the_host(before: host_picture.Picture) -> None:
    # The host is a machine of ours here: no other program is affected.
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
