"""The release of Kubernetes where the user has named none (kubernetes=auto): the newest that this host can have.

Decided once for each cluster, at its first run, and remembered until `clean`:

1. the release of the programs that the user names (bin_dir=, kubelet_bin=) or has on PATH;
2. else the newest that dmuc knows and the download site has;
3. else that of Debian's source package.

Engine, security and the rest follow from the release (choices.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from .binaries import find, on_path
from .core import download, release
from .core.context import Context
from .core.errors import DmucError
from .core.settings import AUTO, Settings
from .programs import build_kubernetes
from .programs.catalog import PROGRAMS

DECISION, REASON = "kubernetes", "kubernetes because"  # see Context.decided
DEBIANS = ".".join(build_kubernetes.VERSION.lstrip("v").split(".")[:2])
# The programs that tell, in this order. Not kubectl, which people have for clusters of any release.
_TELLING = ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
_ANSWER = 2.0  # seconds that the site may take


def choose(context: Context) -> tuple[str, str]:
    """Return the release, and the reason in words; `context` is of any release.

    Raise DmucError when a program that the user has named does not run.
    """
    for name in _TELLING:
        if found := _own(context, name):
            return found
    settings, newest = context.settings, [*release.RELEASES.values()][-1]
    if settings.obtain != "debian":
        site = settings.kubernetes_site
        offered = _offered(site)
        if offered is newest or (offered is None and settings.obtain == "download"):
            return newest.minor, f"the newest that dmuc knows, downloaded from {site}"
        if offered:
            return offered.minor, f"the newest that dmuc knows of those that {site} has: {newest.default} is not there"
        return DEBIANS, f"as in Debian's source package: {site} does not offer {newest.default} here"
    return DEBIANS, "as in Debian's source package: obtain=debian"


def _offered(site: str) -> release.Release | None:
    """Return the newest release that the site has; None when it has none, or does not answer."""
    for row in reversed(release.RELEASES.values()):
        there = download.is_there(f"{site}/{_path(row.default)}", _ANSWER)
        if there is None:
            return None  # asking again only takes time
        if there:
            return row
    return None


def _path(version: str) -> str:
    return f"release/v{version}/bin/linux/amd64/kube-apiserver.sha256"


def _own(context: Context, name: str) -> tuple[str, str] | None:
    """Return the release of a program that the user names or has on PATH, and where it is."""
    settings, program = context.settings, PROGRAMS[name]
    named = name in settings.programs or (settings.bin_dir and Path(settings.bin_dir, name).exists())
    found = None
    if named:
        found = find(context, program)
    else:
        with contextlib.suppress(DmucError):  # any file may have this name
            found = on_path(context, program)
    if found is None or not release.is_readable(found.version):
        return None
    return release.of(found.version).minor, f"that of {found.path} ({found.version}), {found.source}"


def wanted(settings: Settings) -> bool:
    """Return whether the release is dmuc's to choose."""
    return settings.kubernetes == AUTO


def said(minor: str, why: str) -> str:
    """Return the line that tells the user about the choice."""
    return f"Kubernetes {minor}: {why}. Another release: kubernetes=VERSION."
