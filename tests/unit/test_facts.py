"""Facts are read from what the kernel says, each of them both ways."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.core import facts
from tasks.core.facts import NEEDED_CAPABILITIES, HostFacts
from tasks.core.machine import Host
from tests.unit.support import a_program

ROOT = Path("/sys/fs/cgroup")
V1 = """\
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
UNIFIED = "33 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
V2 = "30 29 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
MODULES = "/lib/modules/6.1.0-test"


@pytest.fixture
def host(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], HostFacts]:
    """A function that returns the facts of a host with these files and no others."""
    roots = itertools.count()

    def with_files(files: Mapping[str, str | bytes]) -> HostFacts:
        root = tmp_path / str(next(roots))
        for name, content in {"/proc/sys/kernel/osrelease": "6.1.0-test\n", **files}.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return HostFacts(root)

    return with_files


# What we may


@pytest.mark.parametrize(
    ("mask", "lacking"),
    [
        ("000001ffffffffff", []),
        ("000001fffeffffff", ["sys_resource"]),
        ("00000000a80425fb", ["net_admin", "sys_admin", "sys_resource"]),  # Docker's default
        ("0000000000000000", ["net_admin", "net_raw", "sys_chroot", "sys_admin", "sys_resource", "mknod"]),
    ],
)
def test_capabilities(host: Callable[..., HostFacts], mask: str, lacking: list[str]) -> None:
    status = f"Name:\tpython\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask}\nCapBnd:\t0\n"
    facts = host({"/proc/self/status": status, "/proc/sys/kernel/cap_last_cap": "40\n"})
    assert [name for name in facts.lacking_capabilities if name in NEEDED_CAPABILITIES] == lacking
    assert facts.may_lower_oom_score == ("sys_resource" not in lacking)


def test_a_capability_that_the_kernel_does_not_know_is_not_lacking(host: Callable[..., HostFacts]) -> None:
    files = {"/proc/self/status": "CapEff:\t0000003ff7ffffff\n", "/proc/sys/kernel/cap_last_cap": "37\n"}
    assert host(files).lacking_capabilities == ["mknod"]


# The kernel


def test_swap(host: Callable[..., HostFacts]) -> None:
    assert not host({"/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n"}).has_swap
    assert host({"/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0\tpartition\t104\t0\t100\n"}).has_swap


@pytest.mark.parametrize(
    ("mounted", "version", "controllers", "refused_by_kubelets"),
    [
        (V1, "v1", {"cpu", "cpuacct"}, True),
        (V1 + UNIFIED, "hybrid", {"cpu", "cpuacct"}, True),
        (V2, "v2", {"cpu", "memory"}, False),
        ("", "", set(), True),
    ],
    ids=["v1", "hybrid", "v2", "none"],
)
def test_cgroups(
    host: Callable[..., HostFacts], mounted: str, version: str, controllers: set[str], refused_by_kubelets: bool
) -> None:
    facts = host({f"{ROOT}/cgroup.controllers": "cpu memory\n", "/proc/self/mountinfo": mounted})
    assert facts.cgroup_version == version
    assert facts.cgroup_controllers == controllers
    assert facts.has_cgroup_v1 == refused_by_kubelets


def test_a_container_whose_processes_are_in_the_way_of_cgroup_v2(host: Callable[..., HostFacts]) -> None:
    files = {"controllers": "cpu memory\n", "subtree_control": "cpu\n", "procs": "1\n", "type": "domain\n"}
    container = {f"{ROOT}/cgroup.{name}": text for name, text in files.items()} | {"/proc/self/mountinfo": V2}
    assert host(container).undelegated_controllers == ["memory"]
    assert host({**container, f"{ROOT}/cgroup.procs": ""}).undelegated_controllers == []
    assert host({**container, "/proc/self/mountinfo": V1}).undelegated_controllers == []
    del container[f"{ROOT}/cgroup.type"]  # which the root alone has not
    assert host(container).undelegated_controllers == []


CONFIG = "# Linux\nCONFIG_VETH=y\nCONFIG_BRIDGE=m\n# CONFIG_IP_VS is not set\n"


@pytest.mark.parametrize(
    ("files", "veth", "bridge", "ip_vs"),
    [
        ({}, None, None, None),
        ({"/proc/config.gz": gzip.compress(CONFIG.encode())}, True, False, False),  # a module, and there is none
        ({"/boot/config-6.1.0-test": CONFIG}, True, False, False),
        ({f"{MODULES}/modules.dep": "kernel/net/bridge/bridge.ko.xz: kernel/net/llc/llc.ko\n"}, False, True, False),
        ({f"{MODULES}/modules.builtin": "kernel/drivers/net/veth.ko\n"}, True, False, False),
        ({"/sys/module/ip_vs/parameters/conn_tab_bits": "12\n"}, None, None, True),
    ],
)
def test_modules(
    host: Callable[..., HostFacts],
    files: Mapping[str, str | bytes],
    veth: bool | None,
    bridge: bool | None,
    ip_vs: bool | None,
) -> None:
    facts = host(files)
    assert facts.has_module("veth", "CONFIG_VETH") is veth
    assert facts.has_module("bridge", "CONFIG_BRIDGE") is bridge
    assert facts.has_module("ip_vs", "CONFIG_IP_VS") is ip_vs
    assert facts.has_ipvs is bool(ip_vs)


def test_file_systems(host: Callable[..., HostFacts]) -> None:
    facts = host({"/proc/filesystems": "nodev\tsysfs\n\text4\nnodev\toverlay\n"})
    assert facts.has_filesystem("overlay") is True
    assert facts.has_filesystem("ext4") is True
    assert facts.has_filesystem("btrfs") is None


def test_memory(host: Callable[..., HostFacts]) -> None:
    facts = host({"/proc/meminfo": "MemTotal:       24684212 kB\nMemAvailable:    2048000 kB\n"})
    assert facts.available_memory == 2000


def test_the_disk_of_what_is_not_there_yet_is_that_of_what_is(tmp_path: Path) -> None:
    free = HostFacts().free_disk
    assert free(tmp_path / "not" / "yet") == pytest.approx(free(tmp_path), abs=1000)
    assert free(tmp_path) > 0


# iptables


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'iptables v1.8.9 (nf_tables)'", ("nft", "1.8.9")),
        ("echo 'iptables v1.8.9 (legacy)'", ("legacy", "1.8.9")),
        ("echo 'iptables v1.6.1'", ("legacy", "1.6.1")),  # from before there were two
        ("exit 1", ("", "")),
        (None, ("", "")),
    ],
)
def test_the_kind_of_iptables(tmp_path: Path, script: str | None, found: tuple[str, str]) -> None:
    if script is not None:
        a_program(tmp_path / "iptables", script)
    assert HostFacts(path=str(tmp_path)).iptables == found


@dataclass(frozen=True)
class _With(Host):
    """A host with programs of our own."""

    path_first: str = ""

    def enter(self) -> Sequence[str]:
        return ("env", f"PATH={self.path_first}:/usr/bin:/bin")


@pytest.mark.parametrize(("kind", "other"), [("nft", "iptables-legacy-save"), ("legacy", "iptables-nft-save")])
def test_rules_of_the_other_kind_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, other: str
) -> None:
    names = tmp_path / "names"
    names.write_text("nat\nfilter\n")
    script = facts._OTHER_RULES[kind].replace("/proc/net/ip_tables_names", str(names))
    monkeypatch.setitem(facts._OTHER_RULES, kind, script)
    machine = _With(path_first=str(tmp_path))
    a_program(tmp_path / other, "printf '*nat\\n:OUTPUT ACCEPT [0:0]\\n-A OUTPUT -j X\\n-A OUTPUT -j Y\\nCOMMIT\\n'")
    tables = 2 if kind == "nft" else 1
    assert facts.rules_of_other_kind(machine, kind) == 2 * tables
    if kind == "nft":
        names.write_text("")  # asking would make the kernel have the table
        assert facts.rules_of_other_kind(machine, kind) == 0
    a_program(tmp_path / other, "exit 1")
    names.write_text("nat\n")
    assert facts.rules_of_other_kind(machine, kind) is None
