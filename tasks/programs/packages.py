"""System packages: what a package is called on each distribution, and how packages are installed there.

Programs and tools name the package of Debian 12 (catalog.py). On Debian and its relatives dmuc installs what is
missing; elsewhere it names the packages and the command, and installs nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core import debian
from ..core.errors import DmucError
from ..core.machine import is_root
from ..core.progress import Progress

# A newer Debian has some programs in another package: the package in Debian 12 -> the other one.
ELSEWHERE = {"docker.io": "docker-cli"}  # Debian 13 and later: docker.io has the daemon only


@dataclass(frozen=True)
class Distribution:
    """A family of distributions: the command that installs packages, and their names where they differ from Debian's.

    An empty name: it has no such package.
    """

    install: str
    names: Mapping[str, str]


_COMMON = {"docker.io": "docker", "conntrack": "conntrack-tools", "docker-registry": "docker-distribution"}
DISTRIBUTIONS = {
    "debian": Distribution("apt-get install --no-install-recommends", {}),
    "fedora": Distribution(
        "dnf install",
        {
            **_COMMON,
            "docker.io": "moby-engine docker-cli",
            "etcd-server": "etcd",
            "iproute2": "iproute",
            "iptables": "iptables-nft",
            "mount": "util-linux",
        },
    ),
    "arch": Distribution(
        "pacman -S",
        {
            **_COMMON,
            "etcd-server": "etcd",
            "containernetworking-plugins": "cni-plugins",
            "kubernetes-client": "kubectl",
            "docker-registry": "",
            "mount": "util-linux",
        },
    ),
    "suse": Distribution(
        "zypper install",
        {
            **_COMMON,
            "etcd-server": "etcd",
            "containernetworking-plugins": "cni-plugins",
            "docker-registry": "distribution-registry",
            "mount": "util-linux",
        },
    ),
    "alpine": Distribution(
        "apk add",
        {
            **_COMMON,
            "docker.io": "docker-engine docker-cli",
            "containerd": "containerd containerd-ctr",
            "etcd-server": "etcd",
            "containernetworking-plugins": "cni-plugins",
            "docker-registry": "docker-registry",
            "kubernetes-client": "kubectl",
            "util-linux": "util-linux-misc",
        },
    ),
}
_IDS = {"rhel": "fedora", "centos": "fedora", "opensuse": "suse", "sles": "suse", "ubuntu": "debian"}
_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))


def distribution(text: str) -> tuple[str, str]:
    """Return the family of distributions, a key of DISTRIBUTIONS or empty, and the name that people know.

    `text` is that of os-release(5), with ID and, for relatives of other distributions, ID_LIKE.
    """
    values = dict(re.findall(r"(?m)^(ID|ID_LIKE|PRETTY_NAME)=(.*)$", text))
    plain = {name: " ".join(shlex.split(value)) for name, value in values.items() if value.count('"') % 2 == 0}
    ids = f"{plain.get('ID', '')} {plain.get('ID_LIKE', '')}".split()
    known = (_IDS.get(one.partition("-")[0], one.partition("-")[0]) for one in ids)
    family = next((one for one in known if one in DISTRIBUTIONS), "")
    return family, plain.get("PRETTY_NAME") or plain.get("ID", "") or "an unknown distribution"


def _here() -> tuple[str, str]:
    text = next((path.read_text("utf-8", "replace") for path in _OS_RELEASE if path.is_file()), "")
    family, name = distribution(text)
    return ("debian" if debian.available() else family), name


def can_install() -> bool:
    """Return whether dmuc can install packages here: with apt-get, as root."""
    return debian.available() and is_root()


def advice(packages: Sequence[str]) -> str:
    """Return what the user can do about packages that are missing; each package has Debian's name."""
    family, _ = _here()
    found = DISTRIBUTIONS.get(family)
    if found is None:
        return f"Install what your distribution has for Debian's packages {' '.join(packages)}."
    names = [found.names.get(package, package) for package in packages]
    there = " ".join(dict.fromkeys(filter(None, names)))
    lacking = [package for package, name in zip(packages, names, strict=True) if not name]
    lines = [f"Install them: {'' if is_root() else 'sudo '}{found.install} {there}"] if there else []
    if lacking:
        lines.append(
            f"There is no package like Debian's {', '.join(lacking)}: name programs of your own with PROGRAM_bin=PATH."
        )
    if family == "debian":
        lines.append("(which also starts their services; dmuc, run as root, does not).")
    return "\n".join(lines)


def install(packages: Sequence[str], progress: Progress) -> None:
    """Install packages, each given by Debian's name. Raise DmucError when that fails, or is not dmuc's to do here."""
    family, name = _here()
    if family == "debian":
        debian.install(packages, progress)
        return
    seen = f"This is {name}; dmuc installs packages only where there is apt-get."
    raise DmucError(f"installing what is missing: {', '.join(packages)}", seen, advice(packages))
