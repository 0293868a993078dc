"""The container engines: what they are told, how they are taken back; and what the kubelet is told of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from plumbum import LocalPath

from tasks import container_engine, images, kubelet
from tasks.core import iptables, ownership, probe
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.machine import Host, Machine
from tasks.core.process import boot, marks, start_time
from tasks.core.progress import Silent
from tasks.core.release import RELEASES
from tasks.engines import containerd, docker
from tasks.engines.chosen import ENGINES
from tasks.image_files.recipes import PAUSE
from tests.unit.private_host import on_a_private_host
from tests.unit.support import a_context, a_host, a_program, on_machine


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
        assert probe.simple(container_engine.CONTAINER_ENGINE.ready, chosen) == [ENGINES[name].DAEMON.ready]


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
def test_without_the_right_to_lower_oom_scores_none_is_lowered(context: Context, may: bool) -> None:
    context = replace(context, facts=a_host(lacking_capabilities=[] if may else ["sys_resource"]))
    assert cri(context).get("restrict_oom_score_adj", False) is not may


@pytest.mark.parametrize(
    ("decided", "mirrors"),
    [
        ("none", ["http://127.0.0.1:5000"]),
        ("https://registry.example", ["http://127.0.0.1:5000", "http://10.95.0.1:5001"]),
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


# As a shim is: below it is a container, with an environment of its own. It has a socket in the engine's directory.
SHIM = """
import socket, subprocess, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
container = subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE, env={})
print(container.pid, flush=True)
input()
"""


class Shim:
    def __init__(self, socket: str, record: Path) -> None:
        Path(socket).parent.mkdir(parents=True, exist_ok=True)
        program = record.with_name("containerd-shim-runc-v2")
        if not program.exists():
            program.symlink_to(os.path.realpath(sys.executable))
        command = [str(program), "-IS", "-c", SHIM, socket, "-address", "/run/containerd/containerd.sock"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=marks(record))
        assert self.process.stdout is not None
        self.container = int(self.process.stdout.readline())

    def runs(self) -> tuple[bool, bool]:
        """Whether it runs, and its container."""
        return self.process.poll() is None, start_time(self.container) is not None


def sh(script: str) -> str:
    return subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout


def a_cluster_on_the_host(root: Path, engine: str) -> Context:
    """A host on which this engine of ours has run, and has come to its end; with a bridge as it makes one."""
    context = a_context(root, engine=engine, pod_range="10.73.0.0/24")
    context.logs.mkdir()
    context.pidfiles.mkdir()
    (context.logs / "container_engine.log").touch()
    (context.pidfiles / "container_engine.ran").write_text(boot())
    prepare = container_engine.CONTAINER_ENGINE.prepare
    assert prepare is not None
    for path in container_engine.CONTAINER_ENGINE.keeps(context):
        ownership.claim(Host(), path, context.state)
    prepare(context)
    bridge = ENGINES[engine].TRACES.bridge
    sh(f"ip link add {bridge} type bridge; ip address add 10.73.0.1/24 dev {bridge}")
    return context


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


@on_a_private_host
def test_on_the_host_all_of_ours_goes_and_nothing_of_others(tmp_path: Path) -> None:
    names = ("networks/podman/10.88.0.2", f"results/cni-loopback-{'b' * 64}-lo", f"results/podman-{'b' * 64}-eth0")
    theirs = [Path("/var/lib/cni", name) for name in names]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    context = a_cluster_on_the_host(tmp_path, "containerd")
    for name in (f"dmuc-{'a' * 64}-eth0", f"cni-loopback-{'a' * 64}-lo"):
        Path("/var/lib/cni/results", name).touch()
    Path("/var/lib/cni/networks/dmuc/10.73.0.2").touch()
    Path("/var/lib/containerd/image").touch()
    sh("mkdir /run/containerd/fs; mount -t tmpfs tmpfs /run/containerd/fs; ip link add cni-podman0 type bridge")
    ours = Shim("/run/containerd/s/1", container_engine.CONTAINER_ENGINE.record(context))
    theirs_too = Shim("/run/other/s/1", tmp_path / "other.pid")
    container_engine.CONTAINER_ENGINE.undo(context)
    assert ours.process.wait(10) == -9 and ours.runs() == (False, False)
    assert theirs_too.runs() == (True, True)
    assert not Path("/run/containerd").exists() and Path("/run/other/s/1").exists()
    assert links() == {"lo", "cni-podman0"}
    assert sorted(path for path in Path("/var/lib").rglob("*") if path.is_file()) == theirs
    container_engine.CONTAINER_ENGINE.undo(context)
    theirs_too.process.kill()


@on_a_private_host
def test_when_another_containerd_has_taken_its_place_nothing_of_that_is_touched(tmp_path: Path) -> None:
    # `doit machine=host engine=containerd`, `doit down`, Docker CE is started, `doit clean`. The mark is there still.
    context = a_cluster_on_the_host(tmp_path, "containerd")
    Path("/var/lib/containerd/image").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("/run/containerd/containerd.sock")
        listener.listen()
        shim = Shim("/run/containerd/s/1", tmp_path / "docker-ce.pid")
        for seen in (
            "unix:///run/containerd/containerd.sock accepts connections",
            "a socket there: /run/containerd/s/1",
        ):
            with pytest.raises(DmucError) as error:
                container_engine.CONTAINER_ENGINE.undo(context)
            assert seen in error.value.seen and "remove the file .dmuc" in error.value.do
            assert shim.runs() == (True, True)
            assert Path("/run/containerd/s/1").exists() and Path("/var/lib/containerd/image").exists()
            assert "cni0" in links()
            listener.close()  # then it is stopped, and its containers are not
    shim.process.kill()
    shim.process.wait()
    container_engine.CONTAINER_ENGINE.undo(context)
    assert not Path("/run/containerd").exists() and [*Path("/var/lib/containerd").iterdir()] == []


@on_a_private_host
def test_without_our_mark_in_its_directory_only_what_is_marked_goes(tmp_path: Path) -> None:
    # The host was booted since, and its own Docker has run; it does not now.
    context = a_cluster_on_the_host(tmp_path, "docker")
    Path("/run/docker/.dmuc").unlink()
    Path("/run/docker/netns").mkdir()
    Path("/var/lib/docker/image").touch()
    rules = sh("iptables -N DOCKER; iptables -A FORWARD -o docker0 -j DOCKER; iptables-save | grep -v '#'")
    container_engine.CONTAINER_ENGINE.undo(context)
    assert Path("/run/docker/netns").exists() and "docker0" in links()
    assert sh("iptables-save | grep -v '#'") == rules
    assert [*Path("/var/lib/docker").iterdir()] == []


@on_a_private_host
def test_a_bridge_with_another_address_is_not_ours(tmp_path: Path) -> None:
    context = a_cluster_on_the_host(tmp_path, "docker")
    sh("ip address flush docker0; ip address add 172.17.0.1/16 dev docker0")
    container_engine.CONTAINER_ENGINE.undo(context)
    assert "docker0" in links() and not Path("/run/docker").exists()


@on_a_private_host
def test_an_interrupted_undo_continues_the_next_time(tmp_path: Path) -> None:
    context = a_cluster_on_the_host(tmp_path, "docker")
    sh("iptables -N DOCKER; iptables -A FORWARD -o docker0 -j DOCKER")
    Path("/run/docker/netns").mkdir()
    path = os.environ["PATH"]
    machine = Fake(path_variable=f"{a_program(tmp_path / 'bin/iptables-restore', 'exit 4').parent}:{path}")
    with pytest.raises(DmucError, match="iptables-restore"):
        container_engine.CONTAINER_ENGINE.undo(on_machine(context, machine))
    container_engine.CONTAINER_ENGINE.undo(context)
    assert "DOCKER" not in sh("iptables-save") and not Path("/run/docker").exists() and links() == {"lo"}


@dataclass(frozen=True)
class Fake(Host):
    """The host, with another PATH."""

    path_variable: str = ""

    def enter(self) -> Sequence[str]:
        return ("/usr/bin/env", f"PATH={self.path_variable}")


@on_a_private_host
def test_where_another_engine_has_left_something_ours_is_not_started(tmp_path: Path) -> None:
    context = a_context(tmp_path, engine="containerd")
    Path("/run/containerd/io.containerd").mkdir(parents=True)
    prepare = container_engine.CONTAINER_ENGINE.prepare
    assert prepare is not None
    with pytest.raises(DmucError, match="/run/containerd already exists"):
        prepare(context)
    assert [path.name for path in Path("/run/containerd").iterdir()] == ["io.containerd"]
    Path("/run/containerd/io.containerd").rename("/run/containerd/s")  # where the shims of a Docker have their sockets
    prepare(context)


def test_what_another_engine_has_left_goes_first(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    monkeypatch.setattr(iptables, "remove", lambda machine, chains: gone.append(chains.names[:3]))
    monkeypatch.setattr(container_engine, "run", lambda *command: "[]")
    monkeypatch.setattr(ownership, "unmount_below", lambda machine, directory: None)
    here = on_machine(context, Elsewhere(disposable=True, root=context.state / "root"))
    prepare, clean_up = container_engine.CONTAINER_ENGINE.prepare, container_engine.CONTAINER_ENGINE.clean_up
    assert prepare is not None and clean_up is not None
    other = replace(here, settings=replace(here.settings, engine="docker"))
    for chosen, seen in ((here, []), (here, []), (other, ["CNI"]), (here, ["CNI", "DOC"])):
        prepare(chosen)
        assert gone == seen
    clean_up(other)  # it is containerd that has been there last
    assert gone[-1] == "CNI"
    kept = {path.name for path in container_engine.CONTAINER_ENGINE.keeps(other)}
    assert kept == {"containerd", "container_engine"}  # both have been there


@dataclass(frozen=True)
class Elsewhere(Host):
    """A machine whose files are below `root`."""

    root: Path = Path()

    def path(self, inside: str | Path) -> LocalPath:
        return LocalPath(f"{self.root}{inside}")


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
    tmp_path: Path, release: str, engine: str, cgroup_v1: bool, told: list[str]
) -> None:
    host = a_host(has_cgroup_v1=cgroup_v1)
    context = a_context(tmp_path, host=host, machine="one", kubernetes=release, engine=engine)
    texts = {flag.text for flag in kubelet.flags(context)}
    assert sorted(texts & {REMOTE, SOCKET, V1}) == sorted(told)


def test_a_kubelet_of_another_release_is_told_what_that_one_needs(tmp_path: Path) -> None:
    context = a_context(tmp_path, host=a_host(), machine="one", kubernetes="1.36", engine="containerd")
    context.programs_file.write_text(json.dumps({"kubelet": {"path": "/kubelet", "version": "v1.25.3"}}))
    texts = {flag.text for flag in kubelet.flags(context)}
    assert SOCKET in texts and V1 not in texts
