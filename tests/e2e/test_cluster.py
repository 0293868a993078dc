"""The main job, and what keeps it true: from nothing to a page, and back to nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tasks.core.process import members
from tests.e2e import host_picture
from tests.e2e.conftest import (
    ENVIRONMENT,
    KUBECONFIG,
    ROOT,
    STATE,
    doit,
    executed,
    kubectl,
    make_checkout,
    pid_of,
    take,
)
from tests.unit.support import a_program, eventually

DAEMONS = ["etcd", "apiserver", "controller_manager", "container_engine", "kubelet", "scheduler", "kube_proxy"]
PUBLIC = [
    *("machine", "binaries", "pki", "etcd", "apiserver", "kubeconfig", "controller_manager", "service_account"),
    *("deployment", "container_engine", "images", "kubelet", "scheduler", "service", "kube_proxy"),
    "service_reachable",
]


def status() -> dict[str, str]:
    """What `doit list -s` says of each task of the walk-through: U or R. DNS, beyond it, is never asked for here."""
    lines = [line.split() for line in doit("list", "-s").stdout.splitlines()]
    found = {words[1]: words[0] for words in lines}
    assert found.pop("dns") == "R"
    return found


def get(url: str) -> str:
    """What the host is answered, asked through the link alone."""
    host = url.split("/")[2]
    route = subprocess.run(["ip", "route", "get", host], capture_output=True, text=True, check=True).stdout
    assert "dev e2e" in route, f"a packet for {host} would leave by another way: {route}"
    with urllib.request.urlopen(url, timeout=10) as result:
        return str(result.read().decode())


def web_uid() -> str:
    return kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")


# From nothing


def test_each_name_starts_what_it_needs_and_nothing_else(before: host_picture.Picture) -> None:
    assert set(status().values()) == {"R"}
    doit("etcd")
    assert [name for name, state in status().items() if state == "U"] == ["machine", "binaries", "pki", "etcd"]
    doit("kubelet")
    up = {name for name, state in status().items() if state == "U"}
    assert up == {"machine", "binaries", "pki", "etcd", "apiserver", "kubeconfig", "container_engine", "kubelet"}
    assert kubectl("get", "nodes", "--no-headers").split()[:2] == ["e2e", "Ready"]
    assert kubectl("get", "deployments").strip() == ""
    doit("clean")


def test_from_nothing_to_the_page(before: host_picture.Picture) -> None:
    done = doit("service_reachable")
    results = re.search(r"service_reachable .*(http://10\.99\.\d+\.\d+) answers: Welcome to nginx!", done.stdout)
    assert results, done.stdout
    assert list(status()) == PUBLIC
    assert set(status().values()) == {"U"}
    assert "<h1>Welcome to nginx!</h1>" in get(results[1])
    pod = json.loads(kubectl("get", "pods", "-o", "json"))["items"][0]["status"]["podIP"]
    assert pod.startswith("10.245.0.")
    assert "<h1>Welcome to nginx!</h1>" in get(f"http://{pod}/")


def test_a_second_run_executes_nothing(cluster: None) -> None:
    pids = {name: pid_of(name) for name in DAEMONS}
    done = doit("service_reachable")
    assert executed(done) == set()
    assert all(line.startswith("·") for line in done.stdout.splitlines()), done.stdout
    assert pids == {name: pid_of(name) for name in DAEMONS}


def test_only_the_link_and_its_routes_are_new_on_the_host(cluster: None, before: host_picture.Picture) -> None:
    now = take()
    changed = {section: set(now[section]) ^ set(before[section]) for section in before}
    # The kernel has entries for every link, and makes others when a part of it is first used: not ours to undo.
    changed["sysctls"] = {line for line in changed["sysctls"] if "/e2e/" not in line}
    for section in ("processes", "namespaces", "cgroups"):
        changed.pop(section)
    assert {line.split()[0] for line in changed.pop("links")} == {"e2e"}
    assert all("e2e" in line for line in changed.pop("addresses") | changed.pop("routes"))
    assert [line for line in changed.pop("files") if f"{STATE.parent}" not in line] == []
    assert {section: lines for section, lines in changed.items() if lines} == {}


# In it


def test_kubectl_from_the_host_and_inside(cluster: None) -> None:
    assert kubectl("get", "nodes", "--no-headers").split()[:2] == ["e2e", "Ready"]
    inside = doit("shell", "--", "sh", "-c", "hostname; kubectl get nodes --no-headers; kubectl version --short")
    lines = inside.stdout.splitlines()
    assert lines[0] == "e2e"
    assert lines[1].split()[:2] == ["e2e", "Ready"]
    assert lines[2:4] == ["Client Version: v1.20.2", "Server Version: v1.20.2"]


def test_the_commands_of_the_walk_through_can_be_typed(cluster: None) -> None:
    for command, seen in {
        "etcd -version": "etcd Version: 3.4",
        "kube-apiserver --version": "Kubernetes v1.20.2",
        "dockerd --version": "Docker version 20.10",
        "kubectl get all": "deployment.apps/web   1/1",
        "kubectl get pods -o wide": "10.245.0.",
        "docker run --rm nginx echo hello world": "hello world",
        "iptables -t nat -L OUTPUT": "KUBE-SERVICES",
        "iptables -t nat -L KUBE-SERVICES": "default/web",
        "cat ~/.kube/config": "server: https://10.98.0.2:6443",
        "kubectl exec deploy/web -- wget -q -O - localhost": "Welcome to nginx!",
        "kubectl logs deploy/web": "GET /",
    }.items():
        done = doit("shell", "--", "sh", "-c", command)
        assert seen in done.stdout + done.stderr, (command, done)
    assert doit("shell", "--", "false", status=1).stderr == ""


def test_ctrl_c_ends_a_command_in_the_machine_and_nothing_else(cluster: None) -> None:
    with subprocess.Popen(
        [ROOT / "scripts" / "doit", "shell", "--", "kubectl", "get", "pods", "--watch"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline().startswith("NAME")
        os.killpg(shell.pid, signal.SIGINT)  # as a terminal does
        assert "Traceback" not in shell.communicate(timeout=20)[1]
        assert shell.returncode != 0
    assert set(status().values()) == {"U"}


def test_nothing_gets_out_of_the_machine(cluster: None) -> None:
    # Names and foreign addresses fail at once; nothing is sent anywhere.
    done = doit("shell", "--", "ip", "route", "get", "192.0.2.99", status=2)
    assert "unreachable" in done.stderr
    began = time.monotonic()
    doit("shell", "--", "getent", "hosts", "registry.example", status=2)
    assert time.monotonic() - began < 3


def test_keys_are_private(cluster: None) -> None:
    assert STATE.stat().st_mode & 0o777 == 0o700
    files = [path for path in STATE.rglob("*") if path.is_file() and path.stat().st_size < 2**16]
    private = [path for path in files if re.search(b"PRIVATE KEY|client-key-data", path.read_bytes())]
    names = {str(path.relative_to(STATE)) for path in private}
    assert names >= {"kubeconfig", "kubeconfigs/kubelet", "pki/ca.key", "pki/etcd-ca.key", "pki/sa.key"}
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert "insecure-skip-tls-verify" not in KUBECONFIG.read_text()


def test_status_and_logs(cluster: None) -> None:
    text = doit("status").stdout
    for name in DAEMONS:
        assert re.search(rf"^{name} +{pid_of(name)} .* ready$", text.replace(" \n", "\n"), re.MULTILINE), text
    assert re.search(r"^pod +default/web-\S+ +Running e2e 10\.245\.0\.", text, re.MULTILINE), text
    assert "kubelet --kubeconfig=" in doit("logs", "kubelet").stdout
    assert "Logs: apiserver" in doit("logs", "nobody", status=3).stderr


# Healing


@pytest.mark.parametrize("name", DAEMONS)
def test_a_killed_daemon_is_healed_and_the_deployment_is_intact(cluster: None, name: str) -> None:
    uid, others = web_uid(), {other: pid_of(other) for other in DAEMONS if other != name}
    os.kill(pid_of(name), signal.SIGKILL)
    host_picture.wait_gone(pid_of(name))
    assert status()[name] == "R"
    info = doit("info", name, status=1).stdout
    assert "is gone" in info
    done = doit("service_reachable")
    assert name in executed(done)
    # Others may have waited for it to be whole again (a node without its engine is not Ready; an API server without
    # etcd answers no read for a while), but none was restarted, and nothing was created again.
    waited = {"roles", "schedulable", "service_account", "deployment", "service", "service_reachable"}
    assert executed(done) <= {*DAEMONS, *waited}, done.stdout
    assert web_uid() == uid
    assert others == {other: pid_of(other) for other in others}


def test_a_killed_machine_comes_back_with_its_objects(cluster: None) -> None:
    uid = web_uid()
    os.kill(pid_of("machine"), signal.SIGKILL)
    host_picture.wait_gone(pid_of("machine"))
    assert set(status().values()) == {"R", "U"}
    done = doit("service_reachable")
    assert set(DAEMONS) <= executed(done)
    assert web_uid() == uid


def test_down_and_back(cluster: None) -> None:
    uid = web_uid()
    doit("down")
    assert status()["machine"] == "R"
    assert not Path("/sys/class/net/e2e").exists()
    assert (STATE / "etcd").is_dir()
    doit("down")  # nothing to do is no error
    doit("service_reachable")
    assert web_uid() == uid


def test_a_hanging_daemon_is_restarted(cluster: None) -> None:
    pid = pid_of("scheduler")
    os.kill(pid, signal.SIGSTOP)
    assert "timed out" in doit("info", "scheduler", status=1).stdout
    doit("service_reachable")
    assert pid_of("scheduler") != pid
    host_picture.wait_gone(pid)


def test_a_forged_pidfile_is_neither_trusted_nor_obeyed(cluster: None) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        path = STATE / "run" / "scheduler.pid"
        first, rest = path.read_text().split("\n", 1)
        path.write_text(f"{other.pid}\n{rest.replace(first, str(other.pid), 1)}")
        doit("service_reachable")
        assert other.poll() is None, "a process that is not ours was ended"
        assert pid_of("scheduler") not in {other.pid, int(first)}
        host_picture.wait_gone(int(first))  # the one that no file named any more
    finally:
        other.kill()
        other.wait()


def test_another_program_or_setting_restarts_just_that_component(cluster: None, tmp_path: Path) -> None:
    pids = {name: pid_of(name) for name in DAEMONS}
    own = shutil.copy2((STATE / "bin" / "kube-scheduler").resolve(), tmp_path / "my-scheduler")
    setting = f"kube_scheduler_bin={own}"
    assert "have not been looked for" in doit("info", setting, "binaries", status=1).stdout
    done = doit(setting, "service_reachable")
    assert executed(done) == {"binaries", "machine", "packages", "scheduler"}, done.stdout  # the machine shows it
    assert f"its program must change: {own}" not in done.stdout
    assert f"{own} is wanted" in done.stdout
    assert {n for n in DAEMONS if pid_of(n) != pids[n]} == {"scheduler"}
    doit("service_reachable")  # and back


def test_clean_undoes_just_that_one(cluster: None) -> None:
    doit("clean", "kubelet")
    assert [name for name, state in status().items() if state == "R"] == ["kubelet"]
    assert not any((STATE / "kubelet").iterdir())
    assert kubectl("get", "nodes", "--no-headers").strip() == ""
    assert "kubelet" in executed(doit("service_reachable"))
    doit("clean", "service", "kube_proxy")
    assert doit("shell", "--", "iptables-save").stdout.count("KUBE-SVC") == 0
    assert executed(doit("service_reachable")) >= {"service", "kube_proxy"}


# Two at once, and what is in the way


def test_another_doit_at_work_is_said(cluster: None) -> None:
    doit("clean", "scheduler")
    command: list[str | Path] = [ROOT / "scripts" / "doit", "scheduler"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline()  # it has begun
        first.send_signal(signal.SIGSTOP)  # and goes on only when the other has been told of it
        try:
            done = doit("service_reachable", status=3)
        finally:
            first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert "Another doit is using it" in done.stderr and f"(pid {first.pid})" in done.stderr


def test_ranges_that_the_host_routes_are_refused(cluster: None) -> None:
    # The cluster that is up has taken some: another machine is told so, and nothing of it is left.
    ranges = ("link_range=10.97.0.0/30", "pod_range=10.246.0.0/24")
    done = doit("machine=e2e-two", *ranges, "service_range=10.99.128.0/17", "machine", status=1)
    assert "service_range=10.99.128.0/17 overlaps 10.99.0.0/16, which is already in use" in done.stderr
    assert not Path("/sys/class/net/e2e-two").exists()
    doit("machine=e2e-two", "clean")
    assert not (ROOT / "var" / "e2e-two").exists()


def test_two_clusters_side_by_side(cluster: None) -> None:
    # The second and the third have only a name: free ranges are chosen, and remembered.
    named = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("_RANGE")}
    try:
        assert "http://10.96." in doit("machine=e2e-two", "service_reachable", environment=named).stdout
        assert executed(doit("service_reachable")) == set()
        doit("machine=e2e-two", "down", environment=named)
        doit("machine=e2e-three", "machine", environment=named)
        assert "10.95.0.6" in doit("machine=e2e-three", "shell", "--", "hostname", "-I", environment=named).stdout
        assert "http://10.96." in doit("machine=e2e-two", "service_reachable", environment=named).stdout
        pid = pid_of("scheduler", ROOT / "var" / "e2e-two")
        os.kill(pid, signal.SIGKILL)
        host_picture.wait_gone(pid)
        why = doit("machine=e2e-two", "why", environment=named, status=1).stdout
        assert why.endswith("\nnext: scripts/doit machine=e2e-two scheduler\n")
    finally:
        doit("machine=e2e-two", "clean", environment=named)
        doit("machine=e2e-three", "clean", environment=named)
    assert executed(doit("service_reachable")) == set()


def test_a_checkout_can_be_anywhere(before: host_picture.Picture, tmp_path: Path) -> None:
    checkout = tmp_path / "where it's at"
    make_checkout(checkout)
    settings = ("machine=e2e-three", "link_range=10.97.0.0/30", "service_range=10.100.0.0/16", "engine=containerd")
    try:
        done = doit(*settings, "pod_range=10.246.0.0/24", "service_reachable", checkout=checkout)
        assert "answers: Welcome to nginx!" in done.stdout
    finally:
        doit(*settings, "clean", checkout=checkout)
    assert not (checkout / "var").exists()


def test_a_port_that_is_taken_is_named(cluster: None) -> None:
    doit("clean", "scheduler")
    listen = "import socket, time; s = socket.create_server(('', 10259)); print('up', flush=True); time.sleep(600)"
    taker = subprocess.Popen(
        [ROOT / "scripts" / "doit", "shell", "--", "python3", "-c", listen],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "up\n"
        done = doit("scheduler", status=1)
        assert "scheduler did not start" in done.stderr
        assert "exit code" in done.stderr
        assert "command: scripts/doit shell -- " in done.stderr
        assert "address already in use" in done.stderr
        assert "Known cause: " in done.stderr
    finally:
        doit("shell", "--", "pkill", "-f", "create_server")
        taker.wait(30)
    doit("service_reachable")


# Back to nothing


def interrupt(number: signal.Signals, at: str) -> None:
    """Start a run from nothing and end it with this signal as soon as its output has a line with `at`."""
    run = subprocess.Popen(
        [ROOT / "scripts" / "doit", "service_reachable"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if at in line:
            break
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == (130 if number == signal.SIGINT else -number), (out, err)
    assert "Traceback" not in err


def clean_and_compare(before: host_picture.Picture) -> None:
    began = time.monotonic()
    doit("clean")
    seconds = time.monotonic() - began
    left = host_picture.difference_settled(before, take, deadline=30)
    assert left == "", f"left on the host:\n{left}"
    assert seconds < 3, f"clean took {seconds:.1f} s"


def test_clean_leaves_no_trace(cluster: None, before: host_picture.Picture) -> None:
    clean_and_compare(before)
    doit("clean")  # nothing to do is no error


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (signal.SIGINT, "etcd "),
        (signal.SIGKILL, "machine "),
        (signal.SIGKILL, "apiserver "),
        (signal.SIGINT, "kubelet "),
        (signal.SIGKILL, "deployment "),
    ],
)
def test_an_interrupted_start_can_be_cleaned_and_continued(
    before: host_picture.Picture, number: signal.Signals, at: str
) -> None:
    interrupt(number, at)
    clean_and_compare(before)
    interrupt(number, at)
    assert "Welcome to nginx!" in doit("service_reachable").stdout
    for name in DAEMONS:
        pidfile, pid = STATE / "run" / f"{name}.pid", pid_of(name)
        program = Path(f"/proc/{pid}/exe").readlink()
        assert [other for other in members(pidfile) if Path(f"/proc/{other}/exe").readlink() == program] == [pid]
    clean_and_compare(before)


def test_clean_can_be_interrupted_and_repeated(cluster: None, before: host_picture.Picture, tmp_path: Path) -> None:
    pids = [pid_of(name) for name in DAEMONS]
    # An ip(8) that comes to no end when it is to delete the link: nothing runs any more then, and the rest is there.
    reached = tmp_path / "reached"
    script = f'case "$*" in *delete*) touch {reached}; exec sleep 600;; esac; exec {shutil.which("ip")} "$@"'
    a_program(tmp_path / "bin" / "ip", script)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    command: list[str | Path] = [ROOT / "scripts" / "doit", "clean"]
    with subprocess.Popen(command, env={**ENVIRONMENT, "PATH": path}, start_new_session=True) as clean:
        try:
            eventually(reached.exists, "clean has come to the link")
        finally:
            os.killpg(clean.pid, signal.SIGKILL)
    assert Path("/sys/class/net/e2e").exists() and STATE.exists()
    for pid in pids:
        host_picture.wait_gone(pid)
    clean_and_compare(before)
