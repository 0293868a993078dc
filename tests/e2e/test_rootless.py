"""As parts for tests: clusters up to the controller manager, without root, on free ports, several at once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.core.process import start_time
from tests.e2e import own_host
from tests.e2e.conftest import ROOT, User, a_user, executed

DAEMONS = {"etcd", "apiserver", "controller_manager"}
ONE, TWO = "machine=host.one", "machine=host.two"


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user who owns nothing else on this host."""
    return a_user(tmp_path / "checkout", 61001)


def left_of(user: User) -> list[str]:
    """The user's processes, and files outside of the checkout."""
    pids = [path.name for path in Path("/proc").glob("[0-9]*") if uid_of(path) == user.uid]
    processes = [
        pid for pid in pids if start_time(int(pid)) is not None
    ]  # where init does not reap, what has ended is there
    where = ("/tmp", "/var", "/run", "/dev/shm", "/home", "/root")
    runs = user.checkout.parents[2]  # pytest keeps those of its last runs, with the checkouts of this same user
    ours = [
        "-path",
        str(own_host.OWN),
        "-o",
        "-path",
        str(user.checkout),
        "-o",
        "-path",
        f"{runs}/*",
        "!",
        "-path",
        f"{user.checkout.parents[1]}*",
    ]
    command = ["find", *where, "(", *ours, ")", "-prune", "-o", "-uid", str(user.uid), "-print"]
    return [*processes, *subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


def uid_of(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def in_its_shell(user: User, machine: str, command: str, status: int = 0) -> str:
    """What the command prints in a shell that uses this cluster."""
    script = f'eval "$(scripts/doit env {machine})" && {command}'
    return user.run("sh", "-euc", script, status=status).stdout


def kubectl(user: User, machine: str, command: str) -> str:
    return in_its_shell(user, machine, f"$KUBEBUILDER_ASSETS/kubectl {command}")


def pids(user: User, machine: str) -> dict[str, int]:
    files = (user.checkout / "var" / machine).glob("run/*.pid")
    return {file.stem: int(file.read_text().split()[0]) for file in files}


def test_two_clusters_at_once_for_the_tests_of_a_controller(prepared: None, user: User) -> None:
    try:
        assert in_its_shell(user, ONE, "echo goes on", status=1) == ""  # and not with whatever cluster is at hand
        with ThreadPoolExecutor() as pool:
            runs = list(pool.map(lambda machine: user.doit(machine, "controller_manager"), (ONE, TWO)))
        for machine, run in zip((ONE, TWO), runs, strict=True):
            assert executed(run) >= DAEMONS
            assert executed(user.doit(machine, "controller_manager")) == set()
            exported = user.doit("env", machine).stdout
            assert all(line.startswith("export ") for line in exported.splitlines()), exported
            # What envtest looks for; of the kubelet's and the engine's programs none was asked for.
            names = {"etcd", "kube-apiserver", "kubectl", "kube-controller-manager"}
            assert set(in_its_shell(user, machine, "ls $KUBEBUILDER_ASSETS").split()) == names
        servers = {
            kubectl(user, machine, "config view -o jsonpath={.clusters[].cluster.server}") for machine in (ONE, TWO)
        }
        assert len(servers) == 2
        assert not any(re.search(":6443$", server) for server in servers)

        the_sample_of_the_readme(user)
        assert "deployment.apps/sample" in kubectl(user, ONE, "get deployments -o name")
        assert kubectl(user, TWO, "get deployments,replicasets -o name") == ""

        what_an_ordinary_user_can_ask(user)
        one_that_is_killed_heals(user)
        for machine in ("host.one", "host.two"):
            user.doit("clean", f"machine={machine}")
            assert not (user.checkout / "var" / machine).exists()
        assert left_of(user) == []
    finally:
        for machine in (ONE, TWO):
            user.doit("clean", machine)


def the_sample_of_the_readme(user: User) -> None:
    block = (ROOT / "README.md").read_text().partition("<!-- sample:")[2]
    sample = re.search(r"```python\n(.*?)```", block, re.DOTALL)
    assert sample is not None
    (user.checkout / "test_sample.py").write_text(sample[1])
    test = f"{sys.executable} -m pytest -q -p no:cacheprovider test_sample.py"
    assert "1 passed" in in_its_shell(user, ONE, test)


def what_an_ordinary_user_can_ask(user: User) -> None:
    status = user.doit(ONE, "status", status=1).stdout  # the scheduler does not run
    assert "kubelet" not in status  # nor can it: it takes root
    assert len(re.findall(r"^(?:etcd|apiserver|controller_manager) .* ready *$", status, re.MULTILINE)) == 3, status
    assert "etcd" in user.doit(ONE, "logs", "etcd").stdout
    listed = user.doit(ONE, "list", "-s").stdout
    assert re.search("^U controller_manager ", listed, re.MULTILINE)
    assert re.search("^R scheduler ", listed, re.MULTILINE)
    why = user.doit(ONE, "why", status=1).stdout
    assert "controller_manager" in why
    assert "needs root" in user.doit(ONE, "kubelet", status=3).stderr


def one_that_is_killed_heals(user: User) -> None:
    files = [user.checkout / "var" / machine / "decisions.json" for machine in ("host.one", "host.two")]
    ports, others = [file.read_text() for file in files], pids(user, "host.two")
    os.kill(pids(user, "host.one")["etcd"], signal.SIGKILL)
    assert "etcd" in executed(user.doit(ONE, "controller_manager"))
    assert "deployment.apps/sample" in kubectl(user, ONE, "get deployments -o name")
    assert executed(user.doit(TWO, "controller_manager")) == set()
    assert ([file.read_text() for file in files], pids(user, "host.two")) == (ports, others)


def test_two_users_and_a_port_that_another_process_takes(prepared: None, user: User, tmp_path: Path) -> None:
    other = a_user(tmp_path / "other", 61002)
    try:
        for one in (user, other):  # both with machine=host, each in a checkout of their own
            assert "etcd" in executed(one.doit("machine=host", "etcd"))
        first = listening(user.doit("machine=host", "etcd").stdout)
        assert first != listening(other.doit("machine=host", "etcd").stdout)
        user.doit("down", "machine=host")
        with socket.create_server(("127.0.0.1", first)):
            assert listening(user.doit("machine=host", "etcd").stdout) != first
    finally:
        for one in (user, other):
            one.doit("clean", "machine=host")


def listening(said: str) -> int:
    found = re.search(r"127\.0\.0\.1:(\d+)", said)
    assert found is not None, said
    return int(found[1])


@pytest.mark.parametrize("what", ["not whole", "whole"])
def test_a_checkout_of_another_user(prepared: None, user: User, tmp_path: Path, what: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 61002, 61002)
    guest = User(61002, user.checkout)
    if what == "not whole":
        (user.checkout / ".venv").unlink()
        done = guest.run("env", f"HOME={home}", "scripts/doit", "list", status=3)
        assert "you have no permission to update it" in done.stderr
        return
    state = home / ".local" / "state" / "dmuc" / "host.guest"
    guest.run("env", f"HOME={home}", "scripts/doit", "machine=host.guest", "pki")
    assert (state / "pki" / "ca.crt").stat().st_uid == guest.uid
    guest.run("env", f"HOME={home}", "scripts/doit", "clean", "machine=host.guest")
    assert not state.exists()
