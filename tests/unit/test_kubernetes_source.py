from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import re
import select
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.core import debian
from tasks.core.errors import DmucError, Interrupted
from tasks.core.progress import Silent
from tasks.programs import build_kubernetes
from tests.unit.support import a_program, ending_the_run

# Stand for the tools. `go build` makes a generator, and programs that say their version: by then reflect2 must have
# been replaced, and for kube-apiserver the generator must have run.
TOOLS = {
    "dpkg-source": "",
    "go": r"""
[ $1 = build ] || { printf '%s\n' k8s.io/a k8s.io/b k8s.io/c; exit; }
echo "build: $(env | sort | tr '\n' ' ')"
printf '%s\n' net k8s.io/a
while [ "$1" != -o ]; do shift; done
case $2 in
*/openapi-gen)
    printf '#!/bin/sh\necho "generator: $*"; touch generated\n' > $2
    chmod +x $2 ;;
*)
    [ -e vendor/github.com/modern-go/reflect2/new.go ] || exit 3
    case $* in *kube-apiserver*) [ -e generated ] || exit 3 ;; esac
    printf '%s\n' k8s.io/b k8s.io/c
    mkdir -p $2
    for program in $(printf '%s\n' "$@" | sed -n 's|^./cmd/||p'); do
        printf '#!/bin/sh\n[ "$*" = "--version" ] && echo Kubernetes v1.20.2\n' > $2/$program
        chmod +x $2/$program
    done ;;
esac""",
}


TAGGED = "// +k8s:openapi-gen=true\npackage some\n"
SOURCE = {
    "pkg/apis/abac/v0/doc.go": TAGGED,
    "pkg/apis/abac/v0/types.go": TAGGED,
    "pkg/apis/abac/types.go": "package abac\n",
    "staging/src/k8s.io/api/core/v1/doc.go": TAGGED,
    "staging/src/k8s.io/sample-apiserver/pkg/doc.go": TAGGED,
}


class Told(Silent):
    def __init__(self, heard: Callable[[str], None] = lambda text: None) -> None:
        super().__init__()
        self.heard = heard
        self.notes: list[str] = []
        self.bars: list[tuple[int, int | None, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.heard(text)

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        self.bars.append((done, total, unit))


def replace_tool(tmp_path: Path, name: str, script: str) -> None:
    tool = tmp_path / "bin" / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory, on a machine where everything needed is at hand."""
    (tmp_path / "bin").mkdir()
    for name, script in TOOLS.items():
        replace_tool(tmp_path, name, script)
    monkeypatch.setattr(build_kubernetes, "_PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(build_kubernetes, "_DISK", 0)

    def fetch_source(package: str, into: Path, progress: object, options: object) -> Path:
        tree = into / "kubernetes-1.20.5+really1.20.2"
        (tree / "vendor/github.com/modern-go/reflect2").mkdir(parents=True)
        for path, text in SOURCE.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        return tree

    def extract(deb: Path, into: Path) -> None:
        directory = into / "usr/share/gocode/src/github.com/modern-go/reflect2"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "new.go").touch()

    monkeypatch.setattr(debian, "fetch_source", fetch_source)
    monkeypatch.setattr(debian, "fetch_debs", lambda packages, into, *_: [into / f"{name}.deb" for name in packages])
    monkeypatch.setattr(debian, "archive", lambda *_: contextlib.nullcontext(()))
    monkeypatch.setattr(debian, "extract", extract)
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    return [path.name for path in (cache / "kubernetes").iterdir()]


def log(cache: Path) -> str:
    return (cache / "logs/kubernetes-build.log").read_text()


def test_the_programs_are_built(cache: Path) -> None:
    told = Told()
    result = build_kubernetes.build(cache, told)
    assert result == cache / "kubernetes/v1.20.2-debian"
    assert sorted(path.name for path in result.iterdir()) == sorted(build_kubernetes.PROGRAMS)
    assert left(cache) == ["v1.20.2-debian"]
    assert told.bars[-1] == (3, 3, "packages")
    assert [note for note in told.notes if re.fullmatch(r"compiling 3 packages: \d+ (min|s)", note)]
    assert "linking 5 programs" in told.notes


def test_what_is_missing_of_the_generated_code_is_generated(cache: Path) -> None:
    build_kubernetes.build(cache, Silent())
    (line,) = (line for line in log(cache).splitlines() if line.startswith("generator: "))
    packages = "k8s.io/kubernetes/pkg/apis/abac/v0,k8s.io/kubernetes/vendor/k8s.io/api/core/v1"
    assert f"-i {packages} -p k8s.io/kubernetes/pkg/generated/openapi " in line


def test_nothing_of_the_users_environment_gets_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOFLAGS", "-mod=mod")
    build_kubernetes.build(cache, Silent())
    seen = next(line for line in log(cache).splitlines() if line.startswith("build: "))
    assert "GO111MODULE=off" in seen
    assert f"GOPATH={cache}/kubernetes/" in seen
    assert f"TMPDIR={cache}/kubernetes/" in seen
    assert "GOFLAGS" not in seen


def test_missing_tools_are_named_with_their_packages(tmp_path: Path, cache: Path) -> None:
    build_kubernetes._PATH = str(tmp_path / "bin")  # the fixture puts it back
    (tmp_path / "bin/dpkg-source").unlink()
    with pytest.raises(DmucError) as error:
        build_kubernetes.build(cache, Silent())
    assert error.value.seen.endswith(": dpkg-source")
    assert error.value.do == "Install them: sudo apt-get install --no-install-recommends dpkg-dev"
    assert not cache.exists()


def test_what_is_built_already_is_given_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_kubernetes, "_PATH", "")
    (cache / "kubernetes/v1.20.2-debian").mkdir(parents=True)
    assert build_kubernetes.build(cache, Silent()) == cache / "kubernetes/v1.20.2-debian"


def test_a_failed_build_shows_the_end_of_its_log_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    replace_tool(tmp_path, "go", "[ $1 = list ] && exit; seq 100; echo 'reflect2: cannot compile' >&2; exit 2")
    with pytest.raises(DmucError) as error:
        build_kubernetes.build(cache, Silent())
    assert "go build -v -o" in error.value.tried
    assert error.value.seen.startswith("exit code 2;")
    assert error.value.seen.endswith("\n99\n100\nreflect2: cannot compile")
    assert str(cache / "logs/kubernetes-build.log") in error.value.do
    assert left(cache) == []


def test_a_program_of_another_version_is_not_taken(tmp_path: Path, cache: Path) -> None:
    go = TOOLS["go"].replace("Kubernetes v1.20.2", "Kubernetes v0.0.0-master")
    replace_tool(tmp_path, "go", go)
    with pytest.raises(DmucError, match=r"kube-apiserver .*\nKubernetes v0.0.0-master\nIt must contain v1.20.2"):
        build_kubernetes.build(cache, Silent())
    assert left(cache) == []


def test_a_program_that_does_not_run_is_not_taken(tmp_path: Path, cache: Path) -> None:
    replace_tool(tmp_path, "go", TOOLS["go"] + '\n[ ! -d "$2" ] || echo nonsense > $2/kubelet')
    with pytest.raises(DmucError, match="asking the kubelet of Debian"):
        build_kubernetes.build(cache, Silent())
    assert left(cache) == []


def test_another_debian_has_another_source(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "fetch_source", lambda package, into, *_: into / "kubernetes-1.33.4")
    with pytest.raises(DmucError, match=r"apt has another version: kubernetes-1\.33\.4\.\nDebian 12"):
        build_kubernetes.build(cache, Silent())
    assert left(cache) == []


def test_a_disk_without_room_is_said_before(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(build_kubernetes, "_DISK", 3_300_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_200_000_000))
    with pytest.raises(DmucError, match=r"needs 3\.3 GB .* 1\.2 GB are free"):
        build_kubernetes.build(cache, Silent())
    assert left(cache) == []


@pytest.mark.timeout(60)
def test_an_ended_run_leaves_no_files_and_no_processes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    # Its child holds the pipe open for writing until it is ended as well.
    replace_tool(tmp_path, "go", f"[ $1 = list ] && exit\nexec 3> {pipe}\nsleep 20 &\necho begun\nwait")
    with pytest.raises(Interrupted):
        build_kubernetes.build(cache, ending_the_run(lambda text: text == "linking 5 programs"))
    assert left(cache) == []
    assert select.select([reader], [], [], 10)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_a_killed_build_left_is_removed(cache: Path) -> None:
    scratch = cache / "kubernetes/v1.20.2-debian.building"
    (scratch / "bin").mkdir(parents=True)
    (scratch / "bin/old").touch()
    result = build_kubernetes.build(cache, Silent())
    assert not (result / "old").exists()
    assert left(cache) == ["v1.20.2-debian"]


def test_a_build_of_another_run_is_waited_for(tmp_path: Path, cache: Path) -> None:
    result = cache / "kubernetes/v1.20.2-debian"
    result.parent.mkdir(parents=True)
    lock = os.open(result.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    replace_tool(tmp_path, "go", "exit 1")

    def other_run_ends(text: str) -> None:
        if text.startswith("waiting: another run"):
            result.mkdir()
            os.close(lock)

    assert build_kubernetes.build(cache, Told(other_run_ends)) == result


# kubectl


def package(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have Debian's package hold this kubectl."""

    def extract(deb: Path, into: Path) -> None:
        a_program(into / "usr/bin/kubectl", script)

    monkeypatch.setattr(debian, "fetch_debs", lambda packages, into, *_: [into / f"{packages[0]}.deb"])
    monkeypatch.setattr(debian, "archive", lambda *_: contextlib.nullcontext(()))
    monkeypatch.setattr(debian, "extract", extract)


def test_kubectl_is_taken_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, '[ "$*" = "version --client" ] && echo Client Version: v1.20.2')
    build_kubernetes.fetch_kubectl(tmp_path, Silent())
    (directory,) = (tmp_path / "kubernetes").iterdir()
    assert [path.name for path in directory.iterdir()] == ["kubectl"]


@pytest.mark.parametrize("script", ["echo Client Version: v1.33.4", "echo oh dear; exit 1"])
def test_a_kubectl_of_another_debian_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    package(monkeypatch, script)
    with pytest.raises(DmucError, match=r"It must contain v1\.20\.2, as in Debian 12\."):
        build_kubernetes.fetch_kubectl(tmp_path, Silent())
    assert not [*tmp_path.rglob("kubectl")]
