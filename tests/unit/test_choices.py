"""What the settings and the release come to together, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import dodo
from tasks.choices import engine, rbac_enabled
from tasks.cluster import load
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.facts import HostFacts
from tasks.core.release import RELEASES
from tasks.engines.chosen import refuse_kubelet


def a_cluster(root: Path, host: HostFacts | None = None, /, **settings: str) -> Context:
    words = [f"{name}={value}" for name, value in settings.items()]
    return load(root, {}, words, dodo.PARTS, facts=host).context


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"kubernetes": "1.19"}, "docker"),
        ({"kubernetes": "1.23"}, "docker"),
        ({"kubernetes": "1.23", "engine": "containerd"}, "containerd"),
        ({"kubernetes": "1.24"}, "containerd"),
        ({"kubernetes": "1.36.2", "engine": "containerd"}, "containerd"),
    ],
)
def test_the_engine_is_the_releases_unless_the_user_says(tmp_path: Path, settings: dict[str, str], wanted: str) -> None:
    assert engine(a_cluster(tmp_path, **settings)) == wanted


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"kubernetes": "1.19"}, False),
        ({"kubernetes": "1.19", "security": "rbac"}, True),
        ({"kubernetes": "1.20"}, True),
        ({"kubernetes": "1.20", "security": "none"}, False),
        ({"kubernetes": "1.20", "insecure_port": "on"}, False),
        ({"kubernetes": "1.36"}, True),
    ],
)
def test_security_is_the_default_from_1_20_on(tmp_path: Path, settings: dict[str, str], wanted: bool) -> None:
    assert rbac_enabled(a_cluster(tmp_path, **settings)) is wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kubernetes": "1.24", "engine": "docker"}, ("engine=docker", "1.23 is the last", "engine=containerd")),
        ({"kubernetes": "1.36.2", "engine": "docker"}, ("engine=docker",)),
        ({"engine": "podman"}, ("engine=podman: must be one of auto, docker, containerd",)),
        ({"kubernetes": "1.28", "proxy_mode": "nftables"}, ("proxy_mode=nftables", "iptables, ipvs", "1.29")),
        ({"proxy_mode": "ebpf"}, ("proxy_mode=ebpf: must be one of iptables, nftables, ipvs",)),
        ({"security": "tls"}, ("security=tls: must be one of auto, rbac, none",)),
        ({"security": "rbac", "insecure_port": "on"}, ("security=rbac, insecure_port=on",)),
        ({"kubernetes": "1.18"}, ("'1.18'", "1.19 to 1.37")),
        ({"kubernetes": "1.38"}, ("'1.38'", "1.19 to 1.37", "PROGRAM_bin=PATH")),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    tmp_path: Path, settings: dict[str, str], said: tuple[str, ...]
) -> None:
    with pytest.raises(DmucError) as error:
        a_cluster(tmp_path, **settings)
    for text in said:
        assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


def a_kernel(root: Path, *files: str) -> HostFacts:
    """A host on which these files of /proc and /lib/modules are all that there are."""
    for file in ("proc/sys/kernel/osrelease: 6.1.0", *files):
        path, _, text = file.partition(": ")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return HostFacts(root)


MODULES = "lib/modules/6.1.0"
MODULE = "kernel/net/netfilter/ipvs/ip_vs.ko.xz"


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ((), False),
        ((f"{MODULES}/modules.dep: kernel/net/netfilter/xt_ipvs.ko: {MODULE}x",), True),
        ((f"{MODULES}/modules.dep: kernel/net/netfilter/nf_nat.ko:", f"{MODULES}/modules.builtin: a.ko"), False),
        ((f"{MODULES}/modules.builtin: {MODULE}",), True),
        (("lib/modules/another/modules.dep: " + MODULE,), False),
        (("proc/net/ip_vs: IP Virtual Server version 1.2.1",), True),
    ],
)
def test_ipvs_is_refused_when_the_kernel_has_none(tmp_path: Path, files: tuple[str, ...], has: bool) -> None:
    host = a_kernel(tmp_path / "kernel", *files)
    if has:
        assert a_cluster(tmp_path / "checkout", host, proxy_mode="ipvs").settings.proxy_mode == "ipvs"
    else:
        with pytest.raises(DmucError, match=r"this kernel has no IPVS: no /proc/net/ip_vs") as error:
            a_cluster(tmp_path / "checkout", host, proxy_mode="ipvs")
        assert "CONFIG_IP_VS" in error.value.do


def test_a_kubelet_of_ones_own_is_judged_by_its_own_release(tmp_path: Path) -> None:
    older = a_cluster(tmp_path, kubernetes="1.24", kubelet_bin="/my/kubelet", engine="docker")
    refuse_kubelet(older, RELEASES["1.23"])
    with pytest.raises(DmucError, match=r"engine=docker: a kubelet of 1\.24 cannot"):
        refuse_kubelet(older, RELEASES["1.24"])
    newer = a_cluster(tmp_path, kubernetes="1.20", kubelet_bin="/my/kubelet")
    with pytest.raises(DmucError, match=r"Docker is the engine of 1\.20: a kubelet of 1\.24 cannot") as error:
        refuse_kubelet(newer, RELEASES["1.24"])
    assert "engine=containerd" in error.value.do


def test_a_kube_proxy_of_ones_own_may_have_what_the_release_lacks(tmp_path: Path) -> None:
    assert a_cluster(tmp_path, proxy_mode="nftables", kube_proxy_bin="/my/kube-proxy")


@pytest.mark.parametrize(
    ("minor", "containerd", "fits"),
    [
        ("1.20", "1.6.20~ds1", True),
        ("1.20", "v1.5.9", True),
        ("1.22", "v2.0.4", False),
        ("1.23", "v2.0.4", True),
        ("1.26", "v1.5.9", False),
        ("1.36", "v1.7.34", True),
    ],
)
def test_kubelet_and_containerd_must_have_a_cri_in_common(
    tmp_path: Path, minor: str, containerd: str, fits: bool
) -> None:
    context = a_cluster(tmp_path, kubernetes=minor, engine="containerd")
    if fits:
        refuse_kubelet(context, RELEASES[minor], containerd)
        return
    with pytest.raises(DmucError) as error:
        refuse_kubelet(context, RELEASES[minor], containerd)
    assert f"containerd {containerd} does not" in error.value.seen and "containerd_bin=PATH" in error.value.do
