"""What iptables-save and nft print becomes rules: recorded from the real programs (see data/README.md), and by line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tasks.proxies.netfilter import Packet, Rule, Table, parse_iptables, parse_nftables

DATA = Path(__file__).parent / "data"
WEB = "KUBE-SVC-LOLE4ISW44XBNF3G"


@pytest.fixture(scope="module")
def iptables() -> dict[str, Table]:
    return parse_iptables((DATA / "iptables-save-1.20.txt").read_text())


@pytest.fixture(scope="module", params=["1.31", "1.36"])
def nftables(request: pytest.FixtureRequest) -> dict[str, Table]:
    return of_nftables(request.param)


def of_nftables(release: str) -> dict[str, Table]:
    return parse_nftables((DATA / f"nft-list-table-kube-proxy-{release}.json").read_text())


def rule(text: str) -> Rule:
    """The only rule of a table."""
    return parse_iptables(f"*nat\n:C - [0:0]\n{text}\nCOMMIT\n")["nat"].chains["C"][0]


# iptables


def test_tables_have_their_chains_and_hooks(iptables: dict[str, Table]) -> None:
    assert set(iptables) == {"mangle", "filter", "nat"}
    assert set(iptables["nat"].hooks) == {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}
    assert set(iptables["filter"].hooks) == {"INPUT", "FORWARD", "OUTPUT"}
    assert iptables["nat"].chains["KUBE-PROXY-CANARY"] == []


def test_the_probabilities_of_four_pods(iptables: dict[str, Table]) -> None:
    rules = iptables["nat"].chains[WEB]
    assert [rule.probability for rule in rules] == [Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), 1]
    ends = [iptables["nat"].chains[rule.targets[0]][-1] for rule in rules]
    assert [(*end.targets, *end.destinations) for end in ends] == [("DNAT", f"10.90.0.{n}:80") for n in (2, 3, 4, 5)]
    assert all(end.packets is not None and end.comment == "default/web" for end in ends)


@pytest.mark.parametrize(
    ("printed", "meant"), [("0.14285714272", "1/7"), ("0.33333333349", "1/3"), ("0.01000000000", "1/100")]
)
def test_probabilities_are_fractions(printed: str, meant: str) -> None:
    assert rule(f"-A C -m statistic --mode random --probability {printed} -j X").probability == Fraction(meant)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[5:300] -A C -j X", Rule(("X",), packets=5)),
        ("-A C -g X", Rule(("X",))),
        ("-A C", Rule()),
        (
            "-A C -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j X",
            Rule(("X",), networks=("10.0.0.1/32",), protocol="tcp", port=80),
        ),
        ("-A C -p udp -m udp --dport 80:90 -j X", Rule(("X",), protocol="udp", conditions=("--dport 80:90",))),
        ('-A C -m comment --comment "a \\"b\\" -j c" -j X', Rule(("X",), comment='a "b" -j c')),
        ("-A C -m comment --comment a/b:c -j X", Rule(("X",), comment="a/b:c")),
        ("-A C -s 10.0.0.1/32 -j X", Rule(("X",), conditions=("from 10.0.0.1",))),
        ("-A C ! -s 10.0.0.0/8 -j X", Rule(("X",), conditions=("not from 10.0.0.0/8",))),
        ("-A C ! -d 10.0.0.0/8 -j X", Rule(("X",), conditions=("! -d 10.0.0.0/8",))),
        ("-A C -i lo ! -o docker0 -j X", Rule(("X",), conditions=("-i lo", "! -o docker0"))),
        ("-A C -m addrtype --dst-type LOCAL -j X", Rule(("X",), local=True)),
        ("-A C -m addrtype ! --src-type LOCAL -j X", Rule(("X",), conditions=("not from LOCAL addresses",))),
        ("-A C -m conntrack --ctstate NEW -j X", Rule(("X",))),
        ("-A C -m conntrack --ctstate INVALID -j DROP", Rule(("DROP",), conditions=("--ctstate INVALID",))),
        ("-A C -m nfacct --nfacct-name n -j X", Rule(("X",))),
        (
            "-A C -m recent --rcheck --seconds 9 --reap --name N --mask 255.255.255.255 --rsource -j N",
            Rule(("N",), again=9),
        ),
        (
            "-A C -p tcp -m recent --set --name N --mask 255.255.255.255 --rsource -j DNAT --to-destination 1.2.3.4:5",
            Rule(("DNAT",), protocol="tcp", destinations=("1.2.3.4:5",)),
        ),
        ("-A C -j REJECT --reject-with icmp-port-unreachable", Rule(("REJECT",))),
        ("-A C -j MARK --set-xmark 0x4000/0x4000", Rule(("MARK",))),
    ],
)
def test_a_rule_says_what_it_asks_and_does(text: str, meant: Rule) -> None:
    assert rule(text) == meant


@pytest.mark.parametrize(
    ("asks", "taken"),
    [
        ({}, True),
        ({"networks": ("10.0.0.1/32",)}, True),
        ({"networks": ("10.1.0.0/16", "10.0.0.0/24")}, True),
        ({"networks": ("10.0.0.2/32",)}, False),
        ({"networks": ()}, False),
        ({"protocol": "tcp", "port": 80}, True),
        ({"protocol": "udp"}, False),
        ({"port": 81}, False),
        ({"local": True}, False),
        ({"conditions": ("from the moon",)}, True),
    ],
)
def test_what_is_known_of_a_packet_decides(asks: dict[str, Any], taken: bool) -> None:
    assert Rule(**asks).may_take(Packet("10.0.0.1", 80)) is taken
    assert Rule(local=True).may_take(Packet("10.0.0.1", 80, local=True))


# nftables


def test_nftables_hooks_by_what_they_are_for(nftables: dict[str, Table]) -> None:
    assert set(nftables["nat"].hooks) == {"nat-output", "nat-prerouting", "nat-postrouting"}
    assert {"filter-input", "filter-forward", "filter-output"} < set(nftables["filter"].hooks)


def test_a_map_becomes_a_rule_for_each_element(nftables: dict[str, Table]) -> None:
    services = nftables["nat"].chains["services"]
    assert {(rule.networks, rule.protocol, rule.port, *rule.targets) for rule in services} == {
        (("10.51.9.194/32",), "tcp", 80, "service-PFISGYVC-default/web/tcp/"),
        (("10.51.0.1/32",), "tcp", 443, "service-2QRHZV4L-default/kubernetes/tcp/https"),
        (("10.51.11.193/32",), "udp", 53, "service-Z3XHB2ZZ-default/dns/udp/dns"),
        (("10.51.11.193/32",), "tcp", 53, "service-4R6EASBP-default/dns/tcp/dns-tcp"),
        (("10.51.89.178/32",), "tcp", 80, "service-R5BBS2CD-default/ports/tcp/http"),
        (("10.51.89.178/32",), "tcp", 8080, "service-FKU2KEAV-default/ports/tcp/more"),
        (("10.50.0.2/32",), "tcp", 30080, "external-R5BBS2CD-default/ports/tcp/http"),
        (("10.50.0.2/32",), "tcp", 30081, "external-FKU2KEAV-default/ports/tcp/more"),
        (("10.51.18.230/32",), "tcp", 81, "service-O7JKBUXF-default/local/tcp/"),
        (("10.50.0.2/32",), "tcp", 81, "external-O7JKBUXF-default/local/tcp/"),
        (("10.50.0.2/32",), "tcp", 30256, "external-O7JKBUXF-default/local/tcp/"),
    }
    (rejected,) = nftables["filter"].chains["service-endpoints-check"]  # its element has a comment
    assert (rejected.networks, rejected.targets) == (("10.51.194.36/32",), ("reject-chain",))
    assert nftables["filter"].chains["firewall-check"] == []


def test_numgen_draws_one_of_several_chains() -> None:
    chains = of_nftables("1.31")["nat"].chains
    (draw,) = chains["service-PFISGYVC-default/web/tcp/"]
    assert [target.rpartition("__")[2] for target in draw.targets] == [f"10.52.0.{n}/80" for n in (2, 3, 4, 5)]
    own, dnat = chains[draw.targets[0]]
    assert (own.targets, own.conditions) == (("mark-for-masquerade",), ("from 10.52.0.2",))
    assert dnat == Rule(("DNAT",), protocol="tcp", destinations=("10.52.0.2:80",))


def test_numgen_draws_one_of_several_addresses() -> None:
    (draw,) = of_nftables("1.36")["nat"].chains["service-PFISGYVC-default/web/tcp/"]
    where = tuple(f"10.52.0.{n}:80" for n in (2, 3, 4, 5))
    assert draw == Rule(("DNAT",) * 4, protocol="tcp", destinations=where)


def test_a_set_of_who_came_before(nftables: dict[str, Table]) -> None:
    *sticky, draw = nftables["nat"].chains["service-R5BBS2CD-default/ports/tcp/http"]
    assert [rule.again for rule in sticky] == [10800] * 4 and len(draw.targets) == 4


@pytest.mark.parametrize(("release", "mark"), [("1.31", "mark-for-masquerade"), ("1.36", "MARK")])
def test_who_comes_from_the_machine_itself_is_told_from_who_goes_to_it(release: str, mark: str) -> None:
    masquerade, shortcut, local = of_nftables(release)["nat"].chains["external-O7JKBUXF-default/local/tcp/"]
    assert masquerade.targets == (mark,) and masquerade.conditions == shortcut.conditions == ("from LOCAL addresses",)
    assert not masquerade.local and local == Rule(("local-O7JKBUXF-default/local/tcp/",))


def test_other_statements(nftables: dict[str, Table]) -> None:
    invalid, *unallocated = nftables["filter"].chains["cluster-ips-check"]
    assert invalid.targets == ("REJECT",) and "10.51.9.194/32" in (invalid.networks or ())
    assert [(rule.targets, rule.networks) for rule in unallocated] in ([], [(("DROP",), ("10.51.0.0/16",))])
    (to_services,) = nftables["nat"].chains["nat-output"]
    assert to_services == Rule(("services",))
    assert nftables["filter"].chains["filter-output"][0] == Rule(("service-endpoints-check",))  # ct state new


@pytest.mark.parametrize(
    ("expression", "meant"),
    [
        ([{"counter": {"packets": 7, "bytes": 420}}, {"accept": None}], Rule(packets=7)),
        (
            [{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}],
            Rule(local=True),
        ),
        (
            [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 53}}],
            Rule(protocol="udp", port=53),
        ),
        (
            [
                {
                    "match": {
                        "op": "==",
                        "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                        "right": {"set": ["10.0.0.1", {"prefix": {"addr": "10.1.0.0", "len": 16}}]},
                    }
                }
            ],
            Rule(networks=("10.0.0.1/32", "10.1.0.0/16")),
        ),
    ],
)
def test_a_rule_of_nftables_says_what_it_asks(expression: list[Any], meant: Rule) -> None:
    things = [{"chain": {"name": "C"}}, {"rule": {"chain": "C", "expr": expression}}]
    assert parse_nftables(json.dumps({"nftables": things}))["nat"].chains["C"] == [meant]
