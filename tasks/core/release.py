"""The table of differences between Kubernetes releases. No other file compares versions.

Each row has only the changes since the previous row. What all releases have in common has no column: the group
system:masters may do everything, and the API server creates RBAC's own roles at its start, so the first administrator
is the user of a client certificate with that group.

Sources: paths are in kubernetes/kubernetes at that release; "CHANGELOG" is CHANGELOG/CHANGELOG-1.N.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .errors import DmucError

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class Release:
    """One minor release of Kubernetes, and what its components need."""

    minor: str  # "1.20"
    default: str  # the full version that is downloaded when the user sets only the minor release
    security: Literal["none", "rbac"]  # the default of the setting `security`
    # The API server
    insecure_port: bool  # it serves http://localhost:8080, and does not need TLS
    needs_token_keys: bool  # it does not start without keys and an issuer for ServiceAccount tokens
    projected_tokens: bool  # Pods get their token from the API server, and the CA from the ConfigMap kube-root-ca.crt
    # Plain HTTP ports that are open without --port=0; `kubectl get componentstatuses` uses them
    controller_manager_http: bool
    scheduler_http: bool
    # The kubelet
    dockershim: bool  # it uses Docker directly, without CRI
    runtime_flag: bool  # it uses another engine only with --container-runtime=remote
    cri: Sequence[str]  # the versions of the container runtime interface (CRI) that it supports
    endpoint: str  # its default CRI socket
    fail_cgroup_v1: bool | None  # whether it refuses to run on cgroup v1; None: there is no --fail-cgroupv1
    pause_image: str  # dockershim: the image of Pod sandboxes. With CRI, this is a setting of the engine.
    # When the kubelet creates its Node itself, its first status is never Ready, and the next one comes 10 s later: it
    # cannot create its CSINode before its Node exists (initializeCSINode in pkg/volume/csi/csi_plugin.go).
    node_first: bool
    endpoint_slices: bool  # the API server has EndpointSlices v1, the only version that current CoreDNS reads
    older_kubelet: int  # how many minor releases the kubelet and kube-proxy may be older than the API server
    # kube-proxy
    proxy_modes: Mapping[str, str]  # its modes -> the feature gate that the mode needs, or ""
    proxy_deprecated: Sequence[str]  # the deprecated ones among its modes
    # The versions that are known to work with the release, and are downloaded for it
    etcd: str
    containerd: str


# 1.19: pkg/kubeapiserver/options/serving.go (8080); the ports: cmd/kube-controller-manager/app/options,
# cmd/kube-scheduler/app/options; pause: cmd/kubelet/app/options/container_runtime.go; etcd: a later patch release of
# the version in build/dependencies.yaml; skew: https://kubernetes.io/releases/version-skew-policy/ .
_FIRST = Release(
    minor="1.19",
    default="1.19.16",
    security="none",
    insecure_port=True,
    needs_token_keys=False,
    projected_tokens=False,
    controller_manager_http=True,
    scheduler_http=True,
    dockershim=True,
    runtime_flag=True,
    cri=("v1alpha2",),
    endpoint="/var/run/dockershim.sock",
    fail_cgroup_v1=None,
    pause_image="k8s.gcr.io/pause:3.2",
    node_first=True,
    endpoint_slices=False,
    older_kubelet=2,
    proxy_modes={"iptables": "", "ipvs": ""},
    proxy_deprecated=(),
    etcd="3.4.23",
    containerd="1.7.34",
)

_NEW: dict[str, dict[str, Any]] = {
    # The insecure port is removed, keys and issuer are required: CHANGELOG "Urgent Upgrade Notes".
    "1.20": {"default": "1.20.15", "security": "rbac", "insecure_port": False, "needs_token_keys": True},
    # BoundServiceAccountTokenVolume is on: pkg/features/kube_features.go.
    # EndpointSlices v1: CHANGELOG "API Change".
    "1.21": {
        "default": "1.21.14",
        "projected_tokens": True,
        "endpoint_slices": True,
        "pause_image": "k8s.gcr.io/pause:3.4.1",
    },
    # --port of the controller manager has no effect any more: https://github.com/kubernetes/kubernetes/pull/96216 .
    "1.22": {
        "default": "1.22.17",
        "controller_manager_http": False,
        "pause_image": "k8s.gcr.io/pause:3.5",
        "etcd": "3.5.24",
    },
    # --port of the scheduler has no effect any more: https://github.com/kubernetes/kubernetes/pull/96345 .
    # CRI v1: pkg/kubelet/cri/remote.
    "1.23": {
        "default": "1.23.17",
        "scheduler_http": False,
        "cri": ("v1", "v1alpha2"),
        "pause_image": "k8s.gcr.io/pause:3.6",
    },
    # dockershim is removed, tokens are no longer in Secrets: CHANGELOG "Urgent Upgrade Notes". From this release on
    # the endpoint must be set; 1.24 to 1.26 have no default for it.
    "1.24": {
        "default": "1.24.17",
        "dockershim": False,
        "runtime_flag": False,
        "endpoint": "",
        "pause_image": "",
    },
    "1.25": {"default": "1.25.16"},
    # CRI v1alpha2 is removed: CHANGELOG; the kubelet checks every 100 ms until its Node is Ready (kubernetes#112618).
    "1.26": {"default": "1.26.15", "cri": ("v1",), "node_first": False},
    # pkg/kubelet/apis/config/v1beta1/defaults.go
    "1.27": {"default": "1.27.16", "endpoint": CONTAINERD_SOCKET},
    # Kubelets may be three releases older: https://kubernetes.io/blog/2023/08/15/kubernetes-v1-28-release/ .
    "1.28": {"default": "1.28.15", "older_kubelet": 3},
    # kube-proxy's nftables, alpha: https://github.com/kubernetes/enhancements/issues/3866
    "1.29": {"default": "1.29.15", "proxy_modes": {"iptables": "", "ipvs": "", "nftables": "NFTablesProxyMode"}},
    "1.30": {"default": "1.30.14"},
    # nftables is on by default; --fail-cgroupv1 is new, false by default: cmd/kubelet/app/options/options.go.
    "1.31": {
        "default": "1.31.14",
        "fail_cgroup_v1": False,
        "proxy_modes": {"iptables": "", "ipvs": "", "nftables": ""},
    },
    "1.32": {"default": "1.32.13"},
    "1.33": {"default": "1.33.13"},
    "1.34": {"default": "1.34.10", "etcd": "3.6.8"},
    # CHANGELOG "Urgent Upgrade Notes": cgroup v1 is refused unless failCgroupV1 is false. ipvs is deprecated:
    # CHANGELOG "Deprecation", cmd/kube-proxy/app/server_linux.go.
    "1.35": {"default": "1.35.7", "fail_cgroup_v1": True, "proxy_deprecated": ("ipvs",)},
    "1.36": {"default": "1.36.3"},
    # ipvs has a feature gate, which is on until 1.40: https://github.com/kubernetes/enhancements/issues/5495 .
    "1.37": {"default": "1.37.1"},
}


def _table() -> dict[str, Release]:
    table = {_FIRST.minor: _FIRST}
    row = _FIRST
    for minor, new in _NEW.items():
        row = replace(row, minor=minor, **new)
        table[minor] = row
    return table


RELEASES = _table()

_VERSION = re.compile(r"v?(?P<minor>\d+\.\d+)(?P<patch>\.\d+)?\Z")
_IN_TEXT = re.compile(r"v?(\d+)\.(\d+)")


def find(kubernetes: str) -> Release:
    """Return the release for the setting `kubernetes` ("1.20", "v1.20", "1.20.2").

    Raise DmucError for a release that is not in the table.
    """
    match = _VERSION.match(kubernetes)
    if not match or match["minor"] not in RELEASES:
        first, *_, last = RELEASES
        raise DmucError(
            f"looking up the Kubernetes release {kubernetes!r}",
            "dmuc does not know this release.",
            f"It knows {first} to {last}: kubernetes=… For programs of your own: PROGRAM_bin=PATH.",
        )
    return RELEASES[match["minor"]]


def of(version: str) -> Release:
    """Return the row for a program that prints the version `version` ("v1.20.2", "v1.37.0-alpha.1+dirty").

    For a user's program that is older or newer than the table, this is the nearest row. A version that `is_readable`
    denies has no row: the program then counts as one of the cluster's release (Context.release_of).
    """
    wanted = minor_of(version)
    rows = [row for row in RELEASES.values() if minor_of(row.minor) <= wanted]
    return rows[-1] if rows else next(iter(RELEASES.values()))


def is_readable(version: str) -> bool:
    """Return whether the version tells the release. A build without its version says "v0.0.0-master+$Format:%h$"."""
    return minor_of(version) > (0, 0)


def doubts(versions: Mapping[str, str], minor: str) -> list[str]:
    """Return which of Kubernetes' programs (name -> version) are of a release that has no row, and what they count as.

    `minor` is the cluster's release.
    """
    first, *_, last = RELEASES
    found = []
    for program, version in versions.items():
        if not is_readable(version):
            found.append(f"{program} does not tell its release ({version}): it counts as {minor}, the cluster's")
        elif minor_of(version) > minor_of(last):
            found.append(f"{program} {version} is newer than dmuc knows: it counts as {last}")
        elif minor_of(version) < minor_of(first):
            found.append(f"{program} {version} is older than dmuc knows: it counts as {first}")
    return found


def fits(wanted: str, version: str) -> bool:
    """Return whether `version` ("v1.20.2") is of the release `wanted` ("1.20": any patch; "1.20.2": only that one)."""
    want, have = wanted.lstrip("v").split("."), re.split(r"[.+-]", version.lstrip("v"))
    return have[: len(want)] == want


def minor_of(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version ("v1.20.2": 1 and 20); zeros when it has none."""
    match = _IN_TEXT.match(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def skew(versions: Mapping[str, str]) -> list[str]:
    """Return which programs (name -> version) Kubernetes does not support together; an empty list for none.

    https://kubernetes.io/releases/version-skew-policy/
    """
    versions = {program: version for program, version in versions.items() if is_readable(version)}
    server = versions.get("kube-apiserver")
    if server is None:
        return []
    (_, at), older_kubelet = minor_of(server), of(server).older_kubelet
    limits = {  # how many minor releases a program may be older, and newer, than the API server
        "kube-controller-manager": (1, 0),
        "kube-scheduler": (1, 0),
        "kubelet": (older_kubelet, 0),
        "kube-proxy": (older_kubelet, 0),
        "kubectl": (1, 1),
    }
    found = []
    for program, (older, newer) in limits.items():
        if program not in versions:
            continue
        minor = minor_of(versions[program])[1]
        what = f"{program} {versions[program]} with kube-apiserver {server}: Kubernetes supports it"
        if minor > at + newer:
            found.append(f"{what} at most {newer} minor releases newer" if newer else f"{what} never newer")
        elif minor < at - older:
            found.append(f"{what} at most {older} minor release{'s' if older > 1 else ''} older")
    return found


def step(before: str, now: str) -> str:
    """Return why Kubernetes does not support this change of the API server's version; an empty text if it does.

    https://kubernetes.io/releases/version-skew-policy/#kube-apiserver-1
    """
    old, new = minor_of(before), minor_of(now)
    if new < old:
        return f"from {before} to {now}: Kubernetes does not support downgrades"
    if new > (old[0], old[1] + 1):
        return f"from {before} to {now}: Kubernetes supports one minor release at a time"
    return ""
