"""The way to a Service as people see it: from rules that real programs printed, and an API that says what we like."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasks.commands import trace
from tasks.commands.trace import Trace
from tasks.core import probe
from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.machine import Host
from tasks.core.result import Result
from tasks.proxies.paths import Branch
from tests.unit.support import Site, a_context, a_program, serving

DATA = Path(__file__).parent / "data"
IPTABLES = (DATA / "iptables-save-1.20.txt").read_text()
_AS_THERE = {  # the addresses of the same Services and Pods in the file of iptables
    "10.50.0.2": "10.88.0.2",
    "10.52.0.": "10.90.0.",
    "10.51.9.194": "10.89.80.232",
    "10.51.89.178": "10.89.205.184",
    "10.51.194.36": "10.89.128.34",
    "10.51.18.230": "10.89.179.39",
}


def _of_nftables(release: str) -> str:
    text = (DATA / f"nft-list-table-kube-proxy-{release}.json").read_text()
    for recorded, there in _AS_THERE.items():
        text = text.replace(recorded, there)
    return text


NFTABLES = {release: _of_nftables(release) for release in ("1.31", "1.36")}
NO_RULES = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
PODS = {f"10.90.0.{n}": f"web-{n}" for n in (2, 3, 4, 5)}


def a_service(name: str, ip: str, port: int = 80, **spec: Any) -> dict[str, Any]:
    ports = [{"port": port, "protocol": "TCP"}]
    return {"metadata": {"namespace": "default", "name": name}, "spec": {"clusterIP": ip, "ports": ports} | spec}


WEB = a_service("web", "10.89.80.232")
KUBERNETES = a_service("kubernetes", "10.89.0.1", ports=[{"name": "https", "port": 443, "protocol": "TCP"}])
EMPTY = a_service("nobody", "10.89.128.34")
HEADLESS = a_service("headless", "None")
OUTSIDE = {**a_service("outside", ""), "spec": {"type": "ExternalName", "externalName": "example.org"}}
PORTS = a_service("ports", "10.89.205.184", ports=[{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}])
LOCAL = a_service(
    "local", "10.89.179.39", ports=[{"port": 81, "protocol": "TCP", "nodePort": 30256}], externalIPs=["10.88.0.2"]
)
SERVICES = [WEB, KUBERNETES, EMPTY, HEADLESS, OUTSIDE, PORTS, LOCAL]


@dataclass
class World:
    """The live rules, as files that an `iptables-save` and an `nft` print; and Pods, all on one loopback port."""

    root: Path
    port: int = 0
    asked: int = 0
    wrong: Callable[[int], None] = lambda number: None

    def __post_init__(self) -> None:
        self.have(IPTABLES)
        a_program(self.root / "bin/nft", f"cat {self.root}/nft")
        a_program(self.root / "bin/iptables-save", f"[ $# = 1 ] && [ $1 = -c ] && exec cat {self.root}/save")

    def have(self, iptables: str, nftables: str = "") -> None:
        (self.root / "save").write_text(iptables)
        if nftables:
            (self.root / "nft").write_text(nftables)

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """Go to the Pods one after the other, and count that in the rules, as the kernel does."""
        text = (self.root / "save").read_text()
        ends = re.findall(r'\[\d+:\d+\] -A KUBE-SEP-.*"default/web".* -j DNAT .*', text)
        end = ends[self.asked % len(ends)]
        packets = int(re.findall(r"\d+", end)[0]) + 1
        (self.root / "save").write_text(text.replace(end, re.sub(r"\[\d+:\d+\]", f"[{packets}:60]", end)))
        self.asked += 1
        self.wrong(self.asked)
        return socket.create_connection(("127.0.0.1", self.port), timeout)


@dataclass(frozen=True)
class Fake(Host):
    """A machine in this world."""

    world: World = field(kw_only=True)

    def enter(self) -> Sequence[str]:
        return ("env", f"PATH={self.world.root}/bin:/usr/bin:/bin")

    def connect(
        self, host: str, port: int, timeout: float, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        assert (host, port) == ("10.89.80.232", 80), "only the ClusterIP is asked"
        return self.world.connect(host, port, timeout)


@dataclass
class Stage:
    world: World
    context: Context
    endpoints: dict[str, Any]

    def trace(self, *arguments: str) -> int:
        return Trace.act(cast(Trace, None), cast(Cluster, SimpleNamespace(context=self.context)), [*arguments])

    def fails(self, *arguments: str) -> str:
        with pytest.raises(DmucError) as failed:
            self.trace(*arguments)
        return str(failed.value)


def endpoints(name: str, addresses: Mapping[str, str], port: int) -> dict[str, Any]:
    people = [
        {"ip": ip, "targetRef": {"kind": "Pod", "name": pod}} if pod else {"ip": ip} for ip, pod in addresses.items()
    ]
    return {
        "metadata": {"namespace": "default", "name": name},
        "subsets": [{"addresses": people, "ports": [{"port": port}]}],
    }


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    world = World(tmp_path)
    context = a_context(tmp_path, on=Fake(world=world), machine="fake", link_range="10.88.0.0/30")
    known = {name: endpoints(name, PODS, 80) for name in ("web", "ports", "local")}
    known["kubernetes"] = endpoints("kubernetes", {"10.88.0.2": ""}, 6443)
    known["nobody"] = {"metadata": {"namespace": "default", "name": "nobody"}, "subsets": None}

    def request(context: Context, url: str, **_: Any) -> tuple[int, str]:
        path = url.partition(":6443")[2].partition("?")[0]
        results = {
            "/api/v1/services": SERVICES,
            "/api/v1/namespaces/default/endpoints": list(known.values()),
        }
        return 200, json.dumps({"items": results[path]})

    monkeypatch.setattr(probe, "request", request)
    monkeypatch.setattr(trace, "_FOLLOWS", 0)
    with serving(Site()) as site:
        world.port = int(site.server_address[1])
        yield Stage(world, context, known)


# The tree


FOUR_PODS = """\
default/web                                               share   requests
└── ClusterIP 10.89.80.232:80/tcp
    └── OUTPUT, PREROUTING
        └── KUBE-SERVICES
            └── KUBE-SVC-LOLE4ISW44XBNF3G
                ├── 1/4 KUBE-SEP-TELS6ZZI7OE43752  (masquerades packets from 10.90.0.2)
                │   └── DNAT to 10.90.0.2:80, Pod web-2     1/4         25
                ├── 1/3 KUBE-SEP-X2BYEBCKLBC3DUWX  (masquerades packets from 10.90.0.3)
                │   └── DNAT to 10.90.0.3:80, Pod web-3     1/4         25
                ├── 1/2 KUBE-SEP-PXYLYTBTVUTYKR6E  (masquerades packets from 10.90.0.4)
                │   └── DNAT to 10.90.0.4:80, Pod web-4     1/4         25
                └── 1   KUBE-SEP-SPVOJRV5V5NEXBTQ  (masquerades packets from 10.90.0.5)
                    └── DNAT to 10.90.0.5:80, Pod web-5     1/4         25
ClusterIP 10.89.80.232:80/tcp: 100 requests, 100 answered
"""


def test_four_pods(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.trace("web") == 0
    assert capsys.readouterr().out == FOUR_PODS


def drawn(stage: Stage, service: Any) -> str:
    found = trace.way(stage.context, service)
    assert isinstance(found, Branch), found
    text = trace.draw(found, {ip: f"Pod {pod}" for ip, pod in PODS.items()}, {})
    assert max(map(len, text.splitlines())) <= 120
    return text


def test_a_node_port_and_a_client_that_stays_with_its_pod(stage: Stage) -> None:
    text = drawn(stage, PORTS)
    assert text.count("(same client, same Pod for 10800 s)") == 1
    assert text.count("share") == 1 and text.count(" 1/4\n") == 4
    cluster_ip, node_port = text.split("└── NodePort 10.88.0.2:30080/tcp\n")
    assert "├── ClusterIP 10.89.205.184:80/tcp" in cluster_ip
    assert node_port.splitlines()[2:] == [
        "            └── KUBE-NODEPORTS  (masquerades all packets)",
        "                └── KUBE-SVC-EMSYAJ3DIFHPTYPG  (as above)",
    ]


def test_external_traffic_to_the_nodes_own_pods(stage: Stage) -> None:
    text = drawn(stage, LOCAL)
    assert "KUBE-NODEPORTS  (masquerades packets from 127.0.0.0/8)" in text
    assert "    KUBE-SVC-NEXWZWH5PGMW4KIO  (only packets from LOCAL addresses; as above)" in text
    assert "external IP 10.88.0.2:81/tcp" in text


def test_no_endpoints_are_told_from_no_rules(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.trace("nobody") == 0
    text = capsys.readouterr().out
    assert "table filter: FORWARD, OUTPUT" in text
    assert "REJECT default/nobody has no endpoints" in text
    assert text.endswith("default/nobody has no endpoints: no Pod of it is Ready.\n")


# What proxier_test.go of later releases expects, as iptables-save prints it; the names shortened.
NEWER = """\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXT-GNZ - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SEP-RS4 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-GNZ - [0:0]
:KUBE-SVL-GNZ - [0:0]
[0:0] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A KUBE-EXT-GNZ -s 10.90.0.0/24 -m comment --comment "pod traffic for x external destinations" -j KUBE-SVC-GNZ
[0:0] -A KUBE-EXT-GNZ -m comment --comment "masquerade LOCAL" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
[0:0] -A KUBE-EXT-GNZ -m comment --comment "route LOCAL" -m addrtype --src-type LOCAL -j KUBE-SVC-GNZ
[0:0] -A KUBE-EXT-GNZ -j KUBE-SVL-GNZ
[0:0] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
[0:0] -A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m tcp --dport 30080 -m nfacct --nfacct-name l -j KUBE-EXT-GNZ
[0:0] -A KUBE-NODEPORTS -p tcp -m comment --comment "default/ports:http" -m tcp --dport 30080 -j KUBE-EXT-GNZ
[0:0] -A KUBE-SEP-RS4 -s 10.90.0.2/32 -m comment --comment "default/ports:http" -j KUBE-MARK-MASQ
[0:0] -A KUBE-SEP-RS4 -p tcp -m comment --comment "default/ports:http" -m tcp -j DNAT --to-destination 10.90.0.2:80
[0:0] -A KUBE-SERVICES -d 10.89.205.184/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-GNZ
[0:0] -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
[0:0] -A KUBE-SVC-GNZ ! -s 10.90.0.0/24 -d 10.89.205.184/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
[0:0] -A KUBE-SVC-GNZ -m comment --comment "default/ports:http -> 10.90.0.2:80" -j KUBE-SEP-RS4
[0:0] -A KUBE-SVL-GNZ -m comment --comment "default/ports:http -> 10.90.0.2:80" -j KUBE-SEP-RS4
COMMIT
"""


def test_the_chains_of_newer_releases(stage: Stage) -> None:
    stage.world.have(NEWER)
    cluster_ip, node_port = drawn(stage, PORTS).split("└── NodePort")
    assert "KUBE-SVC-GNZ  (masquerades packets not from 10.90.0.0/24)" in cluster_ip
    lines = [line.lstrip("│├└─ ") for line in node_port.splitlines() if "-GNZ" in line]
    assert lines == [
        "KUBE-EXT-GNZ  (masquerades packets from LOCAL addresses)",
        "KUBE-SVC-GNZ  (only packets from 10.90.0.0/24)",
        "KUBE-SVC-GNZ  (only packets from LOCAL addresses)",
        "KUBE-SVL-GNZ",
    ]


FOUR_PODS_OF_NFTABLES = """\
default/web                                               share
└── ClusterIP 10.89.80.232:80/tcp
    └── nat-output, nat-prerouting
        └── services
            └── service-PFISGYVC-default/web/tcp/
                ├── 1/4 DNAT to 10.90.0.2:80, Pod web-2     1/4
                ├── 1/4 DNAT to 10.90.0.3:80, Pod web-3     1/4
                ├── 1/4 DNAT to 10.90.0.4:80, Pod web-4     1/4
                └── 1/4 DNAT to 10.90.0.5:80, Pod web-5     1/4"""


def test_nftables_draw_the_pod(stage: Stage) -> None:
    stage.world.have(NO_RULES, NFTABLES["1.36"])
    assert drawn(stage, WEB) == FOUR_PODS_OF_NFTABLES


def test_nftables_draw_a_chain_for_each_pod(stage: Stage) -> None:
    stage.world.have(NO_RULES, NFTABLES["1.31"])
    web = drawn(stage, WEB)
    assert "nat-output, nat-prerouting" in web
    drawing = r"[├└]── 1/4 endpoint-\w+-default/web/tcp/__(10\.90\.0\.\d)/80  \(masquerades packets from \1\)$"
    assert len(re.findall(drawing, web, re.MULTILINE)) == 4
    assert len(re.findall(r"DNAT to 10\.90\.0\.(\d):80, Pod web-\1 +1/4$", web, re.MULTILINE)) == 4


@pytest.mark.parametrize("release", NFTABLES)
def test_the_other_services_of_nftables(stage: Stage, release: str) -> None:
    stage.world.have(NO_RULES, NFTABLES[release])
    ports = drawn(stage, PORTS)
    assert ports.count("(same client, same Pod for 10800 s)") == 1 and ports.count(" 1/4\n") == 4
    assert "external-R5BBS2CD-default/ports/tcp/http  (masquerades all packets)" in ports
    local = drawn(stage, LOCAL)
    assert "external-O7JKBUXF-default/local/tcp/  (masquerades packets from LOCAL addresses)" in local
    assert "service-O7JKBUXF-default/local/tcp/  (only packets from LOCAL addresses; as above)" in local
    empty = drawn(stage, EMPTY)
    assert "filter-output" in empty and "reject-chain" in empty and "REJECT" in empty


# For `doit why`


@pytest.mark.parametrize(
    ("iptables", "nftables"),
    [(IPTABLES, ""), *((NO_RULES, rules) for rules in NFTABLES.values())],
    ids=["iptables", *NFTABLES],
)
def test_what_the_rules_know_of_a_service(stage: Stage, iptables: str, nftables: str) -> None:
    stage.world.have(iptables, nftables)
    assert trace.known_to_rules(stage.context, "default/web") == ["10.89.80.232:80"]
    assert trace.known_to_rules(stage.context, "default/we") == trace.known_to_rules(stage.context, "web") == []
    assert "10.89.205.184:80" in trace.known_to_rules(stage.context, "default/ports")
    assert trace.has_rules(stage.context, WEB) == Result(True, "default/web has its rules")
    empty = trace.has_rules(stage.context, EMPTY)
    assert not empty and "lead to no Pod" in empty.why
    assert "has no rules" in trace.has_rules(stage.context, HEADLESS).why


def test_without_rules_none_are_known(stage: Stage) -> None:
    stage.world.have(NO_RULES)
    assert trace.known_to_rules(stage.context, "default/web") == []
    assert "no chain KUBE-SERVICES" in trace.has_rules(stage.context, WEB).why
    (stage.world.root / "bin/iptables-save").write_text("#!/bin/sh\nexit 1\n")
    assert "exit code 1" in trace.has_rules(stage.context, WEB).why


# Without rules


@pytest.mark.parametrize(
    ("name", "parts"),
    [("headless", ("headless (clusterIP: None)", "has no rules")), ("outside", ("example.org", "has no rules"))],
)
def test_what_needs_no_rules(stage: Stage, capsys: pytest.CaptureFixture[str], name: str, parts: tuple[str]) -> None:
    assert stage.trace(name) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in parts)


def test_what_kube_proxy_has_not_written_is_said(stage: Stage) -> None:
    stage.world.have(NO_RULES)
    text = stage.fails("web")
    assert "kube-proxy has written no rules: there is no chain KUBE-SERVICES" in text
    assert "Run: scripts/doit kube_proxy" in text
    stage.world.have("".join(line for line in IPTABLES.splitlines(True) if "default/web" not in line))
    assert "kube-proxy has written no rules for ClusterIP 10.89.80.232:80/tcp" in stage.fails("web")


def test_rules_that_do_not_follow_the_endpoints(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    pods = {"10.90.0.2": "web-2", "10.90.0.3": "web-3", "10.90.0.4": "web-4", "10.90.0.9": "web-9"}
    stage.endpoints["web"] = endpoints("web", pods, 80)
    assert stage.trace("web") == 0
    text = capsys.readouterr().out
    assert "DNAT to 10.90.0.5:80, not in the Endpoints" in text
    assert "missing: 10.90.0.9:80; out of date: 10.90.0.5:80" in text


# Arguments, and the API


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the name of one Service is needed"),
        (("web", "kubernetes"), "the name of one Service is needed"),
        (("wbe",), "there is no Service 'wbe'"),
        (("other/web",), "there is no Service 'other/web'"),
    ],
)
def test_an_unknown_service_is_said_with_those_that_there_are(
    stage: Stage, arguments: tuple[str, ...], said: str
) -> None:
    text = stage.fails(*arguments)
    assert said in text
    assert "Services: default/headless, default/kubernetes, default/local, default/nobody, default/outside" in text


def test_a_namespace_can_be_said(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.trace("default/headless") == 0


def test_an_api_server_that_is_down_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*_: Any, **__: Any) -> tuple[int, str]:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(probe, "request", request)
    text = stage.fails("web")
    assert "the API server does not answer: connection refused" in text and "scripts/doit status" in text


# Requests


def asked(capsys: pytest.CaptureFixture[str]) -> tuple[list[int], str]:
    """The numbers beside the Pods, and what is said of the requests."""
    text = capsys.readouterr().out
    return [int(n) for n in re.findall(r"DNAT .* 1/4 +(\d+)$", text, re.MULTILINE)], text.splitlines()[-1]


def rewritten(stage: Stage) -> None:
    (stage.world.root / "save").write_text(IPTABLES)


def test_counters_that_restart_are_read_once_more(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.world.wrong = lambda number: rewritten(stage) if number == 50 else None
    assert stage.trace("web") == 0
    assert asked(capsys) == ([25] * 4, "ClusterIP 10.89.80.232:80/tcp: 100 requests, 100 answered")


def test_counters_that_always_restart_are_not_trusted(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.world.wrong = lambda number: rewritten(stage) if number % 50 == 0 else None
    assert stage.trace("web") == 0
    numbers, said = asked(capsys)
    assert numbers == [] and said.endswith("not counted: the rules changed meanwhile, or other clients sent requests")


def test_requests_that_fail_end_soon(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(number: int) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    stage.world.wrong = refuse
    assert stage.trace("web") == 1
    numbers, said = asked(capsys)
    assert said.endswith("3 of 100 requests, 0 answered; the last failure: Connection refused")
    assert sum(numbers) == 3


def test_one_that_fails_is_said(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(number: int) -> None:
        if number == 50:
            raise ConnectionRefusedError(111, "Connection refused")

    stage.world.wrong = refuse
    assert stage.trace("web") == 1
    assert "100 requests, 99 answered; the last failure: Connection refused" in asked(capsys)[1]


def test_who_accepts_and_is_silent_is_only_connected_to(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_LIMIT", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        stage.world.port = silent.getsockname()[1]
        assert stage.trace("web") == 0
    numbers, said = asked(capsys)
    assert numbers == [25] * 4
    assert "100 connections, 100 accepted; no answer to the first HTTP requests" in said


def test_no_time_is_left(stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_DEADLINE", 0.0)
    assert stage.trace("web") == 0
    assert "0 of 100 requests, 0 answered" in asked(capsys)[1]


@pytest.mark.parametrize("release", NFTABLES)
def test_without_counters_the_kernels_connections_are_counted(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    root = stage.world.root
    stage.world.have(NO_RULES, NFTABLES[release])
    table: list[str] = []

    def connect(host: str, port: int, timeout: float) -> socket.socket:
        stream = socket.create_connection(("127.0.0.1", stage.world.port), timeout)
        pod, ours = f"10.90.0.{len(table) % 4 + 2}", stream.getsockname()[1]
        table.append(
            f"tcp      6 119 TIME_WAIT src=10.88.0.2 dst={host} sport={ours} dport={port} "
            f"src={pod} dst=10.88.0.2 sport=80 dport={ours} [ASSURED] mark=0 use=1\n"
        )
        (root / "conntrack").write_text("".join(table))
        return stream

    monkeypatch.setattr(stage.world, "connect", connect)
    a_program(root / "bin/conntrack", f'[ "$*" = "-L -d 10.89.80.232" ] && exec cat {root}/conntrack')
    assert stage.trace("web") == 0
    numbers, said = asked(capsys)
    assert numbers == [25] * 4 and said.endswith("100 requests, 100 answered")
    (root / "conntrack").unlink()
    monkeypatch.setattr(stage.world, "connect", lambda *_: socket.create_connection(("127.0.0.1", stage.world.port)))
    assert stage.trace("web") == 0
    numbers, said = asked(capsys)
    assert numbers == [] and "not counted" in said
