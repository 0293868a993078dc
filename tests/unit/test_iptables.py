"""Chains that a daemon has left are removed from the real iptables, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.core import iptables
from tasks.core.errors import DmucError
from tasks.core.iptables import Chains
from tasks.core.machine import Host
from tasks.engines.containerd import TRACES as CONTAINERD
from tasks.engines.docker import TRACES as DOCKER
from tasks.proxies.kube_proxy import _CHAINS
from tests.unit.private_host import on_a_private_host
from tests.unit.support import a_program

OURS, THEIRS = "a" * 64, "b" * 64
# As the plugins bridge and portmap 1.1.1 make them, for a container of our network and one of podman's.
CNI = f"""\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-2e995afcd5ab76c9edb8b87d - [0:0]
:CNI-6f5717a65d6ba6f9bc7bd24a - [0:0]
:CNI-DN-2e995afcd5ab76c9edb8b - [0:0]
:CNI-DN-6f5717a65d6ba6f9bc7bd - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -s 10.73.0.2/32 -m comment --comment "name: \\"dmuc\\" id: \\"{OURS}\\"" -j CNI-2e995afcd5ab76c9edb8b87d
-A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \\"podman\\" id: \\"{THEIRS}\\"" -j CNI-6f5717a65d6ba6f9bc7bd24a
-A CNI-2e995afcd5ab76c9edb8b87d -d 10.73.0.0/24 -m comment --comment "name: \\"dmuc\\" id: \\"{OURS}\\"" -j ACCEPT
-A CNI-6f5717a65d6ba6f9bc7bd24a -d 10.88.0.0/16 -m comment --comment "name: \\"podman\\" id: \\"{THEIRS}\\"" -j ACCEPT
-A CNI-DN-2e995afcd5ab76c9edb8b -s 10.73.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-2e995afcd5ab76c9edb8b -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.73.0.2:80
-A CNI-DN-6f5717a65d6ba6f9bc7bd -s 10.88.0.0/16 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-6f5717a65d6ba6f9bc7bd -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.88.0.2:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"dmuc\\" id: \\"{OURS}\\"" -m multiport --dports 8080 -j CNI-DN-2e995afcd5ab76c9edb8b
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"podman\\" id: \\"{THEIRS}\\"" -m multiport --dports 8081 -j CNI-DN-6f5717a65d6ba6f9bc7bd
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
COMMIT
"""  # noqa: E501 (as they are)
KUBE_AND_DOCKER = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "for a -j KUBE-SERVICES of old" -j ACCEPT
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.73.0.0/24 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A KUBE-SEP-A -s 10.73.0.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.73.0.2:80
-A KUBE-SERVICES -d 10.72.0.10/32 -j KUBE-SVC-A
-A KUBE-SVC-A -g KUBE-SEP-A
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -i docker0 -p tcp -m tcp --dport 53 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker01 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


@dataclass(frozen=True)
class WithPath(Host):
    """The host, with another PATH."""

    path_variable: str = ""

    def enter(self) -> Sequence[str]:
        return ("/usr/bin/env", f"PATH={self.path_variable}")


def load(rules: str) -> None:
    subprocess.run(["iptables-restore"], input=rules, text=True, check=True)


def saved() -> list[str]:
    out = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if not line.startswith("#")]


def gone(rules: str) -> list[str]:
    """What is not there any more; and nothing is new."""
    before, now = rules.splitlines(), saved()
    assert [line for line in now if line not in before] == []
    return [line for line in before if line not in now]


@on_a_private_host
def test_of_cni_only_the_chains_of_our_network_go(tmp_path: Path) -> None:
    load(CNI)
    iptables.remove(Host(), CONTAINERD.chains)
    assert gone(CNI) == [line for line in CNI.splitlines() if "2e995afcd5ab76c9edb8b" in line]


@on_a_private_host
def test_of_cni_what_all_networks_share_goes_with_our_last(tmp_path: Path) -> None:
    ours = "".join(f"{line}\n" for line in CNI.splitlines() if "6f5717a65d6ba6f9bc7bd" not in line)
    load(ours)
    iptables.remove(Host(), CONTAINERD.chains)
    assert [line for line in saved() if "CNI" in line] == []
    assert all("CNI" in line for line in gone(ours))


@on_a_private_host
def test_of_cni_what_others_share_stays_when_nothing_of_ours_is_there(tmp_path: Path) -> None:
    for theirs in (
        "".join(f"{line}\n" for line in CNI.splitlines() if "2e995afcd5ab76c9edb8b" not in line),
        "".join(f"{line}\n" for line in CNI.splitlines() if "name: " not in line),  # made once, and empty now
    ):
        load(theirs)
        iptables.remove(Host(), CONTAINERD.chains)
        assert gone(theirs) == []


@on_a_private_host
def test_of_kube_proxy_its_chains_and_what_leads_to_them_go(tmp_path: Path) -> None:
    load(KUBE_AND_DOCKER)
    iptables.remove(Host(), _CHAINS)
    wanted = [x for x in KUBE_AND_DOCKER.splitlines() if any(f"KUBE-S{y}" in x for y in ("ERV", "VC", "EP"))]
    assert gone(KUBE_AND_DOCKER) == [line for line in wanted if "of old" not in line]
    iptables.remove(Host(), Chains("KUBE-.*"))
    assert [line for line in saved() if "KUBE" in line] == [line for line in wanted if "of old" in line]


@on_a_private_host
def test_of_docker_its_chains_and_its_rules_go_and_not_what_a_person_has_said_of_its_link(tmp_path: Path) -> None:
    load(KUBE_AND_DOCKER)
    iptables.remove(Host(), DOCKER.chains)
    left = [line for line in saved() if "docker" in line.lower()]
    assert left == ["-A INPUT -i docker0 -p tcp -m tcp --dport 53 -j ACCEPT", "-A FORWARD -i docker01 -j ACCEPT"]
    assert [line for line in gone(KUBE_AND_DOCKER) if "docker" not in line.lower()] == []


@on_a_private_host
def test_of_docker_the_chain_for_peoples_rules_stays_while_it_has_one(tmp_path: Path) -> None:
    load(KUBE_AND_DOCKER)
    for rule in ("-I DOCKER-USER -s 192.0.2.1/32 -j DROP", "-N DOCKER-USER2", "-N KUBE-mine"):
        subprocess.run(["iptables", *rule.split()], check=True)
    iptables.remove(Host(), DOCKER.chains)
    left = [line for line in saved() if "DOCKER" in line]
    assert left == [
        ":DOCKER-USER - [0:0]",
        ":DOCKER-USER2 - [0:0]",
        "-A FORWARD -j DOCKER-USER",
        "-A DOCKER-USER -s 192.0.2.1/32 -j DROP",
        "-A DOCKER-USER -j RETURN",
    ]


@on_a_private_host
def test_a_rule_that_another_adds_meanwhile_and_counters_stay(tmp_path: Path) -> None:
    load(KUBE_AND_DOCKER)
    subprocess.run(["iptables", "-A", "INPUT", "-i", "lo", "-c", "7", "700", "-j", "ACCEPT"], check=True)
    real = shutil.which("iptables-save")
    a_program(tmp_path / "bin/iptables-save", f"{real} && iptables -A INPUT -s 192.0.2.1/32 -j DROP")
    iptables.remove(WithPath(path_variable=f"{tmp_path}/bin:{os.environ['PATH']}"), _CHAINS)
    out = subprocess.run([str(real), "-c"], capture_output=True, text=True, check=True).stdout
    assert "-A INPUT -s 192.0.2.1/32 -j DROP" in out
    assert "[7:700] -A INPUT -i lo -j ACCEPT" in out
    assert "KUBE-SVC" not in out


@on_a_private_host
def test_without_anything_to_remove_nothing_is_written_and_without_iptables_nothing_is_asked(tmp_path: Path) -> None:
    load(KUBE_AND_DOCKER)
    for name in ("iptables-restore", "ip6tables-restore"):
        a_program(tmp_path / "bin" / name, "exit 9")
    refusing = WithPath(path_variable=f"{tmp_path}/bin:{os.environ['PATH']}")
    iptables.remove(refusing, CONTAINERD.chains)
    with pytest.raises(DmucError, match="exit code 9"):
        iptables.remove(refusing, DOCKER.chains)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/sh").symlink_to("/bin/sh")
    iptables.remove(WithPath(path_variable=f"{tmp_path}/none"), DOCKER.chains)
    assert gone(KUBE_AND_DOCKER) == []
