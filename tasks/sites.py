"""Where the programs are downloaded from: each project's own releases, as it lays them out at its site.

The sites are settings: `kubernetes_site` (dl.k8s.io) and `github_site` (github.com), or mirrors of the same layout.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .core import download
from .core.context import Context
from .core.errors import DmucError
from .core.progress import Progress

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Project:
    """A project that publishes its programs.

    In `path` stand {version}, {arch} and {program}; in `sums`, a file beside it, {file} is the path's last part.
    """

    name: str  # its directory in the cache
    version: Callable[[Context], str]  # which one is downloaded
    site: Callable[[Context], str]
    path: str  # a program, or an archive of programs
    sums: str  # the file with the SHA-256 sums


def _kubernetes(context: Context) -> str:
    wanted = context.settings.kubernetes.lstrip("v")
    return wanted if wanted.count(".") == 2 else context.release.default


def _github(context: Context) -> str:
    return context.settings.github_site


KUBERNETES = Project(
    "kubernetes",
    _kubernetes,
    lambda context: context.settings.kubernetes_site,
    "release/v{version}/bin/linux/{arch}/{program}",
    "{file}.sha256",
)
ETCD = Project(
    "etcd",
    lambda context: context.release.etcd,
    _github,
    "etcd-io/etcd/releases/download/v{version}/etcd-v{version}-linux-{arch}.tar.gz",
    "SHA256SUMS",
)
CONTAINERD = Project(
    "containerd",
    lambda context: context.release.containerd,
    _github,
    "containerd/containerd/releases/download/v{version}/containerd-{version}-linux-{arch}.tar.gz",
    "{file}.sha256sum",
)
RUNC = Project(
    "runc",
    lambda context: "1.2.6",
    _github,
    "opencontainers/runc/releases/download/v{version}/runc.{arch}",
    "runc.sha256sum",
)
CNI_PLUGINS = Project(
    "cni-plugins",
    lambda context: "1.6.2",
    _github,
    "containernetworking/plugins/releases/download/v{version}/cni-plugins-linux-{arch}-v{version}.tgz",
    "{file}.sha256",
)
COREDNS = Project(
    "coredns",
    lambda context: "1.12.1",
    _github,
    "coredns/coredns/releases/download/v{version}/coredns_{version}_linux_{arch}.tgz",
    "{file}.sha256",
)


def obtain(context: Context, wanted: Iterable[tuple[Project, str]], progress: Progress) -> None:
    """Download programs, given as project and name, to `cache/PROJECT/vVERSION/NAME`.

    An archive is downloaded once, and all programs that are in it are put there. Raises DmucError as
    download.fetch does.
    """
    arch = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    for project, program in wanted:
        version = project.version(context)
        directory = context.settings.cache / project.name / f"v{version}"
        to = directory / program
        url = f"{project.site(context)}/{project.path.format(version=version, arch=arch, program=program)}"
        base, _, file = url.rpartition("/")
        sums = f"{base}/{project.sums.format(file=file)}"
        directory.mkdir(parents=True, exist_ok=True)
        if not file.endswith((".tar.gz", ".tgz")):
            download.fetch(url, to, sha256=None, sums_url=sums, progress=progress)
            to.chmod(0o755)
        elif not to.exists():  # another program of the same archive may have brought it
            archive = directory / file
            download.fetch(url, archive, sha256=None, sums_url=sums, progress=progress)
            _unpack(archive, program)


def _unpack(archive: Path, program: str) -> None:
    """Put all programs of the archive beside it, and remove it. Raises DmucError when `program` is not among them."""
    with tarfile.open(archive) as opened:
        members = {Path(m.name).name: m for m in opened if m.isfile() and m.mode & 0o100}
        if program not in members:
            raise DmucError(f"unpacking {archive}", f"There is no {program} in it.", "Remove it and run again.")
        for name, member in members.items():
            content = opened.extractfile(member)
            assert content is not None  # it is a file
            part = archive.with_name(f"{name}.part")
            with content, part.open("wb") as file:
                shutil.copyfileobj(content, file)
            part.chmod(0o755)
            part.rename(archive.with_name(name))
    archive.unlink()
