"""The download sites: where each project publishes its releases, and the layout of the site.

The sites are settings: `kubernetes_site` (dl.k8s.io) and `github_site` (github.com), or mirrors with the same layout.
A download must match the SHA-256 sum in sums.txt or, if there is none, the sum that is published with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core import download
from ..core.context import Context
from ..core.download import Download
from ..core.errors import DmucError
from ..core.lock import turn
from ..core.machine import ARCHITECTURES
from ..core.progress import Progress

_PINNED = Path(__file__).with_name("sums.txt")


@dataclass(frozen=True)
class Project:
    """A project that publishes its programs.

    `path` may contain {version}, {arch} and {program}; `sums`, in the same directory, {file}, the last part of `path`.
    """

    name: str  # the project's directory in the cache
    version: Callable[[Context], str]  # the version to download
    site: str  # the setting with the URL of the site
    path: str  # the path of a program, or of an archive of programs
    sums: str  # the file with the published SHA-256 sums


def _kubernetes(context: Context) -> str:
    wanted = context.settings.kubernetes.lstrip("v")
    return wanted if wanted.count(".") == 2 else context.release.default


KUBERNETES = Project(
    "kubernetes", _kubernetes, "kubernetes_site", "release/v{version}/bin/linux/{arch}/{program}", "{file}.sha256"
)
ETCD = Project(
    "etcd",
    lambda context: context.release.etcd,
    "github_site",
    "etcd-io/etcd/releases/download/v{version}/etcd-v{version}-linux-{arch}.tar.gz",
    "SHA256SUMS",
)
CONTAINERD = Project(
    "containerd",
    lambda context: context.release.containerd,
    "github_site",
    "containerd/containerd/releases/download/v{version}/containerd-{version}-linux-{arch}.tar.gz",
    "{file}.sha256sum",
)
RUNC = Project(
    "runc",
    lambda context: "1.3.6",
    "github_site",
    "opencontainers/runc/releases/download/v{version}/runc.{arch}",
    "runc.sha256sum",
)
CNI_PLUGINS = Project(
    "cni-plugins",
    lambda context: "1.9.1",
    "github_site",
    "containernetworking/plugins/releases/download/v{version}/cni-plugins-linux-{arch}-v{version}.tgz",
    "{file}.sha256",
)
COREDNS = Project(
    "coredns",
    lambda context: "1.12.1",
    "github_site",
    "coredns/coredns/releases/download/v{version}/coredns_{version}_linux_{arch}.tgz",
    "{file}.sha256",
)


def obtain(context: Context, wanted: Iterable[tuple[Project, str]], progress: Progress) -> None:
    """Download programs, given as project and name, to `cache/PROJECT/vVERSION/NAME`; all at the same time.

    An archive is downloaded once, and all its programs are unpacked. A program that another run downloads into the same
    cache meanwhile is not downloaded again. Raise DmucError when a download fails; the other downloads then stop.
    """
    asked = [(_file(context, project, program), program) for project, program in wanted]
    if not asked:
        return
    there = {_place(file, program) for file, program in asked if _place(file, program).exists()}
    context.settings.cache.mkdir(parents=True, exist_ok=True)
    with turn(context.settings.cache, "downloading programs", progress):
        files: dict[Path, Download] = {}
        programs: dict[Path, list[str]] = {}  # the programs that are wanted from each file
        for file, program in asked:
            if not _place(file, program).exists() or _place(file, program) in there:  # no other run has downloaded it
                files.setdefault(file.to, file)
                programs.setdefault(file.to, []).append(program)
        download.fetch_all(list(files.values()), progress)
        for path, names in programs.items():
            if path.name in names:
                path.chmod(0o755)
            else:
                progress.note(f"unpacking {path.name}")
                _unpack(path, names)


def _place(file: Download, program: str) -> Path:
    return file.to.with_name(program)


def pinned_sums() -> dict[str, str]:
    """Return the pinned SHA-256 sums, by path below the site."""
    lines = (line.split() for line in _PINNED.read_text("utf-8").splitlines() if not line.startswith("#"))
    return {path: digest for digest, path in lines}


def _file(context: Context, project: Project, program: str) -> Download:
    version, arch = project.version(context), ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    path = project.path.format(version=version, arch=arch, program=program)
    beside, _, file = f"{getattr(context.settings, project.site)}/{path}".rpartition("/")
    name = file if file.endswith((".tar.gz", ".tgz")) else program  # an archive, or the program itself
    return Download(
        url=f"{beside}/{file}",
        to=context.settings.cache / project.name / f"v{version}" / name,
        sha256=pinned_sums().get(path),
        sums_url=f"{beside}/{project.sums.format(file=file)}",
        else_do=("Another release: kubernetes=VERSION. " if project is KUBERNETES else "")
        + f"Another site with the same layout: {project.site}=URL.\n"
        f"Programs of your own: {program.replace('-', '_')}_bin=PATH or bin_dir=DIRECTORY.",
    )


def _unpack(archive: Path, wanted: Iterable[str]) -> None:
    """Unpack all programs of the archive beside it, and remove it. Raise DmucError when a wanted program is missing."""
    import tarfile

    part = archive.with_name("unpacking.part")
    try:
        with tarfile.open(archive) as opened:
            members = {Path(m.name).name: m for m in opened if m.isfile() and m.mode & 0o100}
            lost = [name for name in wanted if name not in members]
            if lost:
                raise DmucError(f"unpacking {archive}", f"The archive does not contain {', '.join(lost)}.")
            for name, member in members.items():
                content = opened.extractfile(member)
                assert content is not None  # it is a file
                with content, part.open("wb") as file:
                    shutil.copyfileobj(content, file)
                part.chmod(0o755)
                part.rename(archive.with_name(name))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DmucError(f"unpacking {archive}", str(error)) from None
    finally:
        part.unlink(missing_ok=True)
        archive.unlink()
