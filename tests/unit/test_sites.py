"""Downloads as each project lays out its releases: which files are asked for, and which sum counts."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.lock import turn
from tasks.core.progress import Silent
from tasks.core.release import RELEASES
from tasks.programs import download_sites
from tasks.programs.catalog import PROGRAMS
from tasks.programs.download_sites import CNI_PLUGINS, CONTAINERD, COREDNS, ETCD, KUBERNETES, RUNC, Project
from tests.unit.support import Site, Told, a_context, a_program

OF_KUBERNETES = [name for name, program in PROGRAMS.items() if program.of_kubernetes]
PROGRAM = b"#!/bin/sh\necho I am v1.2.3\n"


@pytest.fixture
def context(tmp_path: Path, site: Site) -> Context:
    return using(a_context(tmp_path), site.url)


def using(context: Context, url: str, kubernetes: str = "1.20") -> Context:
    settings = replace(context.settings, kubernetes=kubernetes, kubernetes_site=url, github_site=url)
    return replace(context, settings=settings)


def archive(*members: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for member in members:
            entry = tarfile.TarInfo(member)
            entry.size, entry.mode = len(PROGRAM), 0o644 if member.endswith(".md") else 0o755
            opened.addfile(entry, io.BytesIO(PROGRAM))
    return buffer.getvalue()


def publish(site: Site, file: str, content: bytes, sums: str, form: str = "{sum}  {name}\n") -> None:
    site.pages[file] = (200, content)
    text = form.format(sum=hashlib.sha256(content).hexdigest(), name=Path(file).name)
    site.pages[f"{Path(file).parent}/{sums}"] = (200, text.encode())


def in_cache(context: Context) -> list[str]:
    cache = context.settings.cache
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


# As they are laid out: the releases pages of each project, and https://kubernetes.io/releases/download/ . runc's sums
# are signed in the clear.
SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{sum}  {name}\n-----BEGIN PGP SIGNATURE-----\n"


@pytest.mark.parametrize(
    ("project", "program", "file", "sums", "form", "members"),
    [
        (
            KUBERNETES,
            "kubelet",
            "/release/v1.20.15/bin/linux/amd64/kubelet",
            "kubelet.sha256",
            "{sum}",
            [],
        ),
        (
            ETCD,
            "etcd",
            "/etcd-io/etcd/releases/download/v3.4.23/etcd-v3.4.23-linux-amd64.tar.gz",
            "SHA256SUMS",
            "{sum}  {name}\n",
            ["etcd-v3.4.23-linux-amd64/README.md", "etcd-v3.4.23-linux-amd64/etcd", "etcd-v3.4.23-linux-amd64/etcdctl"],
        ),
        (
            CONTAINERD,
            "containerd",
            "/containerd/containerd/releases/download/v1.7.34/containerd-1.7.34-linux-amd64.tar.gz",
            "containerd-1.7.34-linux-amd64.tar.gz.sha256sum",
            "{sum}  {name}\n",
            ["bin/containerd", "bin/containerd-shim-runc-v2", "bin/ctr"],
        ),
        (
            RUNC,
            "runc",
            "/opencontainers/runc/releases/download/v1.3.6/runc.amd64",
            "runc.sha256sum",
            SIGNED,
            [],
        ),
        (
            CNI_PLUGINS,
            "bridge",
            "/containernetworking/plugins/releases/download/v1.9.1/cni-plugins-linux-amd64-v1.9.1.tgz",
            "cni-plugins-linux-amd64-v1.9.1.tgz.sha256",
            "{sum}  {name}\n",
            ["./README.md", "./bridge", "./host-local", "./loopback", "./portmap"],
        ),
        (
            COREDNS,
            "coredns",
            "/coredns/coredns/releases/download/v1.12.1/coredns_1.12.1_linux_amd64.tgz",
            "coredns_1.12.1_linux_amd64.tgz.sha256",
            "{sum}  {name}\n",
            ["coredns"],
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/a/mirror"])
def test_each_project_is_asked_for_its_own_files(
    context: Context,
    site: Site,
    prefix: str,
    project: Project,
    program: str,
    file: str,
    sums: str,
    form: str,
    members: list[str],
) -> None:
    publish(site, prefix + file, archive(*members) if members else PROGRAM, sums, form)
    context = using(context, site.url + prefix)
    download_sites.obtain(context, [(project, program)], Silent())
    assert sorted(site.asked) == sorted([prefix + file, f"{Path(prefix + file).parent}/{sums}"])
    directory = f"{project.name}/v{project.version(context)}"
    programs = [Path(member).name for member in members if not member.endswith(".md")] or [program]
    assert in_cache(context) == sorted(f"{directory}/{name}" for name in programs)
    assert all(os.access(context.settings.cache / path, os.X_OK) for path in in_cache(context))


def test_several_programs_of_one_archive_take_one_download(context: Context, site: Site) -> None:
    file = "/containernetworking/plugins/releases/download/v1.9.1/cni-plugins-linux-amd64-v1.9.1.tgz"
    publish(site, file, archive("./bridge", "./portmap"), f"{Path(file).name}.sha256")
    download_sites.obtain(context, [(CNI_PLUGINS, "bridge"), (CNI_PLUGINS, "portmap")], Silent())
    assert site.asked.count(file) == 1


def test_what_another_run_brings_meanwhile_is_not_brought_again(context: Context, site: Site) -> None:
    file = "/release/v1.20.15/bin/linux/amd64/kubelet"
    publish(site, file, PROGRAM, "kubelet.sha256", "{sum}")
    with ThreadPoolExecutor() as pool:
        context.settings.cache.mkdir()
        with turn(context.settings.cache, "", Silent()):  # the other run
            waits = threading.Event()
            told = Told(lambda text: waits.set() if text == "waiting: another run is downloading programs" else None)
            done = pool.submit(download_sites.obtain, context, [(KUBERNETES, "kubelet")], told)
            assert waits.wait(20)
            brought = a_program(context.settings.cache / "kubernetes/v1.20.15/kubelet", "echo v1.20.15")
        done.result(20)
    assert brought.read_text() == "#!/bin/sh\necho v1.20.15\n"
    assert site.asked == []


@pytest.mark.parametrize("minor", RELEASES)
def test_a_minor_release_is_its_default_and_a_full_one_itself(tmp_path: Path, minor: str) -> None:
    default = RELEASES[minor].default
    for wanted, version in ((minor, default), (f"v{minor}", default), (f"{minor}.99", f"{minor}.99")):
        assert KUBERNETES.version(a_context(tmp_path, kubernetes=wanted)) == version


# Sums


def test_a_pinned_sum_counts_before_the_published_one(
    context: Context, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "/release/v1.20.15/bin/linux/amd64/kubelet"
    publish(site, file, b"something else, and its sum was published, too", "kubelet.sha256", "{sum}")
    monkeypatch.setattr(download_sites, "pinned_sums", lambda: {file[1:]: hashlib.sha256(PROGRAM).hexdigest()})
    with pytest.raises(DmucError) as error:
        download_sites.obtain(context, [(KUBERNETES, "kubelet")], Silent())
    assert error.value.tried == f"checking the download of {site.url}{file}"
    assert "(pinned)" in error.value.seen
    assert in_cache(context) == []
    site.pages[file] = (200, PROGRAM)
    download_sites.obtain(context, [(KUBERNETES, "kubelet")], Silent())
    assert in_cache(context) == ["kubernetes/v1.20.15/kubelet"]
    assert f"{file}.sha256" not in site.asked


def test_what_a_minor_release_takes_is_pinned() -> None:
    sums = download_sites.pinned_sums()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums.values())
    assert len(set(sums.values())) == len(sums)
    for row in RELEASES.values():
        if row.minor not in ("1.19", "1.20", "1.21", "1.22", "1.23"):  # sums.txt says why
            assert [n for n in OF_KUBERNETES if f"release/v{row.default}/bin/linux/amd64/{n}" not in sums] == []
    names = {path.rpartition("/")[2] for path in sums}
    wanted = {f"etcd-v{row.etcd}-linux-amd64.tar.gz" for row in RELEASES.values() if row.etcd != "3.4.23"}
    wanted |= {f"containerd-{row.containerd}-linux-amd64.tar.gz" for row in RELEASES.values()}
    assert wanted | {"runc.amd64"} <= names


# What goes wrong


def test_a_release_that_is_not_there_is_said_with_what_else_can_be_done(context: Context, site: Site) -> None:
    with pytest.raises(DmucError) as error:
        download_sites.obtain(using(context, site.url, "1.20.99"), [(KUBERNETES, n) for n in OF_KUBERNETES], Silent())
    assert re.fullmatch(rf"downloading {site.url}/release/v1.20.99/bin/linux/amd64/[\w-]+.sha256", error.value.tried)
    assert error.value.seen == "the server answers: 404 Not Found"
    assert error.value.do.startswith("The site has no such file.\nAnother release: kubernetes=VERSION. ")
    assert "kubernetes_site=URL" in error.value.do and "bin_dir=DIRECTORY" in error.value.do
    assert in_cache(context) == []


def test_a_site_that_cannot_be_reached_is_said_with_its_setting(context: Context) -> None:
    with socket.socket() as taken:  # bound, so that no other process gets the port, but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DmucError) as error:
            download_sites.obtain(using(context, url), [(ETCD, "etcd")], Silent())
    assert error.value.tried.startswith(f"downloading {url}/etcd-io/")
    assert "Connection refused" in error.value.seen
    assert "github_site=URL" in error.value.do and "etcd_bin=PATH" in error.value.do


@pytest.mark.parametrize(
    "content",
    [b"not an archive", archive("bin/etcd")[:100], archive("etcd/README.md")],
    ids=["no archive", "half of one", "without it"],
)
def test_an_archive_that_is_none_is_said_and_leaves_nothing(context: Context, site: Site, content: bytes) -> None:
    publish(site, "/etcd-io/etcd/releases/download/v3.4.23/etcd-v3.4.23-linux-amd64.tar.gz", content, "SHA256SUMS")
    with pytest.raises(DmucError, match=r"unpacking .*etcd-v3.4.23-linux-amd64.tar.gz"):
        download_sites.obtain(context, [(ETCD, "etcd")], Silent())
    assert in_cache(context) == []
