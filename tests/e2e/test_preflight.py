"""`doit preflight` on this very host, before anything was started; and a cluster on legacy iptables."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import host_picture
from tests.e2e.conftest import STATE, doit, take

run = partial(subprocess.run, check=True)

SWITCH = """
for tables in iptables ip6tables; do
  for what in "" -save -restore; do ln -sf "/usr/sbin/$tables-$1$what" "/etc/alternatives/$tables$what"; done
done
"""


def switch(kind: str) -> None:
    """Have the machine's own /etc name this iptables; the host's stays."""
    doit("shell", "--", "sh", "-euc", SWITCH, "sh", kind)


def test_it_says_what_the_host_is_like_and_changes_nothing(before: host_picture.Picture) -> None:
    doit("clean")
    at_first = take()
    text = doit("preflight").stdout
    assert text.endswith("Nothing is in the way.\n") and "✗" not in text
    assert "✓ root           yes\n" in text
    assert ("✓ swap           none" in text) == (len(Path("/proc/swaps").read_text().splitlines()) == 1)
    version = subprocess.run(["iptables", "--version"], capture_output=True, text=True, check=True).stdout
    kind = "nft" if "nf_tables" in version else "legacy"
    assert f", {kind} (iptables --version)" in text
    assert re.search(r"^✓ programs       kube-apiserver, .*kubelet(, kubectl)?:\n? +v1\.20\.2, ", text, re.MULTILINE), (
        text
    )
    assert max(map(len, text.splitlines())) <= 110
    assert not STATE.exists()
    assert host_picture.difference_settled(at_first, take, deadline=30) == ""


def test_what_is_in_the_way_is_said_with_what_to_do(before: host_picture.Picture) -> None:
    run(["ip", "link", "add", "e2e-taken", "type", "bridge"])
    try:
        run(["ip", "address", "add", "10.98.0.9/24", "dev", "e2e-taken"])
        text = doit("preflight", "kubelet_bin=/nosuch", status=1).stdout
    finally:
        run(["ip", "link", "delete", "e2e-taken"])
    assert "✗ ranges         link_range=10.98.0.0/30 overlaps 10.98.0.0/24" in text
    assert "Choose another range with link_range=…" in text
    assert "✗ programs       There is no such file.\n" in text and "kubelet_bin=PATH" in text
    assert text.endswith("The cluster cannot run before these are fixed (✗): ranges, programs.\n")


def test_a_cluster_on_legacy_iptables(before: host_picture.Picture) -> None:
    doit("machine")
    try:
        asked = ["shell", "--", "iptables-legacy", "-t", "nat", "-S"]
        if doit(*asked, status=None).returncode:
            pytest.skip("this kernel has no ip_tables")
        switch("legacy")
        assert "legacy" in doit("shell", "--", "iptables", "--version").stdout
        doit("service_reachable")
        assert "KUBE-SERVICES" in doit("shell", "--", "iptables-legacy-save").stdout
        assert "KUBE-SERVICES" not in doit("shell", "--", "iptables-nft-save").stdout
        assert "100 requests, 100 answered" in doit("trace", "web").stdout
        assert "✓ rules              default/web has its rules" in doit("why").stdout
        # As after `update-alternatives` under a running cluster: now there are two that write rules.
        switch("nft")
        text = doit("preflight").stdout
        assert re.search(r"^! legacy rules   \d+ on e2e \(iptables-legacy-save\)$", text, re.MULTILINE), text
    finally:
        doit("clean")
