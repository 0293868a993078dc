"""The build of Kubernetes 1.20.2 from Debian 12's source package, for hosts that cannot download binaries.

Debian 12 has the source package `kubernetes`, but of its programs it has only kubectl as a package. The steps were
found by trial; the reasons are given at each step.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..core import debian
from ..core.errors import DmucError, Interrupted
from ..core.lock import turn
from ..core.progress import Progress

VERSION = "v1.20.2"
DIRECTORY = f"{VERSION}-debian"  # in the cache
DIRECTORY_OF_KUBECTL = f"{DIRECTORY}-client"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")

# The compiler of Debian 12, whose source package this is (those of later releases have only kubectl). Not the host's,
# which may be too new or too old for this code; and so it is not installed, but unpacked.
_GO = ("golang-1.19-go", "golang-1.19-src")
# The build's other tools, and the packages that they are in. Not make, see _generate.
_TOOLS = {"dpkg-source": "dpkg-dev"}
PACKAGES = (*_TOOLS.values(), debian.KEYS)

_PATH = "/usr/bin:/bin"  # the system's tools, whatever else the user's PATH has first
_DISK = 3_300_000_000  # bytes; 3.04 GB were measured: source 0.4, Go's cache and temporary files 2.3, programs 0.3
# Where a version is set (hack/lib/version.sh); `--version` says the first, the API server's /version the second.
_VERSION_PACKAGES = ("component-base/version", "client-go/pkg/version")
_GENERATOR = "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"
_NEEDS_GENERATED = "kube-apiserver"
_CPU_SECONDS = 300  # of compiling and linking, measured on the machine that takes 4 minutes with 2 processors
_EXAMPLES = ("code-generator", "sample-apiserver")  # API types that no program serves
_REFLECT2 = "golang-github-modern-go-reflect2-dev"


def build(cache: Path, progress: Progress) -> Path:
    """Return the directory in `cache` with the PROGRAMS; build them if the directory does not exist yet.

    The directory appears only when all programs are built and print VERSION. A build takes some 4 minutes on 2 cores,
    and temporarily _DISK bytes. It needs PACKAGES, and apt-get must be able to download. Its output is in
    `logs/kubernetes-build.log`. Raise DmucError when a tool or disk space is missing or a step fails; Interrupted when
    the run is interrupted.
    """
    result = cache / "kubernetes" / DIRECTORY
    if result.exists():
        return result
    _check_tools()
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
        with turn(result.parent, "building Kubernetes", progress):
            if not result.exists():  # it may have been built while we waited
                _build(result, cache / "logs" / "kubernetes-build.log", progress)
    except OSError as error:
        raise DmucError(f"building Kubernetes {VERSION} in {cache}", str(error)) from None
    return result


def fetch_kubectl(cache: Path, progress: Progress) -> None:
    """Put kubectl from Debian's package into the directory `cache`, whole or not at all.

    The package is not installed: that takes root, and another kubectl may have its place. Raises DmucError when
    apt-get cannot fetch it, or it is of another version.
    """
    place = cache / "kubernetes" / DIRECTORY_OF_KUBECTL / "kubectl"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=place.parent) as directory:
            scratch = Path(directory)
            with debian.archive(debian.SUITE, scratch, progress) as options:
                for deb in debian.fetch_debs(["kubernetes-client"], scratch, progress, options):
                    debian.extract(deb, scratch)
            _check_version(scratch / "usr/bin/kubectl")
            (scratch / "usr/bin/kubectl").rename(place)
    except OSError as error:
        raise DmucError(f"taking kubectl from Debian's package to {place}", str(error)) from None


def _build(result: Path, log: Path, progress: Progress) -> None:
    scratch = result.parent.resolve() / f"{result.name}.building"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed; the lock excludes other builds
    _check_disk(result.parent)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    try:
        (scratch / "tmp").mkdir(parents=True)
        tree = _source(scratch, progress)
        _compile(tree, scratch, log, progress)
        progress.note("checking the versions of the programs")
        for program in PROGRAMS:
            _check_version(scratch / "bin" / program)
        (scratch / "bin").rename(result)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _source(scratch: Path, progress: Progress) -> Path:
    """Return the directory of the patched source, inside of a GOPATH: Go's module mode refuses the old go.mod."""
    with debian.archive(debian.SUITE, scratch, progress) as options:
        unpacked = debian.fetch_source("kubernetes", scratch, progress, options)
        debs = debian.fetch_debs([_REFLECT2, *_GO], scratch, progress, options)
    if VERSION.lstrip("v") not in unpacked.name:
        raise DmucError(
            f"fetching the source of Kubernetes {VERSION}",
            f"apt has another version: {unpacked.name}.",
            "Debian 12 (bookworm) has the right version. Elsewhere, use programs of your own: bin_dir=DIRECTORY.",
        )
    tree = scratch / "go/src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    unpacked.rename(tree)
    # The vendored reflect2 1.0.1 panics (reflect.mapiternext) when compiled by Go 1.18 or later; Debian's is 1.0.2.
    name = "github.com/modern-go/reflect2"
    progress.note("unpacking the compiler")
    for deb in debs:
        debian.extract(deb, scratch / "debs")
    shutil.rmtree(tree / "vendor" / name)
    (scratch / "debs/usr/share/gocode/src" / name).rename(tree / "vendor" / name)
    return tree


def _compile(tree: Path, scratch: Path, log: Path, progress: Progress) -> None:
    go = scratch / "debs/usr/lib/go-1.19"
    environment = {
        "PATH": f"{go / 'bin'}:{_PATH}",
        "GOROOT": str(go),
        "HOME": str(scratch),
        "TMPDIR": str(scratch / "tmp"),
        "GOPATH": str(scratch / "go"),
        "GOCACHE": str(scratch / "gocache"),
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
    }

    def run(*command: str, seen: Callable[[str], None]) -> None:
        _run(command, environment, tree, log, seen, progress.stop)

    tags = ("-tags", "providerless")  # without the cloud providers: this halves the time and the size
    fast = ("-gcflags=all=-dwarf=false",)  # no data for debuggers, which the linker leaves out anyway: saves a tenth
    every = [f"./cmd/{program}" for program in PROGRAMS]
    packages: set[str] = set()
    ours = "{{if not .Standard}}{{.ImportPath}}{{end}}"
    run("go", "list", "-deps", "-f", ours, *tags, *every, _GENERATOR, seen=lambda line: packages.add(line.strip()))
    total, begin = len(packages), time.monotonic()

    def count(line: str) -> None:  # `go build -v` names each package that it compiles
        packages.discard(line.strip())
        done, seconds = total - len(packages), time.monotonic() - begin
        progress.bar(done, total, "packages")
        if not packages:
            progress.note(f"linking {len(PROGRAMS)} programs")
        elif done > total / 10:
            progress.note(f"compiling, another {_about(seconds * len(packages) / done)}")

    progress.note(f"compiling {total} packages: {_about(_CPU_SECONDS / len(os.sched_getaffinity(0)))}")
    generator = str(scratch / "openapi-gen")
    run("go", "build", "-v", "-o", generator, *fast, _GENERATOR, seen=count)

    # In GOPATH mode a vendored package's name begins with that of the tree: without it, -X is silently ignored.
    major, minor, _ = VERSION.lstrip("v").split(".")
    version = {"gitVersion": VERSION, "gitMajor": major, "gitMinor": minor}
    places = [f"k8s.io/kubernetes/vendor/k8s.io/{package}" for package in _VERSION_PACKAGES]
    ldflags = " ".join(["-s", "-w", *(f"-X {p}.{name}={value}" for p in places for name, value in version.items())])

    def build(*programs: str) -> None:
        what = [f"./cmd/{program}" for program in programs]
        run("go", "build", "-v", "-o", f"{scratch}/bin/", "-ldflags", ldflags, *fast, *tags, *what, seen=count)

    # The generator uses one processor; meanwhile the other one compiles what does not need the generated file.
    with ThreadPoolExecutor(max_workers=1) as pool:
        generated = pool.submit(_generate, tree, generator, run)
        build(*(program for program in PROGRAMS if program != _NEEDS_GENERATED))
        generated.result()
    build(_NEEDS_GENERATED)


def _about(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds / 10 + 0.5:.0f}0 s"


def _generate(tree: Path, generator: str, run: Callable[..., None]) -> None:
    """Generate the OpenAPI definitions of all API types, without which kube-apiserver does not compile.

    All other generated code is in Debian's source. `make generated_files` generates that, too: it builds six generators
    and took 91 s. This is what it does for the file that is missing (build/root/Makefile.generated_files).
    """
    staging, tag = tree / "staging/src", b"+k8s:openapi-gen="
    files = (file for part in ("cmd", "pkg", "staging/src/k8s.io") for file in (tree / part).rglob("*.go"))
    directories = sorted({file.parent for file in files if tag in file.read_bytes()})
    packages = [
        f"k8s.io/kubernetes/vendor/{directory.relative_to(staging)}"
        if directory.is_relative_to(staging)
        else f"k8s.io/kubernetes/{directory.relative_to(tree)}"
        for directory in directories
        if not any(directory.is_relative_to(staging / "k8s.io" / name) for name in _EXAMPLES)
    ]
    header = "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"
    place = ("-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi", "-h", header)
    report = f"{generator}.report"  # violations of conventions, which are known
    run(generator, "-i", ",".join(packages), *place, "-r", report, seen=lambda line: None)


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    log: Path,
    seen: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Run `command` in `directory`, with only this environment; its output goes to `log`, and by line to `seen`."""
    from plumbum import local

    clean = local["env"]["-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    with log.open("a", encoding="utf-8") as output, log.open(encoding="utf-8", errors="replace") as lines:
        output.write(f"+ {clean}\n")
        output.flush()
        begin = lines.seek(0, os.SEEK_END)
        process = clean.popen(
            cwd=str(directory),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            new_session=True,  # so that the whole process group can be killed
        )
        assert process.pid is not None  # for mypy: it is started
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None  # before reading, so that no line is missed
                for line in lines:
                    seen(line)
                if not ended and stop.wait(0.2):
                    raise Interrupted(f"building Kubernetes {VERSION}", "the run was interrupted")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            lines.seek(begin)
            tail = "\n".join(lines.read().splitlines()[-15:])
            raise DmucError(
                f"building Kubernetes {VERSION}: {shlex.join(command)}",
                f"exit code {process.returncode}; the end of its output:\n{tail}",
                f"The whole log is in {log}.",
            )


def _check_tools() -> None:
    missing = {tool: package for tool, package in _TOOLS.items() if not shutil.which(tool, path=_PATH)}
    if missing:
        raise DmucError(
            f"building Kubernetes {VERSION}",
            f"These tools are missing in {_PATH}: {', '.join(missing)}",
            f"Install them: sudo apt-get install --no-install-recommends {' '.join(missing.values())}",
        )


def _check_disk(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < _DISK:
        raise DmucError(
            f"building Kubernetes {VERSION} in {directory}",
            f"The build needs {_DISK / 1e9:.1f} GB of disk space; {free / 1e9:.1f} GB are free.",
            "Free some space there, or choose another directory with cache=DIRECTORY.",
        )


def _check_version(program: Path) -> None:
    from plumbum import ProcessExecutionError, local

    arguments = ["version", "--client"] if program.name == "kubectl" else ["--version"]
    try:
        said = local[str(program)](*arguments)
        right = VERSION in said
    except (ProcessExecutionError, OSError) as error:
        said, right = str(error), False
    if not right:
        raise DmucError(
            f"asking the {program.name} of Debian's source or package for its version",
            said.strip(),
            f"It must contain {VERSION}, as in Debian 12. Elsewhere, use your own programs: bin_dir=DIRECTORY.",
        )
