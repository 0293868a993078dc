"""The programs: looked for in the order that is promised, asked for their version, downloaded with the right sum."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import binaries
from tasks.binaries import BINARIES, find, known, versions
from tasks.core import debian, download
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.goal import UpToDate
from tasks.core.progress import Silent
from tasks.core.settings import Settings
from tasks.programs import build_kubernetes, catalog
from tasks.programs.catalog import PROGRAMS, TOOLS
from tests.unit.support import Site, a_context, a_program, load_dodo

CNI = ["bridge", "host-local", "loopback", "portmap"]
OF_KUBERNETES = [name for name, program in PROGRAMS.items() if program.of_kubernetes]
OTHERS = [name for name, program in PROGRAMS.items() if not program.of_kubernetes]


class Shelf:
    """Directories of programs that say what version they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "path"
        self.path.mkdir()

    def put(self, directory: str, name: str, version: str) -> Path:
        """Put a program there that writes down each time it is asked."""
        who = f"CNI {name} plugin" if name in CNI else name
        return a_program(self.root / directory / name, f'echo "$0 $*" >> {self.root}/asked; echo "{who} {version}"')

    def put_all(self, directory: str, version: str = "v1.20.2", names: list[str] | None = None) -> Path:
        for name in names or PROGRAMS:
            self.put(directory, name, version)
        return self.root / directory

    @property
    def asked(self) -> list[str]:
        file = self.root / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Programs of the test alone: nothing of this host is on PATH."""
    shelf, which = Shelf(tmp_path), shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, path=None: which(name, path=str(shelf.path)))
    return shelf


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return a_context(tmp_path, obtain="debian")


def having(context: Context, **settings: Any) -> Context:
    return replace(context, settings=replace(context.settings, **settings))


def cached(context: Context, shelf: Shelf, name: str, version: str) -> Path:
    kind = "kubernetes" if PROGRAMS[name].of_kubernetes else name
    return shelf.put(f"cache/{kind}/{version}", name, version)


def where(context: Context, name: str) -> Path | None:
    found = find(context, PROGRAMS[name])
    return Path(found.path) if found else None


# Where


def test_the_one_that_is_named_comes_before_all(context: Context, shelf: Shelf) -> None:
    named = shelf.put("mine", "kubelet", "v1.20.2")
    shelf.put("built", "kubelet", "v1.20.2")
    shelf.put("path", "kubelet", "v1.20.2")
    context = having(context, programs={"kubelet": str(named)}, bin_dir=str(shelf.root / "built"))
    assert where(context, "kubelet") == named


def test_then_the_directory_that_is_named(context: Context, shelf: Shelf) -> None:
    built = shelf.put("built", "kubelet", "v1.20.2")
    shelf.put("path", "kubelet", "v1.20.2")
    assert where(having(context, bin_dir=str(built.parent)), "kubelet") == built


def test_what_the_directory_does_not_have_is_looked_for_elsewhere(context: Context, shelf: Shelf) -> None:
    built = shelf.put("built", "kubelet", "v1.20.2")
    etcd = shelf.put("path", "etcd", "3.4.23")
    assert where(having(context, bin_dir=str(built.parent)), "etcd") == etcd


def test_then_path_and_then_the_cache(context: Context, shelf: Shelf) -> None:
    in_cache = cached(context, shelf, "kubelet", "v1.20.15")
    assert where(context, "kubelet") == in_cache
    on_path = shelf.put("path", "kubelet", "v1.20.2")
    assert where(context, "kubelet") == on_path


def test_on_path_only_those_of_the_wanted_release_count(context: Context, shelf: Shelf) -> None:
    shelf.put("path", "kubectl", "v1.33.1")
    assert where(context, "kubectl") is None
    in_cache = cached(context, shelf, "kubectl", "v1.20.15")
    assert where(context, "kubectl") == in_cache


def test_a_full_version_must_be_had_exactly(context: Context, shelf: Shelf) -> None:
    shelf.put("path", "kubectl", "v1.20.15")
    wanted = cached(context, shelf, "kubectl", "v1.20.2")
    cached(context, shelf, "kubectl", "v1.20.9")
    assert where(having(context, kubernetes="1.20.2"), "kubectl") == wanted


def test_of_what_is_not_kubernetes_any_version_on_path_counts(context: Context, shelf: Shelf) -> None:
    assert where(context, "runc") is None
    assert where(having(context), "runc") is None
    on_path = shelf.put("path", "runc", "1.1.5+ds1")
    assert where(context, "runc") == on_path


def test_one_that_is_named_may_be_of_any_release(context: Context, shelf: Shelf) -> None:
    built = shelf.put("built", "kubelet", "v1.99.0-alpha.1.23+0123456789abcd-dirty")
    found = find(having(context, bin_dir=str(built.parent)), PROGRAMS["kubelet"])
    assert found is not None
    assert (found.version, found.source) == ("v1.99.0-alpha.1.23+0123456789abcd-dirty", "named in the settings")


def test_a_clusters_own_links_are_never_found(context: Context, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shelf.put("cache/etcd", "etcd", "3.4.23")
    there = shelf.root / "elsewhere" / "var" / "dmuc7"  # another checkout's cluster, or this one
    (there / "bin").mkdir(parents=True)
    (there / "programs.json").write_text("{}")
    (there / "bin" / "etcd").symlink_to(real)
    (shelf.root / "assets").symlink_to(there / "bin")
    for directory in (there / "bin", shelf.root / "assets", Path(f"{there}/bin/")):
        monkeypatch.setenv("PATH", f"{directory}")
        found = binaries.find(context, PROGRAMS["etcd"])
        assert found is None or not Path(found.path).is_relative_to(there)
        # Named by the user, such a link means the program.
        assert where(having(context, bin_dir=str(directory)), "etcd") == real
    (there / "bin" / "etcd").unlink()
    (there / "bin" / "etcd").symlink_to(there / "bin" / "etcd")
    assert "etcd" in refused(having(context, bin_dir=str(there / "bin")), "etcd").tried


# What is named and cannot be


def refused(context: Context, name: str) -> DmucError:
    with pytest.raises(DmucError) as error:
        find(context, PROGRAMS[name])
    return error.value


def test_a_named_program_that_is_not_there_is_said(context: Context, shelf: Shelf) -> None:
    shelf.put("path", "kube-apiserver", "v1.20.2")  # not taken instead
    error = refused(having(context, programs={"kube-apiserver": "/no/where"}), "kube-apiserver")
    assert error.tried == "asking /no/where for its version"
    assert error.seen == "There is no such file."
    assert "kube_apiserver_bin=PATH" in error.do


def test_a_named_directory_is_no_program(context: Context, shelf: Shelf) -> None:
    assert refused(having(context, programs={"etcd": str(shelf.root)}), "etcd").seen


def test_a_named_program_that_is_not_executable_is_said(context: Context, shelf: Shelf) -> None:
    named = shelf.put("mine", "etcd", "3.4.23")
    named.chmod(0o644)
    seen = refused(having(context, programs={"etcd": str(named)}), "etcd").seen
    assert seen == f"The file is not executable. If it should be: chmod +x {named}"


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("#!/bin/sh\necho oh dear >&2; exit 4\n", "exit code 4: oh dear"),
        ("#!/bin/sh\necho who knows\n", "exit code 0: who knows"),
        ("#!/no/such/interpreter\n", "It is a script for /no/such/interpreter, which does not exist."),
        ("\x7fELF rubbish", "The program cannot be run: "),
    ],
)
def test_a_named_program_that_does_not_say_its_version_is_said(
    context: Context, shelf: Shelf, script: str, seen: str
) -> None:
    named = shelf.put("mine", "etcd", "3.4.23")
    named.write_text(script)
    assert refused(having(context, programs={"etcd": str(named)}), "etcd").seen.startswith(seen)


def test_a_named_directory_that_is_not_there_is_said(context: Context, shelf: Shelf) -> None:
    shelf.put_all("path")  # not taken instead: it is not what the user said
    with pytest.raises(DmucError, match="/no/where"):
        BINARIES.make(having(context, bin_dir="/no/where"), Silent())


def test_one_that_is_not_named_and_does_not_work_is_passed_over(context: Context, shelf: Shelf) -> None:
    # A kubectl on PATH may be anything: a wrapper, a version manager's stand-in, one for another processor.
    shelf.put("path", "kubectl", "v1.20.2").write_text(
        "#!/bin/sh\necho 'no version is set for kubectl' >&2; exit 126\n"
    )
    in_cache = cached(context, shelf, "kubectl", "v1.20.15")
    assert where(context, "kubectl") == in_cache


# Asking


def test_each_file_is_asked_once_for_its_version(context: Context, shelf: Shelf) -> None:
    named = shelf.put("mine", "etcd", "3.4.23")
    context = having(context, programs={"etcd": str(named)})
    for _ in range(3):
        found = find(context, PROGRAMS["etcd"])
        assert found is not None and found.version == "3.4.23"
    assert shelf.asked == [f"{named} --version"]


def test_a_file_that_has_changed_is_asked_again(context: Context, shelf: Shelf) -> None:
    shelf.put("path", "etcd", "3.4.23")
    find(context, PROGRAMS["etcd"])
    shelf.put("path", "etcd", "3.5.0-newer")
    found = find(context, PROGRAMS["etcd"])
    assert found is not None and found.version == "3.5.0-newer"


def test_what_was_remembered_wrongly_is_asked_again(context: Context, shelf: Shelf) -> None:
    shelf.put("path", "etcd", "3.4.23")
    find(context, PROGRAMS["etcd"])
    for text in ("", "[]", "{}", '{"path": 1}'):
        for file in (context.settings.cache / "versions").iterdir():
            file.write_text(text)
        found = find(context, PROGRAMS["etcd"])
        assert found is not None and found.version == "3.4.23"


def test_kubectl_is_asked_without_a_server(context: Context, shelf: Shelf) -> None:
    named = shelf.put("path", "kubectl", "v1.20.2")
    find(context, PROGRAMS["kubectl"])
    assert shelf.asked == [f"{named} version --client"]


@pytest.mark.parametrize(
    ("name", "says", "version"),
    [
        ("etcd", "etcd Version: 3.4.23\nGit SHA: Not provided\nGo Version: go1.19.8", "3.4.23"),
        (
            "kubectl",
            'Client Version: version.Info{Major:"1", Minor:"20", GitVersion:"v1.20.2", GitCommit:"faecb19"}',
            "v1.20.2",
        ),
        ("kubelet", "Kubernetes v1.20.15", "v1.20.15"),
        ("dockerd", "Docker version 20.10.24+dfsg1, build 5d6db84", "20.10.24+dfsg1"),
        ("containerd", "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1", "1.6.20~ds1"),
        ("runc", "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\ngo: go1.19.8", "1.1.5+ds1"),
        ("docker-registry", "docker-registry github.com/docker/distribution 2.8.2+ds1", "2.8.2+ds1"),
    ],
)
def test_versions_are_found_in_what_the_programs_say(
    context: Context, shelf: Shelf, name: str, says: str, version: str
) -> None:
    a_program(shelf.path / name, f"cat << 'EOF'\n{says}\nEOF")
    found = find(context, PROGRAMS[name])
    assert found is not None and found.version == version


# What is known


def test_nothing_is_known_at_first(context: Context) -> None:
    assert known(context) == {}
    assert versions(context) == {}
    assert not BINARIES.holds(context)


@pytest.mark.parametrize(("engine", "networks"), [("docker", []), ("containerd", CNI)])
def test_what_was_found_is_known_and_linked(context: Context, shelf: Shelf, engine: str, networks: list[str]) -> None:
    shelf.put_all("built", "v1.20.2")
    context = having(context, bin_dir=str(shelf.root / "built"), engine=engine)
    BINARIES.make(context, Silent())
    result = BINARIES.holds(context)
    assert result
    assert "Kubernetes v1.20.2" in result.why and "named in the settings" in result.why
    wanted = catalog.wanted(context).keys()
    assert versions(context) == dict.fromkeys(wanted, "v1.20.2")
    # The network plugins are apart: one has the name of another program, which the machine has, too.
    for directory, names in ((context.bin, wanted - {*networks}), (context.state / "cni/bin", networks)):
        there = {path.name: path.resolve() for path in directory.glob("*")}
        assert there == {name: shelf.root / "built" / name for name in names}
    assert context.program("kubelet") == shelf.root / "built/kubelet"


def make_known(context: Context, shelf: Shelf) -> Context:
    shelf.put_all("built")
    context = having(context, bin_dir=str(shelf.root / "built"))
    BINARIES.make(context, Silent())
    assert BINARIES.holds(context)
    return context


def test_a_program_that_has_changed_is_looked_at_again(context: Context, shelf: Shelf) -> None:
    context = make_known(context, shelf)
    shelf.put("built", "kubelet", "v1.20.2-dirty")
    assert not BINARIES.holds(context)
    BINARIES.make(context, Silent())
    assert BINARIES.holds(context)
    assert versions(context)["kubelet"] == "v1.20.2-dirty"


def test_who_reads_what_is_known_while_it_is_written_again_reads_it_whole(context: Context, shelf: Shelf) -> None:
    context = make_known(context, shelf)
    before = context.programs_file.read_text()
    with context.programs_file.open() as reader:
        shelf.put("built", "kubelet", "v1.20.2-dirty")
        BINARIES.make(context, Silent())
        assert reader.read() == before != context.programs_file.read_text()


@pytest.mark.parametrize("gone", ["program", "link"])
def test_what_is_gone_is_looked_for_again(context: Context, shelf: Shelf, gone: str) -> None:
    context = make_known(context, shelf)
    shelf.put_all("path")
    (shelf.root / "built/runc" if gone == "program" else context.bin / "runc").unlink()
    assert not BINARIES.holds(context)
    BINARIES.make(context, Silent())
    assert BINARIES.holds(context)


def test_other_settings_are_another_question(context: Context, shelf: Shelf) -> None:
    context = make_known(context, shelf)
    assert not BINARIES.holds(having(context, kubernetes="1.20.2"))
    assert not BINARIES.holds(having(context, bin_dir=""))
    assert not BINARIES.holds(having(context, programs={"etcd": "/mine"}))
    assert BINARIES.holds(having(context, deadline=7.0))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"_asked_for": ""}'])
def test_rubbish_is_not_known(context: Context, shelf: Shelf, text: str) -> None:
    context = make_known(context, shelf)
    context.programs_file.write_text(text)
    assert UpToDate(BINARIES, context)() is False
    BINARIES.make(context, Silent())
    assert BINARIES.holds(context)


def test_taking_it_back_forgets_and_keeps_the_programs(context: Context, shelf: Shelf) -> None:
    context = make_known(context, shelf)
    assert BINARIES.undo is not None
    BINARIES.undo(context)
    assert not context.bin.exists() and not context.programs_file.exists()
    assert (shelf.root / "built/runc").exists()
    BINARIES.undo(context)


def test_what_is_nowhere_and_cannot_be_had_is_named(
    context: Context, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put_all("path", names=[name for name in PROGRAMS if name not in ("runc", "etcd")])
    with pytest.raises(DmucError) as error:
        BINARIES.make(context, Silent())
    assert "from anywhere: etcd, runc" in error.value.seen
    assert "bin_dir=DIRECTORY" in error.value.do


def test_another_release_than_debians_cannot_be_built(context: Context, shelf: Shelf) -> None:
    shelf.put_all("path", names=OTHERS)
    with pytest.raises(DmucError) as error:
        BINARIES.make(having(context, kubernetes="1.20.15"), Silent())
    assert "1.20.15" in error.value.tried
    assert error.value.seen.startswith("obtain=debian, and Debian's source package has only")


# Downloading


def publish(site: Site, path: str, content: bytes, *, sums: str = "") -> None:
    """Put a file there, with its sum in a file of its own or in a list."""
    site.pages[path] = (200, content)
    digest = hashlib.sha256(content).hexdigest()
    if sums:
        site.pages[sums] = (200, f"{'0' * 64}  another-file.tar.gz\n{digest}  {Path(path).name}\n".encode())
    else:
        site.pages[f"{path}.sha256"] = (200, digest.encode())


def publish_kubernetes(site: Site, version: str, below: str = "") -> None:
    for name in OF_KUBERNETES:
        program = f"#!/bin/sh\necho {name} {version}\n".encode()
        publish(site, f"{below}/release/{version}/bin/linux/amd64/{name}", program)


def publish_etcd(site: Site, version: str, member: str = "etcd", below: str = "") -> str:
    name = f"etcd-v{version}-linux-amd64"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        content = f"#!/bin/sh\necho etcd Version: {version}\n".encode()
        for file in (f"{name}/README.md", f"{name}/{member}"):
            entry = tarfile.TarInfo(file)
            entry.size, entry.mode = len(content), 0o644 if file.endswith(".md") else 0o755
            archive.addfile(entry, io.BytesIO(content))
    directory = f"{below}/etcd-io/etcd/releases/download/v{version}"
    path = f"{directory}/{name}.tar.gz"
    publish(site, path, buffer.getvalue(), sums=f"{directory}/SHA256SUMS")
    return path


def executables(context: Context) -> list[str]:
    cache = context.settings.cache
    return sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and os.access(path, os.X_OK)
    )


@pytest.fixture
def online(context: Context, shelf: Shelf, site: Site) -> Context:
    """What cannot be downloaded is on PATH; Kubernetes and etcd are not."""
    shelf.put_all("path", names=[name for name in OTHERS if name != "etcd"])
    return having(context, obtain="download", kubernetes_site=site.url, github_site=site.url)


def test_kubernetes_and_etcd_are_downloaded(online: Context, site: Site) -> None:
    publish_kubernetes(site, f"v{online.release.default}")
    publish_etcd(site, online.release.etcd)
    BINARIES.make(online, Silent())
    result = BINARIES.holds(online)
    assert f"Kubernetes v{online.release.default}" in result.why and f"etcd {online.release.etcd}" in result.why
    assert executables(online) == sorted(
        [
            f"etcd/v{online.release.etcd}/etcd",
            *(f"kubernetes/v{online.release.default}/{name}" for name in OF_KUBERNETES),
        ]
    )
    assert {path.stat().st_mode & 0o777 for path in online.settings.cache.glob("*/v*/*")} == {0o755}


def test_a_full_version_is_downloaded_as_it_is(online: Context, site: Site) -> None:
    publish_kubernetes(site, "v1.20.7")
    publish_etcd(site, online.release.etcd)
    for wanted in ("1.20.7", "v1.20.7"):
        BINARIES.make(having(online, kubernetes=wanted), Silent())
    assert {path.name for path in (online.settings.cache / "kubernetes").iterdir()} == {"v1.20.7"}


def test_what_is_there_is_not_downloaded_again(online: Context, site: Site, tmp_path: Path) -> None:
    publish_kubernetes(site, f"v{online.release.default}")
    publish_etcd(site, online.release.etcd)
    BINARIES.make(online, Silent())
    site.asked.clear()
    other = a_context(tmp_path / "another cluster", cache=online.settings.cache, obtain="download")
    BINARIES.make(other, Silent())
    assert site.asked == []


def test_only_what_is_missing_is_downloaded(online: Context, site: Site, shelf: Shelf) -> None:
    for name in (*OF_KUBERNETES, "etcd"):
        if name != "kubelet":
            shelf.put("path", name, "v1.20.2")
    publish_kubernetes(site, f"v{online.release.default}")
    BINARIES.make(online, Silent())
    path = f"/release/v{online.release.default}/bin/linux/amd64/kubelet"
    assert sorted(site.asked) == [path, f"{path}.sha256"]


def test_a_wrong_sum_never_gives_a_program(online: Context, site: Site) -> None:
    version = f"v{online.release.default}"
    publish_kubernetes(site, version)
    publish_etcd(site, online.release.etcd)
    path = f"/release/{version}/bin/linux/amd64/kube-scheduler"
    site.pages[path] = (200, b"#!/bin/sh\necho kube-scheduler v1.20.15; touch /tmp/owned\n")
    with pytest.raises(DmucError) as error:
        BINARIES.make(online, Silent())
    assert f"{site.url}{path}" in error.value.tried
    assert "SHA-256" in error.value.seen
    assert not [name for name in executables(online) if "kube-scheduler" in name]
    assert not list(online.settings.cache.glob("**/kube-scheduler"))
    assert not BINARIES.holds(online)
    publish_kubernetes(site, version)  # mended
    BINARIES.make(online, Silent())
    assert BINARIES.holds(online)


def test_an_archive_with_a_wrong_sum_is_not_unpacked(online: Context, site: Site) -> None:
    publish_kubernetes(site, f"v{online.release.default}")
    path = publish_etcd(site, online.release.etcd)
    site.pages[path] = (200, site.pages[path][1] + b"x")
    with pytest.raises(DmucError, match="SHA-256"):
        BINARIES.make(online, Silent())
    assert not [name for name in executables(online) if name.startswith("etcd/")]


def test_an_archive_without_the_program_is_said(online: Context, site: Site) -> None:
    publish_kubernetes(site, f"v{online.release.default}")
    publish_etcd(site, online.release.etcd, member="etcdctl")
    with pytest.raises(DmucError, match="The archive does not contain etcd"):
        BINARIES.make(online, Silent())


def test_a_release_that_is_not_published_is_said(online: Context, site: Site) -> None:
    publish_etcd(site, online.release.etcd)
    with pytest.raises(DmucError, match="404"):
        BINARIES.make(having(online, kubernetes="1.20.99"), Silent())
    assert executables(online) in ([], [f"etcd/v{online.release.etcd}/etcd"])


def test_a_run_that_was_killed_right_after_a_download_does_no_harm(online: Context, site: Site) -> None:
    version = f"v{online.release.default}"
    publish_kubernetes(site, version)
    publish_etcd(site, online.release.etcd)
    half = online.settings.cache / "kubernetes" / version / "kubelet"  # complete, but not executable yet
    half.parent.mkdir(parents=True)
    half.write_bytes(site.pages[f"/release/{version}/bin/linux/amd64/kubelet"][1])
    BINARIES.make(online, Silent())
    assert BINARIES.holds(online)
    assert os.access(half, os.X_OK)


def test_by_itself_it_is_downloaded_when_the_site_answers_which_is_asked_once(
    context: Context, shelf: Shelf, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def reachable(url: str) -> bool:
        asked.append(url)
        return True

    monkeypatch.setattr(download, "reachable", reachable)
    monkeypatch.setattr(debian, "install", lambda packages, progress: None)
    monkeypatch.setattr(Settings, "kubernetes_site", site.url)
    monkeypatch.setattr(Settings, "github_site", f"{site.url}/github")
    auto = having(context, obtain="auto", kubernetes_site=site.url, github_site=f"{site.url}/github")
    shelf.put_all("path", names=[name for name in OTHERS if name != "etcd"])
    publish_kubernetes(site, f"v{auto.release.default}")
    publish_etcd(site, auto.release.etcd, below="/github")
    for goal in (binaries.PACKAGES, BINARIES):
        goal.make(auto, Silent())
    assert sorted(asked) == [site.url, f"{site.url}/github"]
    assert versions(auto)["etcd"] == auto.release.etcd


def test_each_site_answers_for_itself(
    context: Context, shelf: Shelf, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(debian, "install", lambda packages, progress: installed.append(list(packages)))
    monkeypatch.setattr(download, "reachable", lambda url: False)
    monkeypatch.setattr(Settings, "github_site", f"{site.url}/unreachable")
    for tool in (*(tool.name for tool in TOOLS), *(name for name in OTHERS if name != "etcd")):
        shelf.put("path", tool, "1.0.0")
    github = f"{site.url}/unreachable"
    binaries.PACKAGES.make(having(context, obtain="auto", kubernetes_site=site.url, github_site=github), Silent())
    assert installed == [["etcd-server"]]  # and no compiler


def test_a_mirror_that_is_named_is_used(context: Context, shelf: Shelf, site: Site) -> None:
    shelf.put_all("path", names=OTHERS)
    publish_kubernetes(site, "v1.20.15", below="/mirror")
    context = having(context, obtain="auto", kubernetes_site=f"{site.url}/mirror")
    BINARIES.make(context, Silent())
    assert versions(context)["kubelet"] == "v1.20.15"


@pytest.mark.parametrize(
    ("obtain", "seen"),
    [("auto", "https://dl.k8s.io does not answer, and Debian's "), ("debian", "obtain=debian, and Debian's ")],
)
def test_a_release_that_is_not_here_is_said_before_anything_is_installed(
    context: Context, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, obtain: str, seen: str
) -> None:
    monkeypatch.setattr(debian, "install", lambda packages, progress: pytest.fail("installed in vain"))
    monkeypatch.setattr(download, "reachable", lambda url: False)
    binaries._site_reachable.cache_clear()
    wanted = having(context, kubernetes="1.36", obtain=obtain)
    for goal in (binaries.PACKAGES, BINARIES):
        with pytest.raises(DmucError) as error:
            goal.make(wanted, Silent())
        assert error.value.tried.startswith("getting Kubernetes 1.36 (kube-apiserver, ")
        assert error.value.seen.startswith(seen) and "v1.20.2" in error.value.seen
        for way in ("bin_dir=DIRECTORY", "kubernetes_site=URL", "github_site=URL", "kubernetes=1.20"):
            assert way in error.value.do
    binaries._site_reachable.cache_clear()


def test_what_was_downloaded_and_is_of_another_release_is_said(online: Context, site: Site) -> None:
    publish_kubernetes(site, "v1.20.7")
    publish_etcd(site, online.release.etcd)
    for path in [path for path in site.pages if "v1.20.7" in path]:
        site.pages[path.replace("v1.20.7", "v1.21.99")] = site.pages[path]
    with pytest.raises(DmucError) as error:
        BINARIES.make(having(online, kubernetes="1.21.99"), Silent())
    assert error.value.seen == "Its version is v1.20.7, but it was downloaded as 1.21.99."
    assert "kubernetes_site=URL" in error.value.do


def test_what_was_downloaded_and_does_not_run_is_said(online: Context, site: Site) -> None:
    publish_kubernetes(site, "v1.20.7")
    publish_etcd(site, online.release.etcd)
    publish(site, "/release/v1.20.7/bin/linux/amd64/kubelet", b"<html>")
    with pytest.raises(DmucError) as error:
        BINARIES.make(having(online, kubernetes="1.20.7"), Silent())
    assert error.value.seen == "It is not a program; it begins with '<html>'."


# Mix and match


def test_a_program_of_another_release_is_said_and_so_is_what_is_not_supported(context: Context, shelf: Shelf) -> None:
    shelf.put_all("path", "v1.20.2")
    mine = shelf.put("mine", "kubelet", "v1.21.0")
    proxy = shelf.put("mine", "kube-proxy", "v1.20.15")
    context = having(context, programs={"kubelet": str(mine), "kube-proxy": str(proxy)})
    BINARIES.make(context, Silent())
    said = BINARIES.holds(context).why
    assert said.startswith("Kubernetes v1.20.2 (on PATH), kube-proxy v1.20.15, kubelet v1.21.0, etcd v1.20.2")
    assert said.endswith("; kubelet v1.21.0 with kube-apiserver v1.20.2: Kubernetes supports it never newer")


def test_a_link_in_the_named_directory_that_leads_nowhere_is_said(context: Context, shelf: Shelf) -> None:
    shelf.put("path", "kubelet", "v1.20.2")  # not taken instead
    (shelf.root / "mine").mkdir()
    (shelf.root / "mine/kubelet").symlink_to("gone")
    assert refused(having(context, bin_dir=str(shelf.root / "mine")), "kubelet").seen == "There is no such file."


# The packages


def test_without_a_look_the_packages_are_not_known_to_be_there(context: Context) -> None:
    assert not binaries.PACKAGES.holds(context)


def test_the_tools_that_are_missing_are_named(context: Context, shelf: Shelf) -> None:
    shelf.put_all("path")
    BINARIES.make(context, Silent())
    nftables = having(context, proxy_mode="nftables")
    for tool in TOOLS:
        if tool.name not in ("conntrack", "socat", "nft"):
            shelf.put("path", tool.name, "1.0.0")
    assert binaries.PACKAGES.holds(context).why == "missing: conntrack, socat"
    for name in ("conntrack", "socat"):
        shelf.put("path", name, "1.0.0")
    assert binaries.PACKAGES.holds(context)
    BINARIES.make(nftables, Silent())
    assert binaries.PACKAGES.holds(nftables).why == "missing: nftables"


def test_exactly_what_is_missing_is_installed(context: Context, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(debian, "install", lambda packages, progress: installed.append(list(packages)))
    for tool in (*(tool.name for tool in TOOLS), *PROGRAMS):
        if tool not in ("socat", "etcd", "runc"):
            shelf.put("path", tool, "v1.20.2")
    binaries.PACKAGES.make(context, Silent())
    assert installed == [["etcd-server", "runc", "socat"]]
    for tool in ("socat", "etcd", "runc"):
        shelf.put("path", tool, "v1.20.2")
    binaries.PACKAGES.make(context, Silent())
    assert len(installed) == 1


def test_what_is_downloaded_is_not_installed(context: Context, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(debian, "install", lambda packages, progress: installed.append(list(packages)))
    for tool in TOOLS:
        shelf.put("path", tool.name, "1.0.0")
    binaries.PACKAGES.make(having(context, obtain="download"), Silent())
    assert installed == [["docker-registry", "docker.io"], ["docker-cli"]]  # which Debian 13 has on its own


# What a run wants


@pytest.fixture
def run_of(context: Context) -> Callable[..., None]:
    """Be in a run that takes in these tasks."""

    def select(*tasks: str) -> None:
        context.run.selected = {*tasks, "machine", "binaries", "packages"}

    return select


SERVERS = ("etcd", "kube-apiserver", "kubectl")


def test_a_run_asks_for_no_more_than_its_tasks_do(
    context: Context, shelf: Shelf, run_of: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SERVERS:
        shelf.put("path", name, "v1.20.2")
    monkeypatch.setattr(debian, "install", lambda packages, progress: pytest.fail(f"installs {packages}"))
    run_of("etcd", "apiserver", "kubeconfig")
    binaries.PACKAGES.make(context, Silent())
    BINARIES.make(context, Silent())
    assert binaries.PACKAGES.holds(context)
    assert BINARIES.holds(context)
    assert {path.name for path in context.bin.iterdir()} == {*SERVERS}
    run_of("etcd", "apiserver", "scheduler")
    assert not BINARIES.holds(context)
    monkeypatch.setattr(build_kubernetes, "build", lambda cache, progress: None)
    with pytest.raises(DmucError, match="not available from anywhere: kube-scheduler"):
        BINARIES.make(context, Silent())


@pytest.fixture
def nothing_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        pytest.fail("obtains Kubernetes")

    monkeypatch.setattr(build_kubernetes, "build", fail)
    monkeypatch.setattr(build_kubernetes, "fetch_kubectl", fail)


def test_etcd_takes_nothing_of_kubernetes(
    context: Context,
    shelf: Shelf,
    run_of: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    nothing_of_kubernetes: None,
) -> None:
    def install(packages: list[str], progress: object) -> None:
        assert packages == ["etcd-server", "iproute2", "mount", "util-linux"]
        shelf.put("path", "etcd", "3.4.23")

    monkeypatch.setattr(debian, "install", install)
    run_of("machine", "etcd", "_etcd", "pki")
    own = having(context, machine="one")
    for goal in (binaries.PACKAGES, BINARIES):
        goal.make(own, Silent())
    assert BINARIES.holds(own).why == "etcd 3.4.23"


def test_the_machine_by_itself_takes_no_programs(
    context: Context,
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    nothing_of_kubernetes: None,
) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(debian, "install", lambda packages, progress: installed.append(list(packages)))
    own = having(context, machine="one")
    own.run.selected = {"machine", "packages"}
    binaries.PACKAGES.make(own, Silent())
    assert installed == [["iproute2", "mount", "util-linux"]]
    for tool in ("ip", "mount", "unshare", "nsenter"):
        shelf.put("path", tool, "1.0.0")
    assert binaries.PACKAGES.holds(own)


def test_kubectl_is_taken_from_debians_package_and_nothing_is_built_or_installed(
    context: Context, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put_all("path", names=[name for name in PROGRAMS if name != "kubectl"])
    shelf.put("path", "kubectl", "v1.33.1")  # as the host has it, and keeps it
    for tool in TOOLS:
        shelf.put("path", tool.name, "1.0.0")
    monkeypatch.setattr(debian, "install", lambda packages, progress: pytest.fail(f"installs {packages}"))
    monkeypatch.setattr(build_kubernetes, "build", lambda cache, progress: pytest.fail("builds"))
    monkeypatch.setattr(debian, "fetch_debs", lambda packages, *_: [Path(*packages)])
    monkeypatch.setattr(debian, "archive", lambda *_: contextlib.nullcontext(()))

    def extract(deb: Path, into: Path) -> None:
        assert deb == Path("kubernetes-client")
        a_program(into / "usr/bin/kubectl", "echo Client Version: v1.20.2")

    monkeypatch.setattr(debian, "extract", extract)
    for goal in (binaries.PACKAGES, BINARIES):
        goal.make(context, Silent())
    assert context.program("kubectl") == context.settings.cache / "kubernetes/v1.20.2-debian-client/kubectl"
    found = known(context)["kubectl"]
    assert (found.version, found.source) == ("v1.20.2", "from Debian's package kubernetes-client")


def test_a_run_that_wants_other_programs_leaves_those_of_the_one_before(
    context: Context, shelf: Shelf, run_of: Callable[..., None]
) -> None:
    shelf.put_all("path")
    run_of("etcd", "apiserver", "kubelet")
    BINARIES.make(context, Silent())
    run_of("scheduler")
    BINARIES.make(context, Silent())
    assert {path.name for path in context.bin.iterdir()} == {*SERVERS, "kubelet", "kube-scheduler"}
    run_of("etcd")
    assert BINARIES.holds(context)


def test_what_has_been_found_is_told_outside_of_a_run(
    context: Context, shelf: Shelf, run_of: Callable[..., None]
) -> None:
    shelf.put_all("path")
    run_of("etcd")
    BINARIES.make(context, Silent())
    context.run.selected = ()
    assert binaries.versions(context).keys() == {"etcd"}
    assert BINARIES.holds(context).why == "etcd v1.20.2"


def test_by_themselves_the_programs_are_all_of_them(
    context: Context, shelf: Shelf, run_of: Callable[..., None]
) -> None:
    shelf.put_all("path")
    run_of()
    BINARIES.make(context, Silent())
    assert known(context).keys() == catalog.wanted(context).keys() > {"kubelet", "runc"}


def test_each_task_that_a_program_says_is_one(tmp_path: Path) -> None:
    names = {goal.name for part in load_dodo(tmp_path).PARTS for goal in part.goals()}
    said = [*(program.tasks for program in PROGRAMS.values()), *(tool.tasks for tool in TOOLS)]
    assert {task for tasks in said for task in tasks} <= names
