"""Address ranges: those that the user has named, else the first that nothing on this host uses."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tasks import ranges
from tasks.core.settings import Settings, remember

DEFAULT = ("10.95.0.0/30", "10.96.0.0/16", "10.244.0.0/24")


def chosen(settings: Settings, state: Path) -> tuple[str, str, str]:
    found = ranges.choose(settings, state)
    assert {**settings.given, **found.given} == found.given
    return found.link_range, found.service_range, found.pod_range


@pytest.fixture(autouse=True)
def routed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[IPv4Network, str]]:
    taken: list[tuple[IPv4Network, str]] = []
    monkeypatch.setattr(ranges, "ranges_on_host", lambda: taken)
    return taken


def test_on_a_host_that_uses_none_of_them(tmp_path: Path) -> None:
    assert chosen(Settings(), tmp_path / "dmuc1") == DEFAULT
    assert ranges.choose(Settings(), tmp_path / "dmuc1").given["pod_range"] == DEFAULT[2]


def test_those_of_the_user_stay_and_the_others_avoid_them(tmp_path: Path) -> None:
    mine = Settings(service_range="10.95.0.0/16", given={"service_range": "10.95.0.0/16"})
    assert chosen(mine, tmp_path / "dmuc1") == ("172.29.0.0/30", "10.95.0.0/16", "10.244.0.0/24")


def test_those_of_the_hosts_routes_are_avoided(tmp_path: Path, routed: list[tuple[IPv4Network, str]]) -> None:
    routed += [(IPv4Network("10.96.0.0/15"), "ip route: 10.96.0.0/15 tun0")]
    assert chosen(Settings(), tmp_path / "dmuc1") == ("10.95.0.0/30", "10.98.0.0/16", "10.244.0.0/24")
    routed += [(IPv4Network("10.0.0.0/8"), "ip route: 10.0.0.0/8 tun0")]
    assert chosen(Settings(), tmp_path / "dmuc1") == ("172.29.0.0/30", "172.30.0.0/16", "172.31.0.0/24")


def test_a_machine_that_is_on_and_has_lost_its_settings_keeps_the_default(
    tmp_path: Path, routed: list[tuple[IPv4Network, str]]
) -> None:
    routed += [(IPv4Network(text), f"ip route: {text} dmuc1") for text in DEFAULT]
    assert chosen(Settings(), tmp_path / "dmuc1") == DEFAULT
    assert chosen(Settings(machine="two"), tmp_path / "two") == ("10.95.0.4/30", "10.97.0.0/16", "10.244.1.0/24")


def test_those_of_a_machine_that_is_off_are_avoided(tmp_path: Path) -> None:
    for name in ("dmuc1", "broken"):
        (tmp_path / name).mkdir()
    remember(tmp_path / "dmuc1", dict(zip(("link_range", "service_range", "pod_range"), DEFAULT, strict=True)))
    remember(tmp_path / "broken", {"pod_range": "nonsense"})
    assert chosen(Settings(machine="two"), tmp_path / "two") == ("10.95.0.4/30", "10.97.0.0/16", "10.244.1.0/24")


def test_where_none_is_free_the_machine_says_so_about_the_default(
    tmp_path: Path, routed: list[tuple[IPv4Network, str]]
) -> None:
    routed += [(IPv4Network(text), "ip route") for text in ("10.0.0.0/8", "172.16.0.0/12")]
    assert chosen(Settings(), tmp_path / "dmuc1") == DEFAULT


def test_a_cluster_on_the_host_has_none(tmp_path: Path, routed: list[tuple[IPv4Network, str]]) -> None:
    routed += [(IPv4Network("10.0.0.0/8"), "ip route: 10.0.0.0/8 tun0")]
    assert ranges.choose(Settings(machine="host.one"), tmp_path / "host.one") == Settings(machine="host.one")
