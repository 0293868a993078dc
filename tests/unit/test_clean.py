"""`doit clean machine=host`, as root, as people type it: on a host of its own, with what a cluster has left there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tasks.core.process import Record, boot, marks
from tests.unit.checkout import Checkout
from tests.unit.private_host import on_a_private_host


def left_by_a_cluster(checkout: Checkout) -> subprocess.Popen[bytes]:
    """What is left when the programs are forgotten (`doit clean binaries`): kube-proxy's rules, and a running etcd."""
    checkout.state = checkout.root / "var" / "host"
    checkout.environment["DMUC_MACHINE"] = "host"
    for directory in ("run", "logs"):
        (checkout.state / directory).mkdir(parents=True)
    for name in ("etcd", "kube_proxy"):
        (checkout.state / "logs" / f"{name}.log").touch()
        (checkout.state / "run" / f"{name}.ran").write_text(boot())
    command = [sys.executable, "-IS", "-c", "input()"]
    record = checkout.state / "run" / "etcd.pid"
    etcd = subprocess.Popen(command, stdin=subprocess.PIPE, env=marks(record))
    Record.of(etcd.pid, command, {}).save(record)
    subprocess.run(["sh", "-euc", "iptables -N KUBE-SERVICES; iptables -A OUTPUT -j KUBE-SERVICES"], check=True)
    return etcd


def rules() -> str:
    return subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout


@on_a_private_host
def test_clean_works_when_the_programs_are_forgotten(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    etcd = left_by_a_cluster(checkout)
    done = checkout.doit("clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert etcd.wait(10) and "KUBE" not in rules()
    assert not checkout.state.exists()


@on_a_private_host
def test_clean_does_all_that_can_be_done_and_says_what_is_left(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    etcd = left_by_a_cluster(checkout)
    subprocess.run(["ip", "link", "add", "kube-ipvs0", "type", "bridge"], check=True)  # needs kube-proxy to go
    done = checkout.doit("clean")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "removing the cluster: kube_proxy failed, all else is done" in done.stderr
    assert "kube-ipvs0" in done.stderr and "ip link delete kube-ipvs0" in done.stderr
    assert etcd.wait(10) and "KUBE" not in rules()
    assert (checkout.state / "logs" / "kube_proxy.log").exists()
    for words in (["clean", "kube_proxy", "etcd"], ["clean"]):  # said as long as it is there
        done = checkout.doit(*words)
        assert done.returncode == 3 and "kube-ipvs0" in done.stderr and "kube_proxy: undone" not in done.stdout
    assert "etcd: undone" in checkout.doit("clean", "kube_proxy", "etcd").stdout
    subprocess.run(["ip", "link", "delete", "kube-ipvs0"], check=True)
    done = checkout.doit("clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert not checkout.state.exists()


@on_a_private_host
def test_the_state_may_be_on_another_disk(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    etcd = left_by_a_cluster(checkout)
    moved = checkout.state.rename(tmp_path / "disk")
    checkout.state.symlink_to(moved)
    done = checkout.doit("clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert etcd.wait(10) and not checkout.state.is_symlink() and not moved.exists()
