"""kube-proxy's modes: what it is told, and what is removed of what it has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.machine import Host
from tasks.core.process import boot
from tasks.proxies.kube_proxy import DAEMON as KUBE_PROXY
from tests.unit.support import a_context, a_program, on_machine, set_programs

RULES = """\
*nat
:KUBE-SERVICES - [0:0]
:DOCKER - [0:0]
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -j RETURN
-A DOCKER -j RETURN
COMMIT
"""


IPVS = '[ "$*" = "link show kube-ipvs0" ] && echo "7: kube-ipvs0: <BROADCAST,NOARP>"'


@dataclass(frozen=True)
class Fake(Host):
    """A machine whose programs say what they are asked, in the file `said`."""

    bin: Path = Path()
    others: str = ":/usr/bin:/bin"

    def enter(self) -> Sequence[str]:
        return ("/usr/bin/env", f"PATH={self.bin}{self.others}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("nft", "kube-proxy", "ip6tables-save", "ip6tables-restore", "iptables-restore"):
        a_program(tmp_path / "bin" / name, f'echo "{name} $*" >> {tmp_path}/said; cat >> {tmp_path}/said')
    (tmp_path / "rules").write_text(RULES)
    a_program(tmp_path / "bin/iptables-save", f"cat {tmp_path}/rules")
    a_program(tmp_path / "bin/ip", "exit 1")  # there is no link kube-ipvs0
    return tmp_path


def cluster(root: Path, mode: str, kubernetes: str = "1.36") -> Context:
    context = a_context(root, on=Fake(bin=root / "bin"), proxy_mode=mode, kubernetes=kubernetes)
    set_programs(context, {"kube-proxy": root / "bin/kube-proxy"})
    context.pidfiles.mkdir(exist_ok=True)
    return context


def said(root: Path) -> str:
    return (root / "said").read_text() if (root / "said").exists() else ""


def prepare(context: Context, *, was_ready: bool = True) -> None:
    if was_ready:
        (context.pidfiles / "kube_proxy.ran").touch()
    assert KUBE_PROXY.prepare is not None
    KUBE_PROXY.prepare(context)


@pytest.mark.parametrize(
    ("kubernetes", "mode", "told"),
    [
        ("1.36", "iptables", []),
        ("1.36", "nftables", ["--proxy-mode=nftables"]),
        ("1.30", "nftables", ["--proxy-mode=nftables", "--feature-gates=NFTablesProxyMode=true"]),
        ("1.20", "ipvs", ["--proxy-mode=ipvs"]),
    ],
)
def test_the_mode_is_said_where_it_is_not_the_default(root: Path, kubernetes: str, mode: str, told: list[str]) -> None:
    flags = [flag.text for flag in KUBE_PROXY.flags(cluster(root, mode, kubernetes))]
    assert [flag for flag in flags if flag.startswith(("--proxy", "--feature"))] == told


@pytest.mark.parametrize(("kubernetes", "says"), [("1.34", False), ("1.35", True)])
def test_that_ipvs_is_deprecated_is_said(root: Path, kubernetes: str, says: bool) -> None:
    probes = KUBE_PROXY.ready.probes  # type: ignore[attr-defined]
    assert ("deprecated" in probes[-1](cluster(root, "ipvs", kubernetes)).why) is says


def test_nftables_follow_iptables(root: Path) -> None:
    prepare(cluster(root, "nftables"))
    asked, _, restored = said(root).partition("\n")
    assert asked == "iptables-restore -w --noflush"
    assert "-D OUTPUT -j KUBE-SERVICES\n" in restored and "-X KUBE-SERVICES\n" in restored
    assert "DOCKER" not in restored
    assert "nft" not in said(root) and "kube-proxy" not in said(root)


def test_iptables_follow_nftables(root: Path) -> None:
    prepare(cluster(root, "iptables"))
    assert said(root).splitlines() == [
        f"nft {verb} table {family} kube-proxy" for family in ("ip", "ip6") for verb in ("list", "delete")
    ]


def test_a_kernel_without_nf_tables_has_no_tables_to_delete(root: Path) -> None:
    a_program(root / "bin/nft", "echo 'Error: Could not process rule: Operation not supported' >&2; exit 1")
    prepare(cluster(root, "iptables"))


def test_iptables_follow_ipvs(root: Path) -> None:
    a_program(root / "bin/ip", IPVS)
    prepare(cluster(root, "iptables"))
    assert "kube-proxy --cleanup" in said(root)


def test_without_nft_there_are_no_tables_of_it(root: Path) -> None:
    (root / "bin/nft").unlink()
    (root / "bin/sh").symlink_to("/bin/sh")
    prepare(on_machine(cluster(root, "iptables"), Fake(bin=root / "bin", others="")))
    assert said(root) == ""


def test_what_is_not_ours_stays(root: Path) -> None:
    prepare(cluster(root, "nftables"), was_ready=False)
    assert said(root) == ""


def test_what_ran_before_the_host_was_booted_has_left_nothing(root: Path) -> None:
    context = cluster(root, "nftables")
    (context.pidfiles / "kube_proxy.ran").write_text("another boot")
    prepare(context, was_ready=False)
    clean_up(context)
    assert said(root) == ""


def clean_up(context: Context) -> None:
    assert KUBE_PROXY.clean_up is not None
    KUBE_PROXY.clean_up(context)


def test_taking_it_back_takes_all_and_needs_no_program(root: Path) -> None:
    context = cluster(root, "nftables")
    (context.pidfiles / "kube_proxy.ran").write_text(boot())
    context.programs_file.unlink()
    clean_up(context)
    assert "delete table ip kube-proxy" in said(root) and "-X KUBE-SERVICES" in said(root)


def test_only_to_leave_ipvs_it_needs_its_program_and_says_so(root: Path) -> None:
    context = cluster(root, "ipvs")
    (context.pidfiles / "kube_proxy.ran").write_text(boot())
    a_program(root / "bin/ip", IPVS)
    context.programs_file.unlink()
    with pytest.raises(DmucError) as error:
        clean_up(context)
    assert "kube-ipvs0" in error.value.seen and "ip link delete kube-ipvs0" in error.value.do
    assert "-X KUBE-SERVICES" in said(root)  # all else is done
    a_program(root / "bin/ip", "exit 1")  # done by hand
    clean_up(context)
