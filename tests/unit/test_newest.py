"""kubernetes=auto: which release it is, why, and that it stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import newest
from tasks.core import download
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.release import RELEASES
from tests.unit.checkout import Checkout
from tests.unit.support import Site, a_context, a_program, free_port, serving

LAST = [*RELEASES.values()][-1]


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A cluster on a host without programs of Kubernetes, and without a network."""
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return a_context(tmp_path, kubernetes_site=f"http://127.0.0.1:{free_port()}")


def having(context: Context, **settings: object) -> Context:
    return replace(context, settings=replace(context.settings, **settings))  # type: ignore[arg-type]


def a_server(path: Path, version: str) -> Path:
    return a_program(
        path, f"case $1 in --help) echo Usage:; echo '  {path.name} [flags]';; *) echo Kubernetes {version};; esac"
    )


def test_without_a_network_it_is_what_debian_has(context: Context) -> None:
    minor, why = newest.choose(context)
    assert minor == "1.20" and "Debian's source package" in why and context.settings.kubernetes_site in why


def test_with_a_network_it_is_the_newest_that_is_there(context: Context, site: Site) -> None:
    there = having(context, kubernetes_site=site.url)
    assert newest.choose(there)[0] == "1.20"  # the site answers, and does not have it
    site.pages[f"/release/v{LAST.default}/bin/linux/amd64/kube-apiserver.sha256"] = (200, b"x")
    minor, why = newest.choose(there)
    assert (minor, site.url in why) == (LAST.minor, True)
    assert newest.choose(having(there, obtain="debian"))[0] == "1.20"


@pytest.mark.parametrize("obtain", ["auto", "download"])
def test_of_a_mirror_it_is_the_newest_that_the_mirror_has(context: Context, site: Site, obtain: str) -> None:
    mirror = having(context, kubernetes_site=site.url, obtain=obtain)
    for minor in ("1.35", "1.36", "1.28"):
        path = f"/release/v{RELEASES[minor].default}/bin/linux/amd64/kube-apiserver.sha256"
        site.pages[path] = (200, b"x")
    minor, why = newest.choose(mirror)
    assert minor == "1.36"
    assert why == f"the newest that dmuc knows of those that {site.url} has: {LAST.default} is not there"


def test_a_site_that_does_not_answer_is_asked_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(download, "is_there", lambda url, timeout: asked.append(url))
    assert newest.choose(context)[0] == "1.20"
    assert len(asked) == 1


def test_what_must_be_downloaded_is_the_newest(context: Context) -> None:
    assert newest.choose(having(context, obtain="download"))[0] == LAST.minor


@pytest.mark.parametrize("name", ["kube-apiserver", "kubelet", "kube-scheduler"])
def test_programs_that_the_user_names_are_of_the_release(context: Context, tmp_path: Path, name: str) -> None:
    program = a_server(tmp_path / "mine" / name, "v1.31.4")
    for named in (having(context, bin_dir=str(program.parent)), having(context, programs={name: str(program)})):
        minor, why = newest.choose(named)
        assert minor == "1.31" and f"{program} (v1.31.4)" in why


def test_programs_on_path_are_of_the_release(context: Context, tmp_path: Path) -> None:
    a_server(tmp_path / "path" / "kubelet", "v1.28.2")
    assert newest.choose(context)[0] == "1.28"
    a_server(tmp_path / "path" / "kube-apiserver", "v1.29.0")  # which counts more than the kubelet
    assert newest.choose(context)[0] == "1.29"


def test_a_program_that_does_not_tell_its_release_decides_nothing(context: Context, tmp_path: Path) -> None:
    program = a_server(tmp_path / "mine" / "kubelet", "v0.0.0-master+$Format:%h$")
    assert newest.choose(having(context, bin_dir=str(program.parent)))[0] == "1.20"


def test_a_file_that_is_no_program_is_said_if_the_user_names_it(context: Context, tmp_path: Path) -> None:
    (tmp_path / "path" / "kubelet").write_text("no program\n")
    (tmp_path / "path" / "kubelet").chmod(0o755)
    assert newest.choose(context)[0] == "1.20"
    with pytest.raises(DmucError):
        newest.choose(having(context, programs={"kubelet": str(tmp_path / "path" / "kubelet")}))


def test_it_is_decided_once_and_said(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    del checkout.environment["DMUC_KUBERNETES"]
    checkout.environment |= {"DMUC_OBTAIN": "debian", "PATH": "/usr/bin:/bin"}
    assert checkout.doit("list").returncode == 0
    assert checkout.made() == set()  # looking decides nothing
    first = checkout.doit("pki")
    assert re.match(r"Kubernetes 1\.20: as in Debian's source package: obtain=debian\. Another release: ", first.stdout)
    assert "Kubernetes 1.20:" not in checkout.doit("pki").stdout
    assert "Kubernetes 1.20: as in Debian's source package" in checkout.doit("status").stdout
    # Another release, once named, stays.
    assert "Kubernetes" not in checkout.doit("pki", "kubernetes=1.36").stdout
    assert "Kubernetes 1.36: kubernetes=1.36" in checkout.doit("status").stdout
    checkout.doit("clean")
    assert checkout.doit("pki").stdout.startswith("Kubernetes 1.20:")
