"""What IPVS has, as text of the kernel, becomes the same chains and rules as those of iptables."""

from __future__ import annotations

from fractions import Fraction

from tasks.proxies import ipvs
from tasks.proxies.netfilter import Packet
from tasks.proxies.paths import tree

TEXT = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A5F0002:192B      Masq    1      0          0
TCP  0A603D08:0050 wrr persistent 10800 FFFFFFFF
  -> 0AF40003:0050      Masq    3      0          0
  -> 0AF40002:0050      Masq    1      0          0
  -> 0AF40004:0050      Masq    0      0          0
UDP  0A60000A:0035 nosuch
"""
SETS = """\
create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536
add KUBE-CLUSTER-IP 10.96.0.1,tcp:443
add KUBE-CLUSTER-IP 10.96.61.8,tcp:80
create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536
add KUBE-LOOP-BACK 10.244.0.2,tcp:80,10.244.0.2
"""


def ends(packet: Packet) -> dict[str, Fraction]:
    branches = tree(ipvs.parse(TEXT, SETS), packet)
    return {end.destination: end.share for branch in branches for end in branch.ends()}


def test_each_pod_gets_a_share_as_large_as_its_weight() -> None:
    assert ends(Packet("10.96.0.1", 443)) == {"10.95.0.2:6443": 1}
    shares = {"10.244.0.3:80": Fraction(3, 4), "10.244.0.2:80": Fraction(1, 4)}
    assert ends(Packet("10.96.61.8", 80)) == shares  # and none to one that is going away
    assert ends(Packet("10.96.61.8", 81)) == ends(Packet("10.96.61.9", 80)) == {}
    assert ends(Packet("10.96.61.8", 80, "udp")) == {}
    assert ends(Packet("10.96.0.10", 53, "udp")) == {}


def test_scheduler_ipset_and_persistence_are_said() -> None:
    ((branch,),) = (tree(ipvs.parse(TEXT, SETS), Packet("10.96.61.8", 80)),)
    (server,) = branch.children
    assert (branch.label, server.label) == (
        "LOCAL_IN",
        "IPVS wrr (weighted round robin) in ipset KUBE-CLUSTER-IP: 10.96.61.8:80/tcp",
    )
    assert list(server.remarks) == ["same client, same Pod for 10800 s"]
    assert "ipset" not in str(ipvs.parse(TEXT, ""))


def test_a_server_without_a_scheduler_that_is_known_has_its_name() -> None:
    assert "IPVS nosuch: 10.96.0.10:53/udp" in ipvs.parse(TEXT)["nat"].chains
