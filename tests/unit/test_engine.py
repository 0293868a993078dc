"""The container engines: what they are told, how they are taken back; and what the kubelet is told of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks import container_engine, facts, images, kubelet
from tasks.core import probe
from tasks.core.context import Context
from tasks.core.machine import Host, Machine
from tasks.core.process import start_time
from tasks.core.progress import Silent
from tasks.core.release import RELEASES
from tasks.engines import containerd, docker
from tasks.image_files.recipes import PAUSE
from tests.unit.support import a_context, eventually


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """In a machine of its own, in which nothing is done here."""
    return a_context(tmp_path, machine="one", engine="containerd", pod_range="10.32.0.0/24")


def files(context: Context) -> dict[str, str]:
    written = container_engine.CONTAINER_ENGINE.writes(context)
    return {str(path.relative_to(context.state)): text for path, text in written.items()}


def cri(context: Context) -> dict[str, Any]:
    config = tomllib.loads(files(context)["containerd.toml"])
    assert config["version"] == 2
    part: dict[str, Any] = config["plugins"]["io.containerd.grpc.v1.cri"]
    return part


# What they are told


def test_the_engine_that_is_chosen_is_the_one_that_is_started(context: Context) -> None:
    engines = {"docker": "dockerd", "containerd": "containerd"}
    for name, program in engines.items():
        chosen = replace(context, settings=replace(context.settings, engine=name))
        assert container_engine.CONTAINER_ENGINE.program_name(chosen) == program
        assert probe.simple(container_engine.CONTAINER_ENGINE.ready, chosen) == [
            container_engine.ENGINES[name].DAEMON.ready
        ]


def test_containerd_finds_its_plugins_networks_and_mirrors_where_we_put_them(context: Context) -> None:
    state = context.state
    assert cri(context)["cni"] == {"bin_dir": f"{state}/cni/bin", "conf_dir": f"{state}/cni/net.d"}
    assert cri(context)["registry"] == {"config_path": f"{state}/registries"}
    assert set(files(context)) == {"containerd.toml", "cni/net.d/10-dmuc.conflist", "registries/_default/hosts.toml"}


def test_the_pods_network_has_the_pods_range(context: Context) -> None:
    network = json.loads(files(context)["cni/net.d/10-dmuc.conflist"])
    bridge, portmap = network["plugins"]
    assert bridge["ipam"] == {"type": "host-local", "ranges": [[{"subnet": "10.32.0.0/24"}]]}
    assert (bridge["bridge"], portmap["type"]) == ("cni0", "portmap")
    assert network["cniVersion"] == "0.4.0"


@pytest.mark.parametrize("may", [True, False])
def test_without_the_right_to_lower_oom_scores_nobody_tries(
    context: Context, monkeypatch: pytest.MonkeyPatch, may: bool
) -> None:
    monkeypatch.setattr(containerd, "may_lower_oom_score", lambda: may)
    assert cri(context).get("restrict_oom_score_adj", False) is not may


@pytest.mark.parametrize(
    ("decided", "mirrors"),
    [
        ("none", ["http://127.0.0.1:5000"]),
        ("https://registry.example", ["http://10.95.0.1:5001", "http://127.0.0.1:5000"]),
    ],
)
def test_both_engines_ask_the_same_mirrors_in_the_same_order(
    context: Context, decided: str, mirrors: list[str]
) -> None:
    context.decide("registry", decided)
    hosts = tomllib.loads(files(context)["registries/_default/hosts.toml"])["host"]
    assert list(hosts) == mirrors
    assert all(host["capabilities"] == ["pull", "resolve"] for host in hosts.values())
    flags = [flag.text for flag in docker.flags(context)]
    assert [text for text in flags if "mirror" in text] == [f"--registry-mirror={mirror}" for mirror in mirrors]


# The images


def test_each_engine_is_asked_for_nginx_and_for_its_own_pause_image(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []

    def run(machine: Machine, *command: str, timeout: float) -> str:
        ran.append(command)
        return ""

    for module in (docker, containerd):
        monkeypatch.setattr(module, "run", run)
    names = {"docker": ["nginx:latest", "k8s.gcr.io/pause:3.2"], "containerd": ["docker.io/library/nginx:latest"]}
    names["containerd"].append(containerd.PAUSE)
    for name, wanted in names.items():
        ran.clear()
        chosen = replace(context, settings=replace(context.settings, engine=name))
        images.IMAGES.make(chosen, Silent())
        assert [command[-1] for command in ran if "pull" in command or "tag" in command][-1] == wanted[-1]
        assert any(command[-1] == wanted[0] for command in ran)
    assert f'sandbox_image = "{containerd.PAUSE}"' in files(context)["containerd.toml"]


def test_every_pause_image_that_is_asked_for_is_one_that_we_make() -> None:
    asked = {row.pause_image for row in RELEASES.values()} - {""}
    assert {name.rpartition(":")[2] for name in (*asked, containerd.PAUSE)} <= {*PAUSE.tags}
    assert set(PAUSE.repositories) == {"library/pause", "pause"}


# Taken back


def test_the_containers_of_one_containerd_end_and_no_others(tmp_path: Path) -> None:
    shim = tmp_path / "containerd-shim-runc-v2"
    shutil.copy("/bin/sh", shim)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    started: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for state in (ours, theirs):
            (state / "task").mkdir(parents=True)
            script = "sleep 1000 & echo $! > $4; wait; :"
            child = state / "child"
            command: list[str | Path] = [shim, "-c", script, "-id", "1", "-address", f"{state}/containerd.sock", child]
            process = subprocess.Popen(command)
            eventually(partial(_has_text, child), "it has a child")
            started[state] = (process, int(child.read_text()))
        containerd.end_containers(Host(), str(ours))
        assert started[ours][0].wait(10) == -9
        eventually(lambda: start_time(started[ours][1]) is None, "its container ends")
        assert not ours.exists()
        assert started[theirs][0].poll() is None and start_time(started[theirs][1]) is not None
        assert (theirs / "task").is_dir()
    finally:
        for process, pid in started.values():
            if process.poll() is None:
                os.kill(pid, 9)
                process.kill()
                process.wait()


def _has_text(file: Path) -> bool:
    return file.exists() and bool(file.read_text().strip())


def test_what_another_engine_has_left_goes_first(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    for name, engine in container_engine.ENGINES.items():
        daemon = replace(engine.DAEMON, take_back=partial(_remember, gone, name), prepare=None)
        monkeypatch.setattr(engine, "DAEMON", daemon)
    prepare, take_back = container_engine.CONTAINER_ENGINE.prepare, container_engine.CONTAINER_ENGINE.take_back
    assert prepare is not None and take_back is not None
    other = replace(context, settings=replace(context.settings, engine="docker"))
    for chosen, seen in ((context, []), (context, []), (other, ["containerd"]), (context, ["containerd", "docker"])):
        prepare(chosen)
        assert gone == seen
    take_back(other)  # it is containerd that has been there last
    assert gone[-1] == "containerd"
    kept = {path.name for path in container_engine.CONTAINER_ENGINE.keeps(other)}
    assert kept == {"containerd", "container_engine"}  # both have been there


def _remember(gone: list[str], name: str, context: Context) -> None:
    gone.append(name)


# The kubelet


REMOTE, SOCKET = "--container-runtime=remote", "--container-runtime-endpoint=unix:///run/containerd/containerd.sock"
V1 = "--fail-cgroupv1=false"


@pytest.mark.parametrize(
    ("release", "engine", "cgroup_v1", "told"),
    [
        ("1.19", "docker", True, []),
        ("1.20", "containerd", True, [REMOTE, SOCKET]),
        ("1.23", "containerd", False, [REMOTE, SOCKET]),
        ("1.24", "containerd", True, [SOCKET]),
        ("1.26", "containerd", True, [SOCKET]),
        ("1.27", "containerd", True, []),
        ("1.31", "containerd", True, []),
        ("1.34", "containerd", True, []),
        ("1.35", "containerd", True, [V1]),
        ("1.36", "containerd", True, [V1]),
        ("1.36", "containerd", False, []),
    ],
)
def test_the_kubelet_is_told_what_its_release_does_not_know_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, engine: str, cgroup_v1: bool, told: list[str]
) -> None:
    monkeypatch.setattr(kubelet, "has_cgroup_v1", lambda: cgroup_v1)
    context = a_context(tmp_path, machine="one", kubernetes=release, engine=engine)
    texts = {flag.text for flag in kubelet.flags(context)}
    assert sorted(texts & {REMOTE, SOCKET, V1}) == sorted(told)


def test_a_kubelet_of_another_release_is_told_what_that_one_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet, "has_cgroup_v1", lambda: True)
    context = a_context(tmp_path, machine="one", kubernetes="1.36", engine="containerd")
    context.programs_file.write_text(json.dumps({"kubelet": {"path": "/kubelet", "version": "v1.25.3"}}))
    texts = {flag.text for flag in kubelet.flags(context)}
    assert SOCKET in texts and V1 not in texts


@pytest.mark.parametrize(
    ("mounts", "v1"),
    [
        ("31 30 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", True),
        ("31 30 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", True),  # beside v1 ones
        ("30 29 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", False),
    ],
)
def test_which_cgroups_the_host_has(monkeypatch: pytest.MonkeyPatch, mounts: str, v1: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, *encoding: mounts)
    assert facts.has_cgroup_v1() is v1
