"""The tour, on a real cluster: every step of the walk-through turns out as its chapter says."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tasks.tour.steps import CHAPTERS, CURRENT, load
from tests.e2e import host_picture
from tests.e2e.conftest import ENVIRONMENT, doit, executed, kubectl

CURRENT_BIN = os.environ.get("CURRENT_BIN", "")  # a directory with the programs of a current release


def test_the_whole_tour_holds(before: host_picture.Picture) -> None:
    doit("clean")
    told = doit("tour", "--yes", timeout=560).stdout
    steps = [step for chapter in load() for step in chapter.step]
    for number, step in enumerate(steps, 1):
        assert f"{number}/{len(steps)} {step.title} [{step.name}]" in told
    assert "\x1b" not in told
    assert max(len(line) for line in told.splitlines() if not line.startswith("  ")) <= 110
    # It has left a cluster to which nothing is to be added, made with the settings that it has remembered.
    done = doit()
    assert executed(done) == set(), done.stdout
    assert re.search(r"service_reachable +up to date: http://\S+ answers: Welcome to nginx!", done.stdout)
    assert kubectl("get", "nodes", "--no-headers").split()[:2] == ["e2e", "Ready"]
    doit("clean")


@pytest.mark.skipif(not CURRENT_BIN, reason="no current programs here; with some: CURRENT_BIN=DIRECTORY")
def test_the_whole_tour_of_current_kubernetes_holds(before: host_picture.Picture) -> None:
    doit("clean")
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "DMUC_KUBERNETES"}
    settings = f"bin_dir={CURRENT_BIN}"
    told = doit("tour", settings, "--yes", timeout=560, environment=environment).stdout
    steps = [step for chapter in load(CURRENT) for step in chapter.step]
    for number, step in enumerate(steps, 1):
        assert f"{number}/{len(steps)} {step.title} [{step.name}]" in told
    assert executed(doit(settings, environment=environment)) == set()
    doit("clean")


def test_a_step_that_turns_out_otherwise_fails_it(before: host_picture.Picture, tmp_path: Path) -> None:
    doit("clean")
    shutil.copytree(CHAPTERS, tmp_path / "own", ignore=shutil.ignore_patterns("*.py", "__pycache__", "current"))
    chapter = tmp_path / "own" / "2-api-server.toml"
    text = chapter.read_text()
    assert text.count("on 127.0.0.1:2379, this is") == 1
    chapter.write_text(
        text.replace("on 127.0.0.1:2379, this is", "on 127.0.0.1:4242, this is").replace("within = 20", "within = 2")
    )
    done = doit("tour", "--yes", f"--chapters={tmp_path / 'own'}", status=1)
    assert "✗ the step etcd did not end as expected: scripts/doit logs etcd" in done.stderr
    assert (
        "expected: it succeeds, its output matches /serving insecure client requests on 127.0.0.1:4242" in done.stderr
    )
    assert "serving insecure client requests on 127.0.0.1:2379" in done.stderr
    assert "[apiserver]" not in done.stdout
    # It stays as it is, and the tour does not go on as if nothing had been.
    assert "etcd" in doit("tour", "--yes", status=3).stderr
    doit("clean")


# What `doit why` is to say after each step: the one task that brings it further.
NEXT = {
    "machine": "etcd",
    "versions": "etcd",
    "apiserver-refused": "etcd",
    "etcd": "apiserver",
    "apiserver": "kubectl_proxy",
    "front-door": "deployment",
    "first-look": "deployment",
    "deployment": "controller_manager",
    "controller-manager-refused": "controller_manager",
    "controller-manager": "service_account",
    "no-token": "service_account",
    "token-disabled": "container_engine",
    "token-no-mount": "container_engine",
    "token-keys": "container_engine",
    "pending": "container_engine",
    "container-engine": "kubelet",
    "kubelet-alone": "kubelet",
    "kubeconfig": "kubelet",
    "kubelet": "scheduler",
    "still-pending": "scheduler",
    "binding": "scheduler",
    "scheduler": "service",
    "pod-answers": "service",
    "service": "kube_proxy",
    "kube-proxy": "",
    "chains": "",
    "kubernetes-service": "",
    "the-end": "",
}


def test_it_can_be_left_after_every_step_and_why_says_what_comes_next(before: host_picture.Picture) -> None:
    doit("clean")
    assert list(NEXT) == [step.name for chapter in load() for step in chapter.step]
    for name, following in NEXT.items():
        assert "scripts/doit tour continues from here" in doit("tour", "--yes", "--to", name).stdout
        why = doit("why", status=1 if following else 0).stdout
        assert why.splitlines()[-1] == (f"next: scripts/doit {following}" if following else "Everything works."), why
        assert len(why.splitlines()) <= 30, why
    doit("clean")
