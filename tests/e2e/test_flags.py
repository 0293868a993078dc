"""The user's own flags and programs, `doit restart` and `doit command`, on a cluster that goes on meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import STATE, command_line, doit, executed, kubectl, nothing_left, pid_of, shell, within

DAEMONS = (
    *("etcd", "apiserver", "controller_manager", "container_engine", "registry", "kubelet", "scheduler", "kube_proxy"),
)


@pytest.fixture(scope="module", autouse=True)
def one_cluster(prepared: None) -> Iterator[None]:
    with nothing_left():
        doit("service_reachable")
        yield
        doit("clean")


def pids() -> dict[str, int]:
    return {name: pid_of(name) for name in DAEMONS}


def container() -> str:
    """The container of the page, and when it was started."""
    status = "{.items[0].status.containerStatuses[0]"
    return kubectl("get", "pods", f"-o=jsonpath={status}.containerID}} {status}.state.running.startedAt}}")


def restarted(before: dict[str, int]) -> set[str]:
    return {name for name, pid in pids().items() if pid != before[name]}


def test_a_flag_restarts_its_component_alone_and_says_its_origin() -> None:
    before = pids()
    done = doit("kube_scheduler_flags=--v=4 --kube-api-qps=77")
    assert "kube_scheduler_flags: --v=4 --kube-api-qps=77 from now on (before: not set)" in done.stdout
    assert executed(done) == {"scheduler"} and restarted(before) == {"scheduler"}
    assert command_line("scheduler")[-2:] == ["--v=4", "--kube-api-qps=77"]
    assert "--v=4\n     Yours: kube_scheduler_flags= (an earlier run)." in doit("info", "scheduler").stdout
    assert executed(doit()) == set()
    assert executed(doit("kube_scheduler_flags=")) == {"scheduler"}
    assert "--v=4" not in command_line("scheduler")


def test_a_flag_of_dmuc_is_overridden() -> None:
    done = doit("kube_controller_manager_flags=--kube-api-burst=50", "controller_manager")
    assert executed(done) == {"controller_manager"}
    assert command_line("controller_manager")[-1] == "--kube-api-burst=50"
    said = doit("info", "controller_manager").stdout
    assert "Yours: kube_controller_manager_flags= (an earlier run); after dmuc's --kube-api-burst=300." in said
    doit("kube_controller_manager_flags=")


@pytest.mark.parametrize(
    ("setting", "seen", "do"),
    [
        ("kubelet_flags=--node-lables=a=b", "unknown flag: --node-lables", "Did you mean --node-labels?"),
        ("kube_apiserver_flags=--feature-gates=Nonsense=true", "unrecognized feature gate: Nonsense", "--help"),
        ("etcd_flags=--quota-backend-bytes", "flag needs an argument", "etcd --help"),
        ("kube_proxy_flags=--v=much", 'invalid argument "much"', "--help"),
        ("dockerd_flags=--nonsense", "unknown flag: --nonsense", "--help"),
    ],
)
def test_a_flag_that_the_program_refuses_stops_nothing(setting: str, seen: str, do: str) -> None:
    before = pids()
    done = doit(setting, status=3)
    name, _, value = setting.partition("=")
    assert done.stderr.startswith(f"✗ checking {name}={value} (command line)\n"), done.stderr
    assert seen in done.stderr and do in done.stderr
    assert "goes on as it is" in done.stderr
    assert restarted(before) == set()
    assert executed(doit()) == set()


@pytest.mark.parametrize("name", DAEMONS)
def test_restart_restarts_one_component_and_loses_nothing(name: str) -> None:
    before, page = pids(), container()
    done = doit("restart", name)
    assert executed(done) == {name} and restarted(before) == {name}
    assert "Welcome to nginx!" in doit("service_reachable").stdout
    assert container() == page
    assert "Everything works." in doit("why").stdout


def test_restart_takes_programs_and_several_names() -> None:
    before = pids()
    assert executed(doit("restart", "kube-proxy", "scheduler")) == {"kube_proxy", "scheduler"}
    assert restarted(before) == {"kube_proxy", "scheduler"}
    refused = doit("restart", "kubelt", status=3)
    assert "'kubelt' is not a component" in refused.stderr and "Did you mean kubelet?" in refused.stderr


@pytest.mark.parametrize("name", ["etcd", "apiserver", "kubelet"])
def test_a_pasted_command_line_runs_the_component(name: str, tmp_path: Path) -> None:
    text = doit("command", name).stdout
    assert text.startswith(f"# {name} runs like this: pid {pid_of(name)}\n")
    own = command_line(name)
    os.kill(pid_of(name), signal.SIGKILL)
    with (tmp_path / "output").open("wb") as output:
        pasted = subprocess.Popen(["sh", "-c", text], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:

            @within(60)
            def it_runs() -> None:
                assert pasted.poll() is None, (tmp_path / "output").read_text()
                found = [words for words in shell("ps", "-ww", "-eo", "args").splitlines() if own[1] in words]
                assert any(words.split()[1:] == own[1:] and own[0] in words.split()[0] for words in found), found

            it_runs()
            # The next run ends it, and starts the component again.
            assert name in executed(doit("service_reachable"))
            assert pasted.wait(timeout=20) is not None
        finally:
            pasted.kill()
    assert command_line(name) == own
    assert "Everything works." in doit("why").stdout


def test_a_wrapper_without_exec_is_one_component_with_its_program(tmp_path: Path) -> None:
    wrapper = tmp_path / "kube-scheduler"
    wrapper.write_text(f'#!/bin/sh\n"{(STATE / "bin" / "kube-scheduler").resolve()}" "$@"\n')
    wrapper.chmod(0o755)

    def running() -> list[str]:
        # The wrapper's own line names it, too.
        return [line for line in shell("ps", "-ww", "-eo", "comm").splitlines() if line == "kube-scheduler"]

    done = doit(f"kube_scheduler_bin={wrapper}")
    assert executed(done) >= {"scheduler"} and len(running()) == 2
    assert executed(doit()) == set()
    doit("restart", "scheduler")
    assert len(running()) == 2
    # When the program ends, so does the wrapper: the component is restarted.
    child = Path(f"/proc/{pid_of('scheduler')}/task/{pid_of('scheduler')}/children").read_text().split()
    os.kill(int(child[0]), signal.SIGKILL)
    assert executed(doit()) == {"scheduler"} and len(running()) == 2
    doit("kube_scheduler_bin=")
    assert len(running()) == 1
