"""The programs: finds, downloads or builds them (programs/catalog.py), and installs the system packages they need.

The walk-through starts on a machine that has the programs. dmuc looks for each program in this order:

1. where the user says: `<program>_bin=PATH`, else `bin_dir=DIRECTORY`;
2. on PATH; of Kubernetes' own programs only those of the wanted release;
3. in the cache;
4. a missing program is downloaded from the project's own release site (programs/download_sites.py) into the cache, and
its sum is checked; without a network, it is taken from Debian's packages, and what of Kubernetes has no package is
built from Debian's source package (programs/build_kubernetes.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from . import etcd
from .core import caller, download, release
from .core.context import PROGRAMS_FILE, Context
from .core.errors import DmucError
from .core.files import fingerprint, read_json, write_atomic
from .core.goal import Goal
from .core.machine import SYSTEM_PATH
from .core.progress import Progress
from .core.result import Result
from .core.settings import Settings
from .engines.chosen import ENGINES, engine, refuse_kubelet
from .programs import build_kubernetes, download_sites, executable
from .programs import packages as system_packages
from .programs.catalog import PROGRAMS, Program, tools, wanted
from .programs.executable import Found
from .programs.packages import ELSEWHERE

NAMED = "named in the settings"  # how a program was found that the user has named

# Find


def _named_by_user(context: Context, name: str) -> Path | None:
    settings = context.settings
    if name in settings.programs:
        return _beyond_our_links(Path(settings.programs[name]))
    if not settings.bin_dir:
        return None
    directory = Path(settings.bin_dir)
    if not directory.is_dir():
        raise DmucError(f"looking for {name}", f"bin_dir={directory}: there is no such directory.")
    return _beyond_our_links(directory / name) if os.path.lexists(directory / name) else None


def _on_path(name: str) -> Path | None:
    # Programs for root are not on every user's PATH.
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}".split(os.pathsep)
    found = shutil.which(name, path=os.pathsep.join(d for d in path if d and not _has_our_links(Path(d))))
    return Path(found) if found else None


def _has_our_links(directory: Path) -> bool:
    """Return whether this is the directory of links of a cluster, such as KUBEBUILDER_ASSETS: of this one or another.

    Its links are made from what is found, so they must never be found themselves.
    """
    for name in {directory.absolute(), Path(os.path.realpath(directory))}:
        for links in {program.links for program in PROGRAMS.values()}:
            if str(name).endswith(f"/{links}") and Path(str(name).removesuffix(f"/{links}"), PROGRAMS_FILE).is_file():
                return True
    return False


def _beyond_our_links(path: Path) -> Path:
    """Return the program that the user has named; where this is a cluster's link to a program, the program itself."""
    return Path(os.path.realpath(path)) if _has_our_links(path.parent) else path


def _installed(program: Program) -> list[tuple[Path, str]]:
    """Return the paths where the program may be installed, each with words that say so."""
    if program.places:
        return [(Path(place, program.name), f"in {place}") for place in program.places]
    on_path = _on_path(program.name)
    return [(on_path, "on PATH")] if on_path else []


def _cached(context: Context, program: Program) -> list[Path]:
    return sorted((context.settings.cache / program.cache_dir).glob(f"v*/{program.name}"), reverse=True)


def _how_cached(path: Path) -> str:
    of_debian = {
        build_kubernetes.DIRECTORY: "built from Debian's source package",
        build_kubernetes.DIRECTORY_OF_KUBECTL: "from Debian's package kubernetes-client",
    }
    return of_debian.get(path.parent.name, "downloaded")


def _fits(context: Context, program: Program, version: str) -> bool:
    return not program.of_kubernetes or release.fits(context.settings.kubernetes, version)


def find(context: Context, program: Program) -> Found | None:
    """Return the program where it is now; None when it is missing.

    Raise DmucError when the user has named a file that does not exist, or does not run.
    """
    named = _named_by_user(context, program.name)
    if named:
        return _look_at(context, program, named, NAMED)
    cached = [(path, _how_cached(path)) for path in _cached(context, program)]
    for path, source in _installed(program) + cached:
        with contextlib.suppress(DmucError):  # not named by the user, so it may be any file
            found = _look_at(context, program, path, source)
            if _fits(context, program, found.version):
                return found
    return None


def on_path(context: Context, program: Program) -> Found | None:
    """Return the program of this name on PATH, of whatever release; None when there is none.

    Raise DmucError when the file is not a program that runs.
    """
    path = _on_path(program.name)
    return _look_at(context, program, path, "on PATH") if path else None


def _look_at(context: Context, program: Program, path: Path, source: str) -> Found:
    do = f"Name another program with {program.name.replace('-', '_')}_bin=PATH or bin_dir=DIRECTORY."
    return executable.look_at(
        path,
        program.version,
        says=program.says_version,
        usage=program.name if program.says_flags else "",
        source=source,
        cache=context.settings.cache,
        do=do,
    )


# What is known


def _asked_for(context: Context) -> str:
    settings = context.settings
    return json.dumps([settings.kubernetes, settings.bin_dir, dict(settings.programs), str(settings.cache)])


def known(context: Context) -> dict[str, Found]:
    """Return the programs as they were found; empty when they are not known, have changed, or a run needs more."""
    try:
        read = read_json(context.programs_file)
        if read.pop("_asked_for", None) != _asked_for(context):
            return {}
        programs = {name: Found(**entry) for name, entry in read.items()}
        same = all(
            fingerprint(Path(p.path)) == p.fingerprint and _link(context, n).exists() for n, p in programs.items()
        )
        enough = not context.run.selected or programs.keys() >= wanted(context).keys()
        return programs if same and enough else {}
    except (OSError, TypeError, KeyError):
        return {}


def _are_known(context: Context) -> Result:
    programs = known(context)
    if not programs:
        return Result(False, "the programs have not been looked for yet")
    kubernetes = [name for name in PROGRAMS if name in programs and PROGRAMS[name].of_kubernetes]
    said = []
    if kubernetes:
        server, *others = kubernetes
        said.append(f"Kubernetes {programs[server].version} ({programs[server].source})")
        kubernetes = [name for name in others if programs[name].version != programs[server].version]
    engines = [one.DAEMON.program_name(context) for one in ENGINES.values()]
    told = [name for name in (*kubernetes, "etcd", *engines) if name in programs]
    said += [f"{name} {programs[name].version}" for name in told]
    skew = doubts(context)
    return Result(True, "; ".join([", ".join(said), *skew]))


def doubts(context: Context) -> list[str]:
    """Return what is doubtful about the programs' releases: one without a row, and a skew that is not supported."""
    there = versions(context)
    kubernetes = {name: version for name, version in there.items() if PROGRAMS[name].of_kubernetes}
    return [*release.doubts(kubernetes, context.release.minor), *release.skew(there)]


def versions(context: Context) -> dict[str, str]:
    """Return the version of each program; empty when they are not known."""
    return {name: found.version for name, found in known(context).items()}


# Obtain


def is_downloaded(context: Context, program: Program) -> bool:
    """Return whether this program is downloaded when it is missing."""
    settings, project = context.settings, program.project
    if project is None or settings.obtain == "debian":
        return False
    site = getattr(settings, project.site)
    if settings.obtain == "download" or site != getattr(Settings, project.site):
        return True  # a mirror is named, so use it
    return _site_reachable(site)


@functools.cache
def _site_reachable(site: str) -> bool:
    return download.reachable(site)


def find_all(context: Context) -> dict[str, Found | None]:
    """Return each wanted program where it is now; None for a missing one. Raise DmucError, as `find` does."""
    from concurrent.futures import ThreadPoolExecutor

    programs = wanted(context)
    with ThreadPoolExecutor(max(len(programs), 1)) as pool:
        return dict(zip(programs, pool.map(lambda p: find(context, p), programs.values()), strict=True))


def _missing(context: Context, found: Mapping[str, Found | None]) -> tuple[list[Program], list[Program]]:
    """Return the missing programs that will be downloaded, and the other missing programs.

    Raise DmucError when some of the others are of Kubernetes, and cannot be built from Debian's source package.
    """
    missing = [PROGRAMS[name] for name, program in found.items() if program is None]
    downloaded = [program for program in missing if is_downloaded(context, program)]
    others = [program for program in missing if program not in downloaded]
    names = [program.name for program in others if program.of_kubernetes]
    if names and not release.fits(context.settings.kubernetes, build_kubernetes.VERSION):
        asked = context.settings.obtain == "auto"
        raise DmucError(
            f"getting Kubernetes {context.settings.kubernetes} ({', '.join(names)})",
            (f"{context.settings.kubernetes_site} does not answer" if asked else "obtain=debian")
            + f", and Debian's source package has only {build_kubernetes.VERSION}.",
            "If you have the programs: bin_dir=DIRECTORY (or kubelet_bin=PATH and so on).\n"
            "If you have a mirror of dl.k8s.io: kubernetes_site=URL (for etcd and the rest: github_site=URL).\n"
            "If another release is good enough: kubernetes=1.20 can be built here.",
        )
    return downloaded, others


def missing_tools(context: Context) -> list[str]:
    """Return the Debian packages of the tools that are not installed."""
    return sorted({tool.package for tool in tools(context) if _on_path(tool.name) is None})


def _missing_packages(context: Context) -> list[str]:
    """Return the Debian packages that must be installed."""
    _, others = _missing(context, find_all(context))
    packages = {*missing_tools(context), *(program.package for program in others if not program.of_kubernetes)}
    if any(program.is_built for program in others):
        packages |= set(build_kubernetes.PACKAGES)
    return sorted(packages - {""})


def _packages_are_there(context: Context) -> Result:
    if wanted(context) and not known(context):
        # Only a quick check: the search for programs is done when the task runs.
        return Result(False, "it is not known yet what is missing")
    missing = missing_tools(context)
    return Result(not missing, f"missing: {', '.join(missing)}" if missing else "all installed")


def _install_packages(context: Context, progress: Progress) -> None:
    progress.note("looking for what is missing")
    packages = _missing_packages(context)
    if packages:
        system_packages.install(packages, progress)
        others = [ELSEWHERE[name] for name in _missing_packages(context) if name in ELSEWHERE]
        if others:
            system_packages.install(others, progress)
    progress.note(f"installed {', '.join(packages)}" if packages else "nothing is missing")


PACKAGES = Goal(
    name="packages",
    hidden=True,
    doc="install the missing system packages",
    holds=_packages_are_there,
    make=_install_packages,
)


def _found_earlier(context: Context) -> dict[str, Found]:
    """Return the programs that earlier runs needed and that still exist."""
    found = {}
    for name, program in PROGRAMS.items():
        with contextlib.suppress(DmucError):
            context.program(name)
            again = find(context, program) if program.wanted(context) else None
            if again:
                found[name] = again
    return found


def _check_downloaded(context: Context, program: Program) -> None:
    """Raise DmucError when the downloaded program does not run here, or is not of the wanted release."""
    assert program.project is not None
    version = program.project.version(context)
    path = context.settings.cache / program.cache_dir / f"v{version}" / program.name
    found = _look_at(context, program, path, "downloaded")
    if not _fits(context, program, found.version):
        raise DmucError(
            f"asking {path} for its version",
            f"Its version is {found.version}, but it was downloaded as {version}.",
            f"The site has another program at this path. Use another site: {program.project.site}=URL.",
        )


def _obtain(context: Context, progress: Progress) -> None:
    found = find_all(context)
    downloaded, others = _missing(context, found)
    download_sites.obtain(
        context, [(program.project, program.name) for program in downloaded if program.project], progress
    )
    for each in downloaded:
        _check_downloaded(context, each)
    if any(program.is_built for program in others):
        build_kubernetes.build(context.settings.cache, progress)
    if PROGRAMS["kubectl"] in others:
        build_kubernetes.fetch_kubectl(context.settings.cache, progress)
    if downloaded or others:
        found = find_all(context)
    lost = [name for name, program in found.items() if program is None]
    if lost:
        raise DmucError(
            "looking for the programs",
            f"Missing, and not available from anywhere: {', '.join(lost)}.",
            "Name the programs with bin_dir=DIRECTORY, or choose where to get them: obtain=download or obtain=debian.",
        )
    if kubelet := found.get("kubelet"):
        its_engine = found.get(engine(context).DAEMON.program_name(context))
        refuse_kubelet(context, release.of(kubelet.version), its_engine.version if its_engine else "")
    before = _server_before(context)
    there = _found_earlier(context) | {name: program for name, program in found.items() if program is not None}
    for name, program in there.items():
        link = _link(context, name)
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(program.path)
    caller.let_in(context.bin, os.environ, list_it=True)
    written = {"_asked_for": _asked_for(context)} | {name: asdict(program) for name, program in there.items()}
    write_atomic(context.programs_file, json.dumps(written, indent=1))
    step = release.step(before, there["kube-apiserver"].version) if before and "kube-apiserver" in there else ""
    progress.note("; ".join(filter(None, (_are_known(context).why, step))))


def _server_before(context: Context) -> str:
    """Return the version of the API server that has written to etcd; empty when etcd has no data."""
    before = read_json(context.programs_file) if etcd.identity(context).exists() else {}
    return str(before.get("kube-apiserver", {}).get("version", ""))


def _link(context: Context, name: str) -> Path:
    return context.state / PROGRAMS[name].links / name


def _forget(context: Context) -> None:
    context.programs_file.unlink(missing_ok=True)
    for links in {program.links for program in PROGRAMS.values()}:
        shutil.rmtree(context.state / links, ignore_errors=True)


BINARIES = Goal(
    name="binaries",
    doc="find the programs, or download or build them",
    holds=_are_known,
    make=_obtain,
    undo=_forget,
    needs=("packages",),
    after=("dns_wanted",),
)

PARTS = [PACKAGES, BINARIES]
