"""`doit preflight`: each fact both ways, what is said of it, and whether anything is in the way."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from tasks import binaries
from tasks.commands import preflight
from tasks.commands.checklist import Check, Verdict
from tasks.commands.preflight import Preflight
from tasks.core import debian, download
from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.namespaces import Namespaces
from tasks.image_files.recipes import registry_root
from tasks.programs import catalog
from tasks.programs.executable import Found
from tests.unit.support import a_context, a_host, load_dodo

HERE = "/usr/bin"
WITHOUT = {"lacking_capabilities": ["sys_resource"]}
V2 = {"has_cgroup_v1": False, "cgroup_version": "v2"}


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """A function that returns preflight's rows, by name, on a host that has everything except the given facts."""
    parts = load_dodo(tmp_path).PARTS

    def on(
        *,
        host: Mapping[str, Any] | None = None,
        root: bool = True,
        answers: bool = True,
        missing: tuple[str, ...] = (),
        versions: dict[str, str] | None = None,
        find: Callable[[Context], Any] | None = None,
        **settings: Any,
    ) -> dict[str, Check]:
        monkeypatch.setattr(download, "reachable", lambda url, timeout=2.0: answers)
        own = Namespaces("dmuc1", tmp_path / "var/dmuc1", "10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24", {})
        chosen = {"machine": "dmuc1", **settings}
        context = a_context(tmp_path, own if chosen["machine"] == "dmuc1" else None, a_host(**host or {}), **chosen)
        cluster = Cluster(context, parts)
        said = {name: (versions or {}).get(name, "v1.20.2") for name in catalog.wanted(context)}
        found = {n: None if n in missing else Found(f"{HERE}/{n}", v, "on PATH", "") for n, v in said.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: 0 if root else 1000)
            patch.setattr(binaries, "find_all", find or (lambda context: found))
            patch.setattr(binaries, "missing_tools", lambda context: [m for m in missing if m == "conntrack"])
            patch.setattr(debian, "available", lambda: True)
            return {row.name: row for row in preflight.rows(cluster)}

    monkeypatch.setattr(Namespaces, "refuse_overlaps", lambda machine: None)
    return on


def test_a_host_that_has_everything(on: Callable[..., dict[str, Check]]) -> None:
    found = on()
    assert {row.state for row in found.values()} == {Verdict.FINE}
    assert found["capabilities"].found.startswith("all that are needed")
    assert found["engine"].found == "docker" and "can use Docker directly" in found["engine"].does
    assert found["security"].found == "rbac"


def test_without_sys_resource_containerd_is_told_in_its_file(on: Callable[..., dict[str, Check]]) -> None:
    found = on(host=WITHOUT, kubernetes="1.36")
    assert found["engine"].found == "containerd"
    row = found["capabilities"]
    assert "restrict_oom_score_adj = true (in containerd.toml): Without CAP_SYS_RESOURCE" in row.does
    assert on(kubernetes="1.36")["capabilities"].state is Verdict.FINE


# What is adapted to, each with the reason that the component gives


def test_swap(on: Callable[..., dict[str, Check]]) -> None:
    assert on()["swap"].state is Verdict.FINE
    row = on(host={"has_swap": True})["swap"]
    assert row.state is Verdict.ADAPTED
    assert row.does == "kubelet --fail-swap-on=false: The host has swap; by default the kubelet refuses to start then"


@pytest.mark.parametrize("insecure_port", ["off", "on"])
def test_without_sys_resource(on: Callable[..., dict[str, Check]], insecure_port: str) -> None:
    row = on(host=WITHOUT, insecure_port=insecure_port)["capabilities"]
    assert row.state is Verdict.ADAPTED and "without sys_resource" in row.found
    assert "adapter" in row.does and ("Without CAP_SYS_RESOURCE" in row.does) == (insecure_port == "off")


@pytest.mark.parametrize(("host", "version"), [({}, "v1"), (V2, "v2")])
def test_cgroups(on: Callable[..., dict[str, Check]], host: Mapping[str, Any], version: str) -> None:
    found = on(host=host)
    assert found["cgroups"].state is Verdict.FINE and found["cgroups"].found.startswith(version)
    assert ("are enabled, and stay enabled" in found["cgroups"].does) == (version == "v2")
    assert ("cgroup v1" in found) == (version == "v1")


def test_a_release_that_refuses_cgroup_v1(on: Callable[..., dict[str, Check]]) -> None:
    assert on(kubernetes="1.34")["cgroup v1"].state is Verdict.FINE
    row = on(kubernetes="1.36")["cgroup v1"]
    assert row.state is Verdict.ADAPTED and row.does.startswith("kubelet --fail-cgroupv1=false: The host has cgroup v1")
    assert "cgroup v1" not in on(kubernetes="1.36", host=V2)


def test_what_will_be_obtained(on: Callable[..., dict[str, Check]]) -> None:
    row = on(missing=("kubelet",), obtain="debian")["programs"]
    assert row.state is Verdict.ADAPTED and "built from Debian's source package" in row.does
    row = on(missing=("etcd",), obtain="download")["programs"]
    assert row.does == "will be downloaded from https://github.com"
    assert "or, if there is no network, installed with Debian's" in on(missing=("runc",))["programs"].does
    row = on(missing=("kubelet",), obtain="debian", kubernetes="1.28")["programs"]
    assert row.state is Verdict.IMPOSSIBLE and "kubelet_bin=PATH" in row.do


def test_tools(on: Callable[..., dict[str, Check]]) -> None:
    assert on(missing=("conntrack",))["tools"].state is Verdict.ADAPTED
    row = on(missing=("conntrack",), root=False)["tools"]
    assert row.state is Verdict.IMPOSSIBLE and "conntrack" in row.do


def test_a_version_skew_is_said_and_not_forbidden(on: Callable[..., dict[str, Check]]) -> None:
    row = on(versions={"kubelet": "v1.36.0"})["version skew"]
    assert row.state is Verdict.DOUBTFUL and "kubelet v1.36.0 with kube-apiserver v1.20.2" in row.found


# What makes it impossible


def test_without_root(on: Callable[..., dict[str, Check]]) -> None:
    row = on(root=False)["root"]
    assert row.state is Verdict.IMPOSSIBLE and "machine=host" in row.do
    found = on(root=False, machine="host")
    assert found["root"].state is Verdict.ADAPTED and "up to the scheduler" in found["root"].does
    assert found["ports"].state is Verdict.ADAPTED
    assert {"capabilities", "cgroups", "iptables", "ranges"}.isdisjoint(found)
    assert not any(row.state is Verdict.IMPOSSIBLE for row in found.values())


def test_without_other_capabilities(on: Callable[..., dict[str, Check]]) -> None:
    row = on(host={"lacking_capabilities": ["net_admin", "sys_resource"]})["capabilities"]
    assert row.state is Verdict.IMPOSSIBLE and "without net_admin, sys_resource" in row.found


def test_without_controllers(on: Callable[..., dict[str, Check]]) -> None:
    row = on(host={"cgroup_controllers": {"cpu", "cpuacct", "cpuset", "devices"}})["cgroups"]
    assert row.state is Verdict.IMPOSSIBLE and "without memory, pids" in row.found and "cgroup_enable=" in row.do
    assert on(host=V2 | {"cgroup_controllers": {"cpu", "memory", "pids"}})["cgroups"].state is Verdict.FINE
    row = on(host={"cgroup_version": "", "cgroup_controllers": set()})["cgroups"]
    assert row.state is Verdict.IMPOSSIBLE and row.found.startswith("none mounted")


def test_without_modules(on: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch) -> None:
    row = on(host={"has_module": lambda name, option: {"veth": False, "bridge": None}.get(name, True)})["modules"]
    assert row.state is Verdict.IMPOSSIBLE and row.found.startswith("missing: veth (")
    assert "unknown: bridge" in row.found


@pytest.mark.parametrize(("kind", "mode", "state"), [("nft", "iptables", "✗"), ("legacy", "iptables", "✓")])
def test_without_nftables(on: Callable[..., dict[str, Check]], kind: str, mode: str, state: str) -> None:
    host = {"iptables": (kind, "1.8.9"), "has_module": lambda name, option: name != "nf_tables"}
    found = on(host=host, proxy_mode=mode)
    assert found["nftables"].state.value == state
    assert f"1.8.9, {kind}" in found["iptables"].found


def test_ranges_that_are_taken(on: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(machine: Namespaces) -> None:
        raise DmucError("", "pod_range=10.244.0.0/24 overlaps 10.0.0.0/8", "Choose another range with pod_range=…")

    monkeypatch.setattr(Namespaces, "refuse_overlaps", refuse)
    row = on()["ranges"]
    assert row.state is Verdict.IMPOSSIBLE and row.do == "Choose another range with pod_range=…"


def test_a_program_that_is_none(on: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(context: Context) -> Any:
        raise DmucError("", "There is no such file.", "Name another with kubelet_bin=PATH.")

    row = on(find=refuse)["programs"]
    assert row.state is Verdict.IMPOSSIBLE and row.found == "There is no such file."


def test_directories_of_other_programs_on_the_host(
    on: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "docker"
    monkeypatch.setattr(
        Daemon, "foreign_directories", lambda daemon, context: [theirs] * (daemon.name == "container_engine")
    )
    row = on(machine="host")["directories"]
    assert row.state is Verdict.IMPOSSIBLE and str(theirs) in row.found


# What may go wrong


def test_rules_of_the_other_iptables(on: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert on()["legacy rules"].found == "none: dmuc1 starts without rules"
    for count, state in {None: Verdict.FINE, 0: Verdict.FINE, 7: Verdict.DOUBTFUL}.items():
        monkeypatch.setattr(preflight, "rules_of_other_kind", lambda machine, kind, count=count: count)
        row = on(machine="host")["legacy rules"]
        assert row.state is state
    assert row.found == "7 on host (iptables-legacy-save)" and "iptables-nft, too" in row.do


def test_little_memory_and_disk(on: Callable[..., dict[str, Check]]) -> None:
    found = on(host={"available_memory": 512, "free_disk": lambda path: 900})
    assert {found[name].state for name in ("memory", "disk", "cache disk")} == {Verdict.DOUBTFUL}


# The command


def test_it_says_at_its_end_whether_anything_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = Check("swap", "none (/proc/swaps)", "as the kubelet expects")
    bad = Check("root", "no: uid 1000", "", Verdict.IMPOSSIBLE, "Run it as root; " + "and so on, " * 20)
    for found, status, end in (
        ([fine], 0, "Nothing is in the way."),
        ([fine, bad], 1, "before these are fixed (✗): root."),
    ):
        monkeypatch.setattr(preflight, "rows", lambda cluster, found=found: found)
        assert Preflight.act(cast(Preflight, None), cast(Cluster, None), []) == status
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "✓ swap           none (/proc/swaps)"
        assert lines[-1].endswith(end) and all(len(line) <= 110 for line in lines)


def test_it_does_not_begin_with_the_words_of_another() -> None:
    with pytest.raises(DmucError, match="does not know 'nosuch'"):
        Preflight.act(cast(Preflight, None), cast(Cluster, None), ["nosuch"])


def test_directories_in_which_nothing_can_be_written_are_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    context = a_context(tmp_path, cache=file / "cache", kubernetes="1.20")
    rows = {row.name: row for row in preflight._directories(Cluster(context, []))}
    assert rows["state directory"].state is Verdict.FINE
    assert rows["cache directory"].state is Verdict.IMPOSSIBLE and "is not a directory" in rows["cache directory"].found
    assert "cache=DIRECTORY" in rows["cache directory"].do


def test_a_share_that_the_machine_would_refuse_is_said(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()

    def row(*shared: Path) -> list[Check]:
        ranges = ("10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24")
        machine = Namespaces("dmuc1", tmp_path / "var/dmuc1", *ranges, {}, shared=[*shared])
        return [*preflight._shared(machine, ":".join(map(str, shared)))]

    assert row() == []
    assert [one.state for one in row(there)] == [Verdict.FINE]
    for path, seen in ((tmp_path / "missing", "there is no such directory"), (Path("/etc"), "for itself")):
        (one,) = row(there, path)
        assert one.state is Verdict.IMPOSSIBLE and seen in one.found and str(path) in one.found
        assert "share=" in one.do


def test_too_few_open_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    rows = {row.name: row for row in preflight._directories(Cluster(a_context(tmp_path), []))}
    assert rows["open files"].state is Verdict.IMPOSSIBLE and rows["open files"].do == "ulimit -n 4096"


def test_a_site_that_the_run_will_ask_and_that_does_not_answer_is_said(on: Callable[..., dict[str, Check]]) -> None:
    row = on(missing=("etcd",), obtain="download", answers=False)["sites"]
    assert row.state is Verdict.IMPOSSIBLE and "https://github.com does not answer" in row.found and "proxy" in row.do
    assert on(missing=("etcd",), obtain="download")["sites"].state is Verdict.FINE
    row = on(registry="https://registry.example", answers=False)["sites"]
    assert row.state is Verdict.IMPOSSIBLE and "https://registry.example" in row.found


def test_images_in_the_cache_need_no_site(on: Callable[..., dict[str, Check]], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    row = on(cache=cache, answers=False)["sites"]
    assert row.state is Verdict.IMPOSSIBLE and "from which images are made" in row.found
    registry_root(cache).mkdir(parents=True)  # the machine itself has none yet
    assert on(cache=cache, answers=False)["sites"].state is Verdict.FINE
