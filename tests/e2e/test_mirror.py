"""Programs by download, from a mirror on the loopback that serves real ones, and from bad ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.core import release
from tasks.core.progress import Silent
from tasks.programs import download_sites
from tasks.programs.catalog import PROGRAMS
from tasks.programs.executable import VERSION, look_at
from tests.e2e import mirror
from tests.e2e.conftest import ENVIRONMENT, STATE, doit, make_checkout
from tests.unit.support import a_context, free_port

CACHE = Path(ENVIRONMENT.get("DMUC_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmuc")
KUBERNETES = [name for name, program in PROGRAMS.items() if program.of_kubernetes]
VERSIONS = {"etcd": "3.4.23", "containerd": "1.7.34", "runc": "1.3.6"}


@pytest.fixture(scope="module")
def site(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A mirror: Kubernetes as it was built here, the rest as Debian has it, under the names of the releases."""
    root = tmp_path_factory.mktemp("mirror")
    for version in ("v1.20.2", "v1.36.3"):  # the latter is a lie, which the pinned sum is to find out
        for name in KUBERNETES:
            path = f"release/{version}/bin/linux/amd64/{name}"
            built = next(CACHE.glob(f"kubernetes/v1.20.2-debian*/{name}"))  # kubectl has a directory of its own
            mirror.program(root, path, built, f"{name}.sha256")
    etcd, containerd, runc = (Path(shutil.which(name) or "") for name in ("etcd", "containerd", "runc"))
    name = "etcd-v3.4.23-linux-amd64"
    where = f"etcd-io/etcd/releases/download/v3.4.23/{name}.tar.gz"
    mirror.archive(root, where, {f"{name}/README.md": Path(__file__), f"{name}/etcd": etcd}, "SHA256SUMS")
    where = "containerd/containerd/releases/download/v1.7.34/containerd-1.7.34-linux-amd64.tar.gz"
    beside = {f"bin/{n}": containerd.with_name(n) for n in ("containerd", "containerd-shim-runc-v2", "ctr")}
    mirror.archive(root, where, beside, f"{Path(where).name}.sha256sum")
    mirror.program(root, "opencontainers/runc/releases/download/v1.3.6/runc.amd64", runc, "runc.sha256sum")
    with mirror.serving(root) as url:
        yield url


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with the images alone."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/images").symlink_to(CACHE / "images")
    return tmp_path / "cache"


def in_cache(cache: Path, version: str = "*") -> set[str]:
    return {path.name for path in cache.glob(f"kubernetes/v{version}/*")}


def test_a_cluster_of_programs_that_were_downloaded(site: str, cache: Path) -> None:
    settings = ("kubernetes=1.20.2", "obtain=download", f"kubernetes_site={site}/moved/", f"cache={cache}")
    try:
        done = doit(*settings, "service_reachable")
        assert "Kubernetes v1.20.2 (downloaded)" in done.stdout
        assert "answers: Welcome to nginx!" in done.stdout
        found = json.loads((STATE / "programs.json").read_text())
        assert {found[name]["path"] for name in KUBERNETES} == {f"{cache}/kubernetes/v1.20.2/{n}" for n in KUBERNETES}
        assert in_cache(cache) == set(KUBERNETES)  # and nothing half done
        assert "binaries" not in doit(*settings).stdout.replace("· binaries", "")  # a second run has nothing to do
    finally:
        doit("clean")


def test_bad_mirrors_are_told_and_leave_nothing_wrong(site: str, cache: Path) -> None:
    def refused(kubernetes: str, url: str) -> str:
        settings = (f"kubernetes={kubernetes}", "obtain=download", f"kubernetes_site={url}", f"cache={cache}")
        done = doit(*settings, "binaries", status=1)
        assert not in_cache(cache) & set(KUBERNETES)
        return done.stdout + done.stderr

    said = refused("1.20.99", f"{site}/good")
    assert "/release/v1.20.99/bin/linux/amd64/" in said and "the server answers: 404" in said
    assert "kubernetes_site=URL" in said and "bin_dir=DIRECTORY" in said
    said = refused("1.20.2", f"{site}/lie")
    assert "its SHA-256 sum is" in said and ".sha256)" in said
    said = refused("1.20.2", f"{site}/short")
    assert "its SHA-256 sum is" in said
    said = refused("1.36", f"{site}/good")
    assert "its SHA-256 sum is" in said and "(pinned)" in said
    said = refused("1.20.2", f"http://127.0.0.1:{free_port()}")
    assert "Connection refused" in said and "kubernetes_site=URL" in said
    said = refused("1.20.2", f"{site}/cut")
    assert "4 tries, the last: the answer ended after" in said
    # What is left of that is gone on with, or thrown away; in the end the programs are right.
    doit("kubernetes=1.20.2", "obtain=download", f"kubernetes_site={site}/good", f"cache={cache}", "binaries")
    assert in_cache(cache, "1.20.2") == set(KUBERNETES)
    doit("clean")


@pytest.mark.parametrize("kind", ["good", "moved"])
def test_the_others_from_what_is_laid_out_as_on_github(
    site: str, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_sites, "pinned_sums", dict)  # these are Debian's programs
    context = a_context(tmp_path, kubernetes="1.20", github_site=f"{site}/{kind}")
    release = replace(context.release, etcd=VERSIONS["etcd"], containerd=VERSIONS["containerd"])
    context = replace(context, release=release)
    wanted = ["etcd", "containerd", "containerd-shim-runc-v2", "ctr", "runc"]
    projects = [(project, name) for name in wanted if (project := PROGRAMS[name].project)]
    download_sites.obtain(context, projects, Silent())
    for name in wanted:
        path = context.settings.cache / PROGRAMS[name].cache_dir / f"v{VERSIONS[PROGRAMS[name].cache_dir]}" / name
        ask = PROGRAMS[name].version
        found = look_at(path, ask, says=VERSION, usage="", source="", cache=tmp_path / "asked", do="")
        real = look_at(
            Path(shutil.which(name) or ""), ask, says=VERSION, usage="", source="", cache=tmp_path / "a", do=""
        )
        assert found.version == real.version


@pytest.fixture
def current() -> Path:
    """The programs that the mirror has as a release: those of CURRENT_BIN, else 1.20.2 as it was built here."""
    named = os.environ.get("CURRENT_BIN")
    return Path(named) if named else next(CACHE.glob("kubernetes/v1.20.2-debian*/kube-apiserver")).parent


def test_auto_downloads_the_newest_release_that_the_mirror_has(
    prepared: None, cache: Path, current: Path, tmp_path: Path
) -> None:
    told = subprocess.run([current / "kube-apiserver", "--version"], capture_output=True, text=True, check=True).stdout
    version = told.split()[-1]
    row = release.of(version)
    for offered in (row.default, release.RELEASES["1.19"].default):
        for name in KUBERNETES:
            built = next(iter([*CACHE.glob(f"kubernetes/{current.name}*/{name}"), current / name]))
            path = f"release/v{offered}/bin/linux/amd64/{name}"
            mirror.program(tmp_path / "site", path, built, f"{name}.sha256")
    checkout = tmp_path / "checkout"  # that has no sums of these programs, so that the published ones count
    make_checkout(checkout)
    (checkout / "tasks/programs/sums.txt").write_text("")
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in {"DMUC_KUBERNETES", "DMUC_OBTAIN"}}

    def run(*words: str) -> str:
        return doit(*words, checkout=checkout, environment=environment).stdout

    with mirror.serving(tmp_path / "site") as url:
        settings = ("obtain=download", f"kubernetes_site={url}/good", f"cache={cache}")
        try:
            said = run(*settings, "service_reachable")
            assert f"Kubernetes {row.minor}: the newest that dmuc knows of those that {url}/good has" in said
            assert f"{version} (downloaded)" in said and "answers: Welcome to nginx!" in said
            assert in_cache(cache, row.default) == set(KUBERNETES)
            again = run()  # the choice stays
            assert "the newest that dmuc knows" not in again and "binaries" not in again.replace("· binaries", "")
            assert f"Kubernetes {row.minor}: the newest that dmuc knows" in run("status")
        finally:
            run("clean")
