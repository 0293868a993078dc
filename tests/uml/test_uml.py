"""The main job on a second kernel: cgroup v2 alone, IPVS, iptables-legacy, every capability. See boot.py.

These tests build on each other, in this order, because a start takes minutes here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import host_picture
from tests.e2e.conftest import STATE, doit, kubectl, pid_of, shell
from tests.e2e.own_host import CACHE

IPVS = "proxy_mode=ipvs"
RECORD = CACHE / "results" / "uml.json"  # the cache is the real host's: all other files are gone at the end
LONG = 600.0  # seconds that one command may take here


@pytest.fixture(scope="module")
def jobs() -> Iterator[dict[str, object]]:
    """The seconds of each job; written at the end."""
    done: dict[str, object] = {}
    yield done
    host = f"user-mode Linux {platform.release()}, cgroup v2 alone"
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps({"host": host, "jobs": done}, indent=1) + "\n")


@contextmanager
def timed(jobs: dict[str, object], name: str) -> Iterator[None]:
    begin = time.monotonic()
    jobs[name] = {"result": "failed"}
    yield
    jobs[name] = {"result": "passed", "seconds": round(time.monotonic() - begin)}


@pytest.fixture(scope="module")
def before() -> host_picture.Picture:
    return picture()


def picture() -> host_picture.Picture:
    """This host, without the counters and files that this kernel's own life changes."""
    found = host_picture.take(roots=[Path("/tmp"), Path("/run")])
    return {
        name: lines for name, lines in found.items() if name in {"links", "addresses", "routes", "mounts", "processes"}
    }


def groups() -> list[str]:
    return [path.name for path in Path("/sys/fs/cgroup").iterdir() if path.is_dir()]


def test_this_is_another_kernel() -> None:
    kinds = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert "cgroup2" in kinds and "cgroup" not in kinds
    assert os.uname().nodename == "uml"


def test_thirty_times_in_a_row_the_machine_is_powered_on(jobs: dict[str, object], before: host_picture.Picture) -> None:
    with timed(jobs, "power on, 30 times"):
        for _ in range(30):
            doit("machine", timeout=LONG)
            doit("down", timeout=LONG)
        doit("clean", timeout=LONG)
    assert groups() == []
    assert not host_picture.difference_settled(before, picture, deadline=20)


def test_the_main_job_with_ipvs(jobs: dict[str, object], before: host_picture.Picture) -> None:
    doit(IPVS, "preflight", timeout=LONG)
    with timed(jobs, "main job"):
        done = doit(IPVS, "service_reachable", timeout=LONG)
    assert "answers: Welcome to nginx!" in done.stdout
    assert "(legacy)" in shell("iptables", "--version")


def test_ipvs_is_traced(jobs: dict[str, object]) -> None:
    with timed(jobs, "ipvs"):
        text = doit(IPVS, "trace", "web", timeout=LONG).stdout
        assert re.search(r"ClusterIP 10\.99\.\d+\.\d+:80/tcp", text)
        assert "IPVS rr (round robin) in ipset KUBE-CLUSTER-IP" in text
        assert "DNAT to 10.245.0." in text and re.search(r"100 requests, 100 answered|100/100|\b100\b", text)
        said = doit(IPVS, "why", timeout=LONG, status=None).stdout
        assert "default/web has its rules" in said and "Services are reached through ipvs" in said
        sets = shell("ipset", "save")
        assert "KUBE-CLUSTER-IP" in sets


def test_what_is_killed_is_healed(jobs: dict[str, object]) -> None:
    with timed(jobs, "healing"):
        for name in ("scheduler", "kube_proxy"):
            os.kill(pid_of(name), signal.SIGKILL)
            host_picture.wait_gone(pid_of(name))
        done = doit(IPVS, timeout=LONG)
        assert "✓ scheduler" in done.stdout and "✓ kube_proxy" in done.stdout and "✓ etcd" not in done.stdout


def test_down_and_back(jobs: dict[str, object]) -> None:
    uid = kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")
    with timed(jobs, "down and back"):
        doit("down", timeout=LONG)
        assert "answers: Welcome to nginx!" in doit(IPVS, "service_reachable", timeout=LONG).stdout
    assert kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.uid}") == uid


def test_clean_leaves_nothing(jobs: dict[str, object], before: host_picture.Picture) -> None:
    with timed(jobs, "clean"):
        doit("clean", timeout=LONG)
    assert not STATE.exists()
    assert groups() == []
    changes = host_picture.difference_settled(before, picture, deadline=20)
    assert not changes, changes
