"""The programs: found, downloaded or built; and the system's packages that they and we cannot do without.

The walk-through begins on a machine that has them. Each is looked for in this order:

1. where the user says: `<program>_bin=PATH`, else `bin_dir=DIRECTORY`;
2. on PATH, and of Kubernetes' own programs only those of the wanted release;
3. in the cache, where 4 puts them;
4. obtained: downloaded from the project's own release site with the sum published there, or, where only Debian's
packages can be had, taken from those; Kubernetes is then built from Debian's source package (kubernetes_source.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from . import kubernetes_source
from .choices import engine
from .core import debian, download, release
from .core.context import Context
from .core.errors import DmucError
from .core.goal import Goal
from .core.probe import Answer
from .core.progress import Progress

KUBERNETES_SITE = "https://dl.k8s.io"
ETCD_SITE = "https://github.com/etcd-io/etcd/releases/download"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Program:
    """A program of the cluster."""

    name: str
    version: tuple[str, ...] = ("--version",)  # the arguments that make it say its version
    package: str = ""  # the Debian package that has it; of Kubernetes' own: none, they are built
    of_kubernetes: bool = False
    wanted: Callable[[Context], bool] = field(default=lambda context: True)  # whether this cluster needs it
    says_flags: bool = False  # its --help names every flag that it takes


def _with_docker(context: Context) -> bool:
    return engine(context) == "docker"


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", package="etcd-server"),
        Program("kube-apiserver", of_kubernetes=True, says_flags=True),
        Program("kube-controller-manager", of_kubernetes=True, says_flags=True),
        Program("kube-scheduler", of_kubernetes=True, says_flags=True),
        Program("kube-proxy", of_kubernetes=True, says_flags=True),
        Program("kubelet", of_kubernetes=True, says_flags=True),
        Program("kubectl", ("version", "--client"), of_kubernetes=True),
        Program("dockerd", package="docker.io", wanted=_with_docker),
        Program("docker", package="docker.io", wanted=_with_docker),
        Program("containerd", package="containerd"),
        Program("runc", package="runc"),
        Program("docker-registry", package="docker-registry"),
    )
}

# What the programs, and we, run besides: program -> Debian package.
TOOLS = {
    "ip": "iproute2",  # the link
    "unshare": "util-linux",  # the machine's namespaces
    "nsenter": "util-linux",
    "mount": "mount",
    "iptables": "iptables",  # dockerd and kube-proxy
    "conntrack": "conntrack",  # kube-proxy, when a Service of UDP loses a Pod
    "socat": "socat",  # kubelet, for `kubectl port-forward`
}


@dataclass(frozen=True)
class Found:
    """Where a program is."""

    path: str
    version: str
    how: str
    print: str  # size and time of change: whether it is still the same
    flags: Sequence[str] = ()  # what its --help names, where that is asked


def wanted(context: Context) -> dict[str, Program]:
    """The programs that this cluster needs, by name."""
    return {name: program for name, program in PROGRAMS.items() if program.wanted(context)}


# Find


def _named_by_user(context: Context, name: str) -> Path | None:
    settings = context.settings
    if name in settings.programs:
        return Path(settings.programs[name]).expanduser().absolute()
    if not settings.bin_dir:
        return None
    directory = Path(settings.bin_dir).expanduser().absolute()
    if not directory.is_dir():
        raise DmucError(f"looking for {name}", f"bin_dir={directory}: there is no such directory.")
    return directory / name if (directory / name).exists() else None


def _on_path(name: str) -> Path | None:
    # Programs for root are not on every user's PATH.
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")
    return Path(found) if found else None


def _cached(context: Context, program: Program) -> list[Path]:
    directory = context.settings.cache / ("kubernetes" if program.of_kubernetes else program.name)
    return sorted(directory.glob(f"v*/{program.name}"), reverse=True)


def _fits_debian(context: Context) -> bool:
    """Whether what Debian has the source of is of the wanted release."""
    return release.fits(context.settings.kubernetes, kubernetes_source.VERSION)


def _how_cached(path: Path) -> str:
    built = path.parent.name == kubernetes_source.DIRECTORY
    return "built from Debian's source package" if built else "downloaded"


def _fits(context: Context, program: Program, version: str) -> bool:
    return not program.of_kubernetes or release.fits(context.settings.kubernetes, version)


def find(context: Context, program: Program) -> Found | None:
    """Find a program without obtaining it; None when it is nowhere.

    Raises DmucError when the user named one that is not there, or does not run.
    """
    named = _named_by_user(context, program.name)
    if named:
        return _look_at(context, program, named, "as you said")
    on_path = _on_path(program.name)
    candidates = [(on_path, "on PATH")] if on_path else []
    candidates += [(path, _how_cached(path)) for path in _cached(context, program)]
    for path, how in candidates:
        with contextlib.suppress(DmucError):  # nobody named it: it may be anything
            found = _look_at(context, program, path, how)
            if _fits(context, program, found.version):
                return found
    return None


def _print(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _look_at(context: Context, program: Program, path: Path, how: str) -> Found:
    """Ask the program for its version: what it is called proves nothing. Asked once for each file (see the cache)."""
    tried = f"asking {path} for its version"
    do = f"Name another with {program.name.replace('-', '_')}_bin=PATH or bin_dir=DIRECTORY."
    if not path.is_file() or not os.access(path, os.X_OK, effective_ids=True):
        seen = "It is not executable." if path.is_file() else "There is no such file."
        raise DmucError(tried, seen, do)
    known = context.settings.cache / "versions" / (str(path).strip("/").replace("/", "-") + ".json")
    try:
        found = Found(**json.loads(known.read_text()))
        if found.print == _print(path):
            return replace(found, how=how)
    except (OSError, ValueError, TypeError):
        pass
    try:
        done = subprocess.run(
            [path, *program.version], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DmucError(tried, f"It cannot be run: {error}", do) from None
    version = re.search(r"v?\d+\.\d+\.\d+[^\s,\"]*", done.stdout + done.stderr)
    if done.returncode or not version:
        raise DmucError(tried, f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()[:400]}", do)
    found = Found(str(path), version[0], how, _print(path), _flags(path) if program.says_flags else ())
    with contextlib.suppress(OSError):  # a cache that others own serves us all the same
        known.parent.mkdir(parents=True, exist_ok=True)
        part = known.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(found)))
        part.rename(known)
    return found


def _flags(path: Path) -> list[str]:
    """The flags that the program's --help names."""
    done = subprocess.run(
        [path, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=20
    )
    return sorted(set(re.findall(r"^\s+(?:-\w, )?(--[a-z0-9][\w.-]*)", done.stdout + done.stderr, re.MULTILINE)))


# What is known


def _asked_for(context: Context) -> str:
    settings = context.settings
    return json.dumps([settings.kubernetes, settings.bin_dir, dict(settings.programs), str(settings.cache)])


def known(context: Context) -> dict[str, Found]:
    """Give the programs as they were found; empty when that was not done, or no longer holds."""
    try:
        read = json.loads(context.programs_file.read_text())
        if read.pop("_asked_for") != _asked_for(context):
            return {}
        programs = {name: Found(**entry) for name, entry in read.items()}
        same = all(_print(Path(p.path)) == p.print and (context.bin / n).exists() for n, p in programs.items())
        return programs if same and programs.keys() == wanted(context).keys() else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _are_known(context: Context) -> Answer:
    programs = known(context)
    if not programs:
        return Answer(False, "the programs that are wanted have not been looked for")
    server = programs["kube-apiserver"]
    others = ", ".join(
        f"{name} {programs[name].version}" for name in ("etcd", "dockerd", "containerd") if name in programs
    )
    return Answer(True, f"Kubernetes {server.version} ({server.how}), {others}")


def versions(context: Context) -> dict[str, str]:
    """Give the version of each program; empty when they are not known."""
    return {name: found.version for name, found in known(context).items()}


# Obtain


def _way(context: Context) -> str:
    """How missing programs are obtained: "download" or "debian"; found out once."""
    if context.settings.obtain != "auto":
        return context.settings.obtain
    way = context.decided("obtain")
    if way is None:
        way = "download" if download.reachable(KUBERNETES_SITE) else "debian"
        context.decide("obtain", way)
    return way


def _missing_tools() -> list[str]:
    return sorted({package for tool, package in TOOLS.items() if _on_path(tool) is None})


def _missing_packages(context: Context) -> list[str]:
    """The Debian packages that are to be installed."""
    missing = [program for program in wanted(context).values() if find(context, program) is None]
    packages = {*_missing_tools(), *(p.package for p in missing if p.package)}
    if missing and _way(context) == "download":
        packages -= {"etcd-server"}
    elif any(p.of_kubernetes for p in missing) and _fits_debian(context):
        packages |= set(kubernetes_source.PACKAGES)
    return sorted(packages)


def _packages_are_there(context: Context) -> Answer:
    if not known(context):
        # Not more than a look: what it takes to find out is done when the task runs.
        return Answer(False, "it is not known yet what is missing")
    missing = _missing_tools()
    return Answer(not missing, f"missing: {', '.join(missing)}" if missing else "all there")


def _install_packages(context: Context, progress: Progress) -> None:
    progress.note("looking for what is missing")
    packages = _missing_packages(context)
    if packages:
        debian.install(packages, progress)
    progress.note(f"installed {', '.join(packages)}" if packages else "nothing is missing")


PACKAGES = Goal(
    name="_packages",
    doc="install the system packages that are missing",
    holds=_packages_are_there,
    make=_install_packages,
)


def _download(context: Context, missing: Sequence[Program], progress: Progress) -> None:
    architecture = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    cache, wanted = context.settings.cache, context.settings.kubernetes.lstrip("v")
    full = f"v{wanted if wanted.count('.') == 2 else context.release.default}"
    for program in missing:
        if program.of_kubernetes:
            url = f"{KUBERNETES_SITE}/release/{full}/bin/linux/{architecture}/{program.name}"
            to = cache / "kubernetes" / full / program.name
            to.parent.mkdir(parents=True, exist_ok=True)
            download.fetch(url, to, sha256=None, sums_url=f"{url}.sha256", progress=progress)
            to.chmod(0o755)
        elif program.name == "etcd":
            version = f"v{context.release.etcd}"
            archive = f"etcd-{version}-linux-{architecture}"
            base = f"{ETCD_SITE}/{version}"
            to = cache / "etcd" / version / f"{archive}.tar.gz"
            to.parent.mkdir(parents=True, exist_ok=True)
            download.fetch(f"{base}/{to.name}", to, sha256=None, sums_url=f"{base}/SHA256SUMS", progress=progress)
            _unpack(to, f"{archive}/etcd", to.parent / "etcd")


def _unpack(archive: Path, member: str, to: Path) -> None:
    with tarfile.open(archive) as opened:
        try:
            content = opened.extractfile(member)
        except KeyError:
            content = None
        if content is None:
            raise DmucError(f"unpacking {archive}", f"There is no {member} in it.", "Remove it and run again.")
        part = to.with_suffix(".part")
        part.write_bytes(content.read())
    part.chmod(0o755)
    part.rename(to)
    archive.unlink()


def _find_all(context: Context) -> dict[str, Found | None]:
    programs = wanted(context)
    with ThreadPoolExecutor(len(programs)) as pool:
        return dict(zip(programs, pool.map(lambda p: find(context, p), programs.values()), strict=True))


def _obtain(context: Context, progress: Progress) -> None:
    found = _find_all(context)
    missing = [PROGRAMS[name] for name, program in found.items() if program is None]
    if missing and _way(context) == "download":
        _download(context, missing, progress)
    elif any(program.of_kubernetes for program in missing):
        _build(context, progress)
    if missing:
        found = _find_all(context)
    lost = [name for name, program in found.items() if program is None]
    if lost:
        raise DmucError(
            "looking for the programs",
            f"There is no {', '.join(lost)} of the release {context.settings.kubernetes}, and no way to obtain it.",
            "Name them with bin_dir=DIRECTORY, or choose how they are obtained: obtain=download or obtain=debian.",
        )
    context.bin.mkdir(mode=0o700, exist_ok=True)
    for name, program in found.items():
        assert program is not None
        link = context.bin / name
        link.unlink(missing_ok=True)
        link.symlink_to(program.path)
    written = {"_asked_for": _asked_for(context)} | {n: asdict(p) for n, p in found.items() if p is not None}
    context.programs_file.write_text(json.dumps(written, indent=1))
    progress.note(_are_known(context).why)


def _build(context: Context, progress: Progress) -> None:
    if not _fits_debian(context):
        raise DmucError(
            f"obtaining Kubernetes {context.settings.kubernetes}",
            f"Debian's source package is {kubernetes_source.VERSION}, and nothing can be downloaded.",
            "Name your own programs with bin_dir=DIRECTORY.",
        )
    kubernetes_source.build(context.settings.cache, progress)


def _forget(context: Context) -> None:
    context.programs_file.unlink(missing_ok=True)
    shutil.rmtree(context.bin, ignore_errors=True)


BINARIES = Goal(
    name="binaries",
    doc="have the programs: found, downloaded or built",
    holds=_are_known,
    make=_obtain,
    undo=_forget,
    needs=("_packages",),
)

PARTS = [PACKAGES, BINARIES]
