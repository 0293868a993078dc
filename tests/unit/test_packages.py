"""System packages: their names on other distributions, and what is said where dmuc cannot install them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.core import debian
from tasks.core.errors import DmucError
from tasks.core.progress import Silent
from tasks.programs import packages
from tasks.programs.build_kubernetes import PACKAGES
from tasks.programs.catalog import PROGRAMS, TOOLS

FEDORA = 'NAME="Fedora Linux"\nID=fedora\nPRETTY_NAME="Fedora Linux 43 (Server Edition)"\n'
ROCKY = 'ID="rocky"\nID_LIKE="rhel centos fedora"\nPRETTY_NAME="Rocky Linux 9.6"\n'
ARCH = "ID=arch\nPRETTY_NAME='Arch Linux'\n"
MANJARO = "ID=manjaro\nID_LIKE=arch\n"
SUSE = 'ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\nPRETTY_NAME="openSUSE Tumbleweed"\n'
ALPINE = 'ID=alpine\nPRETTY_NAME="Alpine Linux v3.22"\n'
UBUNTU = "ID=ubuntu\nID_LIKE=debian\n"


@pytest.mark.parametrize(
    ("text", "family"),
    [
        (FEDORA, "fedora"),
        (ROCKY, "fedora"),
        (ARCH, "arch"),
        (MANJARO, "arch"),
        (SUSE, "suse"),
        (ALPINE, "alpine"),
        (UBUNTU, "debian"),
        ("ID=nixos\n", ""),
        ("", ""),
        ('ID="broken\n', ""),
    ],
)
def test_a_distribution_is_known_by_what_it_says_of_itself(text: str, family: str) -> None:
    assert packages.distribution(text)[0] == family


def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, root: bool = True) -> None:
    """Be on a host without apt-get that says this of itself."""
    (tmp_path / "os-release").write_text(text)
    monkeypatch.setattr(packages, "_OS_RELEASE", (tmp_path / "os-release",))
    monkeypatch.setattr(packages, "is_root", lambda: root)
    monkeypatch.setattr(debian, "available", lambda: False)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (FEDORA, "Install them: dnf install conntrack-tools moby-engine docker-cli etcd iproute util-linux"),
        (ARCH, "Install them: pacman -S conntrack-tools docker etcd iproute2 util-linux"),
        (SUSE, "Install them: zypper install conntrack-tools docker etcd iproute2 util-linux"),
        (ALPINE, "Install them: apk add conntrack-tools docker-engine docker-cli etcd iproute2 mount"),
    ],
)
def test_what_is_missing_is_named_as_this_distribution_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, line: str
) -> None:
    on(monkeypatch, tmp_path, text)
    with pytest.raises(DmucError) as error:
        packages.install(["conntrack", "docker.io", "etcd-server", "iproute2", "mount"], Silent())
    assert error.value.do == line
    assert packages.distribution(text)[1] in error.value.seen


def test_an_ordinary_user_is_told_to_use_sudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(monkeypatch, tmp_path, FEDORA, root=False)
    assert packages.advice(["socat"]) == "Install them: sudo dnf install socat"


def test_a_package_that_a_distribution_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(monkeypatch, tmp_path, ARCH)
    assert "no package like Debian's docker-registry" in packages.advice(["docker-registry"])


def test_an_unknown_distribution_gets_debians_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(monkeypatch, tmp_path, "ID=nixos\n")
    assert packages.advice(["socat", "ipset"]).endswith("Debian's packages socat ipset.")


def test_every_name_that_differs_is_of_a_package_that_dmuc_asks_for() -> None:
    asked_for = {program.package for program in PROGRAMS.values()} | {tool.package for tool in TOOLS} | {*PACKAGES}
    for found in packages.DISTRIBUTIONS.values():
        assert found.names.keys() <= asked_for
    assert packages.ELSEWHERE.keys() <= asked_for
