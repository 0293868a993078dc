"""Many Services: what is asked about each of them costs at most in proportion to their number; the page of figures."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scripts import scale
from scripts.scale import Figures, Row
from tasks.commands import trace
from tasks.core.machine import Host
from tasks.proxies.netfilter import Packet, Rule, parse_iptables
from tasks.proxies.paths import gaps
from tests.unit.support import a_context, a_program, eventually

SEVERAL = (10, 100, 1000)


def address(number: int) -> str:
    return f"10.96.{number // 250}.{number % 250 + 1}"


def rules(services: int) -> str:
    """What iptables-save prints with this number of Services, each with one Pod."""
    chains, lines = [], []
    for number in range(services):
        svc, sep = f"KUBE-SVC-{number:016}", f"KUBE-SEP-{number:016}"
        chains += [f":{svc} - [0:0]", f":{sep} - [0:0]"]
        lines += [
            f"-A KUBE-SERVICES -d {address(number)}/32 -p tcp -m tcp --dport 80 -j {svc}",
            f"-A {svc} -j {sep}",
            f"-A {sep} -p tcp -m tcp -j DNAT --to-destination 10.244.0.2:80",
        ]
    hooks = [":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]"]
    jumps = ["-A PREROUTING -j KUBE-SERVICES", "-A OUTPUT -j KUBE-SERVICES"]
    return "\n".join(["*nat", *hooks, *chains, *jumps, *lines, "COMMIT", ""])


def objects(services: int) -> tuple[list[Any], list[Any]]:
    """The Services and Endpoints that go with those rules."""
    names = [{"namespace": "default", "name": f"s{number}"} for number in range(services)]
    ports = [{"port": 80, "protocol": "TCP"}]
    specs = [{"clusterIP": address(number), "selector": {"a": "b"}, "ports": ports} for number in range(services)]
    subsets = [{"addresses": [{"ip": "10.244.0.2"}], "ports": [{"port": 80}]}]
    return (
        [{"metadata": name, "spec": spec} for name, spec in zip(names, specs, strict=True)],
        [{"metadata": name, "subsets": subsets} for name in names],
    )


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a rule was compared with a packet, which is where the time goes."""
    count, real = Counter[str](), Rule.may_take

    def may_take(rule: Rule, packet: Packet) -> bool:
        count["rules"] += 1
        return real(rule, packet)

    monkeypatch.setattr(Rule, "may_take", may_take)
    return count


def test_rules_of_many_services_are_checked_in_proportion(looked_at: Counter[str]) -> None:
    each = []
    for services in SEVERAL:
        looked_at.clear()
        assert gaps(parse_iptables(rules(services)), *objects(services), "10.95.0.2") == []
        each.append(looked_at["rules"] / services)
    assert each[-1] <= each[0] * 1.1


def test_a_service_among_many_without_rules_is_found() -> None:
    services, endpoints = objects(100)
    tables = parse_iptables("\n".join(line for line in rules(100).splitlines() if f" {address(7)}/32 " not in line))
    assert gaps(tables, services, endpoints, "10.95.0.2") == [
        f"from ClusterIP {address(7)}:80/tcp of default/s7 to 10.244.0.2:80"
    ]


def test_rules_for_an_address_keep_their_order_among_the_others() -> None:
    lines = [
        "-A C -d 10.0.0.0/8 -j A",
        "-A C -d 10.0.0.1/32 -j B",
        "-A C -j C",
        "-A C -d 10.0.0.2/32 -j D",
        "-A C -d 10.0.0.1/32 -p udp -j E",
        "-A C -d 10.0.0.1/32 -j F",
    ]
    table = parse_iptables("\n".join(["*nat", ":C - [0:0]", *lines, "COMMIT", ""]))["nat"]
    assert [rule.targets[0] for rule in table.taking("C", Packet("10.0.0.1", 80))] == ["A", "B", "C", "F"]


@dataclass(frozen=True)
class Fake(Host):
    """A machine with programs of its own."""

    root: Path = field(kw_only=True)

    def enter(self) -> Sequence[str]:
        return ("env", f"PATH={self.root}:/usr/bin:/bin")


def test_the_rules_are_read_once_for_all_services_of_a_deployment(tmp_path: Path) -> None:
    (tmp_path / "save").write_text(rules(20))
    a_program(tmp_path / "iptables-save", f"echo >> {tmp_path}/read; cat {tmp_path}/save")
    context = a_context(tmp_path, Fake("one", root=tmp_path))
    assert trace.has_rules(context, *objects(20)[0])
    assert (tmp_path / "read").read_text() == "\n"
    assert f"no rules for ClusterIP {address(20)}:80/tcp" in trace.has_rules(context, *objects(21)[0]).why


# The page


def row(services: int, *seconds: float, memory: int = 2**20) -> Row:
    return Row(services, dict(zip(scale.COMMANDS, seconds, strict=True)), memory)


LINEAR = (row(1, 0.5, 0.6, 0.5), row(10, 0.5, 0.7, 0.5), row(100, 0.6, 1.0, 0.9), row(1000, 1.5, 4.0, 3.0))


@pytest.mark.parametrize(
    ("last", "linear"), [(LINEAR[-1], True), (row(1000, 1.5, 11.0, 3.0), False), (row(1000, 1.5, 10.0, 3.0), True)]
)
def test_growth_is_linear_up_to_ten_times_the_seconds_for_ten_times_the_services(last: Row, linear: bool) -> None:
    rows = (*LINEAR[:-1], last)
    assert scale.is_linear(rows) is linear
    assert ("at most linear" in scale.page(Figures("Kubernetes 1.36.3", rows, {}, 0, 2**16))) is linear


@pytest.mark.parametrize(
    ("idle", "said"),
    [
        ({}, "0 processes of dmuc run.\nAround the machine there are none"),
        ({"nsenter": 8, "unshare": 1}, "0 processes of dmuc run.\nAround the machine there are 8 nsenter, 1 unshare"),
        ({"nsenter": 8, "python": 2}, "2 processes of dmuc run.\nAround the machine there are 8 nsenter, 2 python"),
    ],
)
def test_the_page_has_the_table_and_the_plot(idle: Mapping[str, int], said: str) -> None:
    text = scale.page(Figures("Kubernetes 1.36.3, etcd 3.5.30", LINEAR, idle, 2**10, 2**16))
    assert "Kubernetes 1.36.3, etcd 3.5.30" in text and said in text and "at most 64 MiB" in text
    assert "| 1000 | 1.50 s | 4.00 s | 3.00 s | 1024 MiB |" in text
    assert "| x 1000 | x 3.0 | x 6.7 | x 6.0 | x 1.0 |" in text
    bars = [line for line in text.splitlines() if "█" in line]
    assert len(bars) == len(scale.COMMANDS) * len(scale.SERVICES)
    assert max(line.count("█") for line in bars) == bars[7].count("█") == 50


def test_memory_is_the_sum_of_the_proportional_sizes() -> None:
    assert scale.proportional("Rss:  40 kB\nPss:  12 kB\nPss_Anon:  3 kB\nRss: 9 kB\nPss: 4 kB\n") == 16


def test_a_process_that_has_the_state_on_its_command_line_is_found(tmp_path: Path) -> None:
    assert scale.outside(tmp_path) == {}
    line = [sys.executable, "-c", "input()", str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        name = Path(sys.executable).name
        eventually(lambda: [*scale.outside(tmp_path).values()] == [name], "the process is found")
        process.communicate(b"\n")
