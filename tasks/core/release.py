"""What differs between Kubernetes releases, as a table. Nothing outside this file compares versions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import DmucError


@dataclass(frozen=True)
class Release:
    """One minor release of Kubernetes, and how it wants to be run."""

    minor: str  # "1.20"
    default: str  # the full version that is downloaded when only the minor one was asked for
    pause_image: str  # the pod sandbox's image that the kubelet asks for unless told otherwise
    etcd: str  # the etcd that is downloaded for it
    # Whether the kubelet's first report is never Ready when it registers itself, and the next comes 10 s later: its
    # CSINode cannot be made before its Node is there (initializeCSINode in pkg/volume/csi/csi_plugin.go).
    node_first: bool


# 1.20: https://github.com/kubernetes/kubernetes/blob/v1.20.2/CHANGELOG/CHANGELOG-1.20.md ; the pause image is the
# default of --pod-infra-container-image in cmd/kubelet/app/options/container_runtime.go; etcd is a later patch release
# of the one in build/dependencies.yaml.
RELEASES = {
    release.minor: release
    for release in (
        Release(minor="1.20", default="1.20.15", pause_image="k8s.gcr.io/pause:3.2", etcd="3.4.23", node_first=True),
    )
}

_VERSION = re.compile(r"v?(?P<minor>\d+\.\d+)(?P<patch>\.\d+)?\Z")


def find(kubernetes: str) -> Release:
    """Give the release for the setting `kubernetes` ("1.20", "v1.20", "1.20.2").

    Raises DmucError for a release that is not in the table.
    """
    match = _VERSION.match(kubernetes)
    if not match or match["minor"] not in RELEASES:
        raise DmucError(
            f"looking up the Kubernetes release {kubernetes!r}",
            "dmuc does not know this release.",
            f"It knows: {', '.join(RELEASES)}. Set one with kubernetes=…",
        )
    return RELEASES[match["minor"]]


def fits(wanted: str, version: str) -> bool:
    """Whether a program of `version` ("v1.20.2") is of the release `wanted` ("1.20": any patch; "1.20.2": that one)."""
    want, have = wanted.lstrip("v").split("."), version.lstrip("v").split(".")
    return have[: len(want)] == want
