"""The machine in namespaces, as far as it goes without root: what it refuses, and how it says that it is down."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.core import cgroups, namespaces
from tasks.core.cgroups import Hierarchy
from tasks.core.errors import DmucError
from tasks.core.first_process import setup_script
from tasks.core.mounts import Plan
from tasks.core.namespaces import Namespaces
from tasks.core.process import Record
from tasks.core.progress import Silent

WHAT = Plan(overlays=[Path("/etc"), Path("/a b/it's, $HOME")], read_only=[Path("/big")], files=[Path("/proc/cpuinfo")])
NAME = "unit-test-dmx"  # no link and no cgroup of the host has this name


@pytest.fixture
def machine(tmp_path: Path) -> Namespaces:
    (tmp_path / "run").mkdir()
    return Namespaces(
        NAME, tmp_path, "10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24", {"/var/lib/x": "x"}, ("kernel/panic",)
    )


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it believe that it is root on a host without cgroups and networks, so that it can do no harm."""
    monkeypatch.setattr(namespaces, "is_root", lambda: True)
    monkeypatch.setattr(cgroups, "mounted", list)
    monkeypatch.setattr(namespaces, "ranges_on_host", list)

    def refuse(*args: Any) -> None:
        raise AssertionError("this test was to end before")

    monkeypatch.setattr(Namespaces, "_start_anchor", refuse)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def power_on_as_if(machine: Namespaces, pid: int) -> None:
    Record.of(pid, machine._wanted(), {}).save(machine.state / "run/machine.pid")


def has_routes(monkeypatch: pytest.MonkeyPatch, *routes: str) -> None:
    monkeypatch.setattr(namespaces, "_routes_of", lambda link: list(routes) if link == NAME else [])


ALL_ROUTES = ("10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24")


# Is it down, and why?


def test_a_machine_that_never_was_on_is_down(machine: Namespaces) -> None:
    assert machine.is_up().why == f"{NAME} was never powered on"


def test_a_machine_whose_first_process_runs_and_that_is_linked_is_up(
    machine: Namespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    power_on_as_if(machine, os.getpid())
    has_routes(monkeypatch, *ALL_ROUTES)
    assert machine.is_up()


def test_a_machine_whose_first_process_is_gone_is_down(
    machine: Namespaces, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    power_on_as_if(machine, process.pid)
    has_routes(monkeypatch, *ALL_ROUTES)
    assert machine.is_up()
    process.kill()
    process.wait()
    assert machine.is_up().why == f"{NAME} is off: its first process (pid {process.pid}) is gone"


def test_a_record_of_another_boot_is_not_believed(machine: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    has_routes(monkeypatch, *ALL_ROUTES)
    record = Record.of(os.getpid(), machine._wanted(), {})
    replace(record, boot="another").save(machine.state / "run/machine.pid")
    assert "is gone" in machine.is_up().why


@pytest.mark.parametrize(
    "change",
    [
        {"link": "10.95.4.0/30"},
        {"services": "10.97.0.0/16"},
        {"pods": "10.245.0.0/24"},
        {"disk": {}},
        {"kernel": ()},
    ],
)
def test_a_machine_with_other_settings_is_not_the_one_that_is_wanted(
    machine: Namespaces, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    power_on_as_if(machine, os.getpid())
    has_routes(monkeypatch, *ALL_ROUTES)
    assert replace(machine, **change).is_up().why == f"{NAME} is powered on with other settings"


def test_a_route_that_is_missing_is_named(machine: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    power_on_as_if(machine, os.getpid())
    has_routes(monkeypatch, "10.95.0.0/30", "10.244.0.0/24")
    assert machine.is_up().why == f"the host has no route through the link {NAME} to 10.96.0.0/16"
    has_routes(monkeypatch)
    assert "10.244.0.0/24, 10.95.0.0/30, 10.96.0.0/16" in machine.is_up().why


def test_routes_are_read_from_the_kernels_table(
    machine: Namespaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        f"{NAME}\t00005F0A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0\n"
        f"{NAME}\t0000600A\t02005F0A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "other\t0000F40A\t02005F0A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    monkeypatch.setattr(namespaces, "_ROUTES", table)
    power_on_as_if(machine, os.getpid())
    if sys.byteorder == "little":  # as that table is
        assert machine.is_up().why == f"the host has no route through the link {NAME} to 10.244.0.0/24"


def test_a_machine_that_is_off_cannot_be_entered(machine: Namespaces) -> None:
    with pytest.raises(DmucError) as error:
        machine.enter()
    assert str(error.value) == f"entering {NAME}\nThe machine is not powered on.\nRun: scripts/doit machine"
    with pytest.raises(OSError, match="not powered on"):
        machine.connect("127.0.0.1", 80, 1)
    with pytest.raises(OSError, match="not powered on"):
        machine.path("/run/docker.sock")


# What it refuses


def test_without_root_there_is_a_clear_error(machine: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "is_root", lambda: False)
    before = sorted(machine.state.rglob("*"))
    with pytest.raises(DmucError) as error:
        machine.power_on(Silent())
    assert error.value.tried == f"powering on {NAME}"
    assert "root" in error.value.seen
    assert "machine=host" in error.value.do
    assert sorted(machine.state.rglob("*")) == before


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("on_host", "where", "setting"),
    [
        ("10.95.0.0/24", "ip route: 10.95.0.0/24 eth0", "link_range=10.95.0.0/30"),
        ("10.95.0.2/32", "ip address: 10.95.0.2/32 wg0", "link_range=10.95.0.0/30"),
        ("10.96.128.0/17", "ip route: 10.96.128.0/17 tun0", "service_range=10.96.0.0/16"),
        ("10.0.0.0/8", "ip route: 10.0.0.0/8 tun0", "link_range=10.95.0.0/30"),
        ("10.244.0.0/16", "ip route: 10.244.0.0/16 flannel.1", "pod_range=10.244.0.0/24"),
    ],
)
def test_a_range_that_the_host_uses_is_refused(
    machine: Namespaces, monkeypatch: pytest.MonkeyPatch, on_host: str, where: str, setting: str
) -> None:
    taken = [(ipaddress.IPv4Network("192.168.1.0/24"), "x"), (ipaddress.IPv4Network(on_host), where)]
    monkeypatch.setattr(namespaces, "ranges_on_host", lambda: taken)
    with pytest.raises(DmucError) as error:
        machine.power_on(Silent())
    assert error.value.seen == f"{setting} overlaps {on_host}, which is already in use ({where})."
    assert error.value.do == f"Choose another range with {setting.partition('=')[0]}=…"


@pytest.mark.usefixtures("as_root")
def test_ranges_that_overlap_each_other_are_refused(machine: Namespaces) -> None:
    with pytest.raises(DmucError) as error:
        replace(machine, pods="10.96.7.0/24").power_on(Silent())
    assert error.value.seen == (
        "pod_range=10.96.7.0/24 overlaps 10.96.0.0/16, which is already in use (service_range)."
    )


@pytest.mark.usefixtures("as_root")
def test_ranges_next_to_the_hosts_are_not_refused(machine: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = [(ipaddress.IPv4Network(text), "x") for text in ("10.95.0.4/30", "10.97.0.0/16", "10.244.1.0/24")]
    monkeypatch.setattr(namespaces, "ranges_on_host", lambda: beside)
    monkeypatch.setattr(cgroups, "make", lambda name: None)
    with pytest.raises(AssertionError, match="to end before"):
        machine.power_on(Silent())


@pytest.mark.usefixtures("as_root")
def test_a_shared_directory_that_is_not_there_is_said(machine: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    nosuch = machine.state / "nosuch"
    sharing = replace(machine, shared=[machine.state, nosuch])
    with pytest.raises(DmucError) as error:
        sharing.power_on(Silent())
    assert error.value.seen == f"share={nosuch}: there is no such directory."
    power_on_as_if(machine, os.getpid())  # it is said of a machine that is on, too
    has_routes(monkeypatch, *ALL_ROUTES)
    assert machine.is_up() and sharing.is_up().why == error.value.seen
    with pytest.raises(DmucError, match="no such directory"):
        sharing.power_on(Silent())


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("setting", ["shared", "handed_in"])
@pytest.mark.parametrize(
    ("path", "needs"), [("/", "/proc"), ("/etc", "/etc/hosts"), ("/proc", "that"), ("/var", "/var/")]
)
def test_a_directory_that_the_machine_needs_is_not_shared(
    machine: Namespaces, setting: str, path: str, needs: str
) -> None:
    shared = [Path(path)] if setting == "shared" else []
    with pytest.raises(DmucError) as error:
        replace(machine, handed_in=[Path(path)] if setting == "handed_in" else [], shared=shared).power_on(Silent())
    assert error.value.seen.startswith(f"{path} cannot be the host's: the machine needs {needs}")
    assert "share=" in error.value.do


def test_directories_that_are_not_as_planned_are_counted() -> None:
    lost = {"lost": ["/a", "/b", "/c", "/d", "/e"], "read-only": ["/f"]}
    assert namespaces._in_words(lost) == (
        "changes last only until the machine is off in /a, /b, /c and 2 more; the host's, read-only: /f"
    )
    assert namespaces._in_words({}) == ""


def test_what_the_host_uses_is_read_from_ip(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {
        "route": [
            {"dst": "default", "gateway": "192.168.1.1", "dev": "eth0"},
            {"dst": "0.0.0.0/1", "gateway": "10.8.0.1", "dev": "tun0"},
            {"dst": "192.168.1.0/24", "dev": "eth0"},
            {"type": "local", "dst": "127.0.0.0/8", "dev": "lo", "table": "local"},
            {"type": "broadcast", "dst": "192.168.1.255", "dev": "eth0", "table": "local"},
            {"type": "unreachable", "dst": "10.50.0.0/16"},
        ],
        "address": [
            {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
            {"ifname": "down0", "addr_info": [{"local": "172.17.0.1", "prefixlen": 16}]},
            {"ifname": "bare0", "addr_info": []},
            {},
        ],
    }

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, json.dumps(results[command[3]]), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert [(str(network), where) for network, where in namespaces.ranges_on_host()] == [
        ("0.0.0.0/1", "ip route: 0.0.0.0/1 tun0"),
        ("192.168.1.0/24", "ip route: 192.168.1.0/24 eth0"),
        ("192.168.1.255/32", "ip route: 192.168.1.255 eth0"),
        ("10.50.0.0/16", "ip route: 10.50.0.0/16"),
        ("172.17.0.0/16", "ip address: 172.17.0.1/16 down0"),
    ]


# Machines and groups of others


def in_group(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str, pid: int) -> Path:
    """Let a directory stand for the only cgroup hierarchy, with this process in the group of this name."""
    monkeypatch.setattr(cgroups, "mounted", lambda: [Hierarchy(directory, "memory")])
    monkeypatch.setattr(cgroups, "remove", lambda group: None)  # here the kernel's files would be in its way
    procs = directory / name / "cgroup.procs"
    procs.parent.mkdir(parents=True)
    procs.write_text(f"{pid}\n")
    return procs


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """The first process of a machine of the same name that another checkout has powered on."""
    argv = [sys.executable, "-IS", "-c", "print(flush=True); input()", "dmuc-machine", "/other/checkout/var/dmuc1"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as anchor:
        assert anchor.stdout is not None and anchor.stdout.readline() == b"\n"
        in_group(monkeypatch, tmp_path / "cgroup", Hierarchy(tmp_path, "memory").group(NAME).name, anchor.pid)
        yield anchor
        anchor.kill()


@pytest.mark.usefixtures("as_root")
def test_a_machine_of_another_checkout_is_left_alone(machine: Namespaces, foreign: subprocess.Popen[bytes]) -> None:
    with pytest.raises(DmucError) as error:
        machine.power_on(Silent())
    assert f"pid {foreign.pid}" in error.value.seen
    assert "/other/checkout/var/dmuc1" in error.value.seen
    assert "machine=NAME" in error.value.do
    assert foreign.poll() is None


@pytest.mark.usefixtures("as_root")
def test_powering_off_leaves_a_machine_of_another_checkout_alone(
    machine: Namespaces, foreign: subprocess.Popen[bytes]
) -> None:
    # `doit clean` and `doit down` here must not end what is running there.
    with contextlib.suppress(DmucError, OSError):
        machine.power_off()
    assert foreign.poll() is None


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["docker", "lxc", "kubepods"])
def test_a_machine_named_as_another_programs_cgroup_does_not_end_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes], name: str
) -> None:
    machine = Namespaces(name, tmp_path, "10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24", {})
    in_group(monkeypatch, tmp_path / "cgroup", name, process.pid)
    with contextlib.suppress(DmucError, OSError):
        machine.power_off()
    assert process.poll() is None


# Links of others


@pytest.mark.usefixtures("as_root")
def test_a_link_of_the_host_that_has_its_name_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Any, **_: Any) -> None:
        raise AssertionError(f"the host's link is touched: {command}")

    monkeypatch.setattr(subprocess, "run", run)
    machine = Namespaces("lo", tmp_path, "10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24", {})
    machine.power_off()
    with pytest.raises(DmucError) as error:
        machine.power_on(Silent())
    assert "link called lo" in error.value.seen
    assert "machine=NAME" in error.value.do


# The script of its first process


@pytest.mark.parametrize("state", ["/work/var/dmuc1", "/home/a user/it's $HOME/var/dmuc1"])
def test_the_script_is_one_that_the_shell_can_read(machine: Namespaces, state: str) -> None:
    groups = [Hierarchy(Path("/sys/fs/cgroup/memory"), "memory"), Hierarchy(Path("/sys/fs/cgroup/unified"), "")]
    script = setup_script(replace(machine, state=Path(state)), groups, WHAT)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_the_script_copes_with_any_path(machine: Namespaces, tmp_path: Path) -> None:
    state = tmp_path / "a user's $HOME; `x`, y"
    said = tmp_path / "mounts"
    odd = tmp_path / "it's, $HOME"
    for directory in (state, odd):
        directory.mkdir()
    lines = setup_script(replace(machine, state=state), [], replace(WHAT, overlays=[odd])).split("\n")
    end = lines.index("# Its own view of processes, devices and cgroups.")
    words = "printf '%s|' \"$@\" >> " + str(said) + "; echo >> " + str(said)
    script = f"mount() {{ {words}; }}; mkdir() {{ :; }}\n" + "\n".join(lines[:end])
    subprocess.run(["sh", "-eu", "-c", script], check=True)
    done = said.read_text().splitlines()
    assert done[1] == "--no-canonicalize|--bind|root/top|/sys/new|"
    assert done[3].endswith(f"|overlay|/sys/new{odd}|") and "HOME" not in done[3].partition("|overlay|")[0]
    assert done[4] == "--no-canonicalize|--bind|/big|/sys/new/big|"
    bind = next(line for line in lines if line.endswith(" /sys/new/var/lib/x") and "--bind" in line)
    assert shlex.split(bind)[2] == str(state / "x")


def test_modules_are_loaded_before_their_files_are_looked_for(machine: Namespaces) -> None:
    lines = setup_script(replace(machine, modules=("nf_conntrack",)), [], WHAT).split("\n")
    load = next(n for n, line in enumerate(lines) if line.startswith("modprobe -q nf_conntrack "))
    assert load < lines.index("for file in kernel/panic; do")
