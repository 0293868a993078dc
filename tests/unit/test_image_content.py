from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.core.errors import DmucError
from tasks.core.progress import Progress, Silent
from tasks.image_files import oci, recipes
from tests.unit.support import CHECKOUT

# What the real packages hold (Debian 12, amd64), as far as it matters; the first letters stand for the content.
PACKAGES: dict[str, tuple[str, ...]] = {
    "nginx": ("usr/sbin/nginx", "usr/share/doc/nginx/copyright"),
    "nginx-common": ("etc/nginx/mime.types", "etc/nginx/nginx.conf", "usr/share/nginx/html/index.html"),
    "busybox-static": ("bin/busybox",),
    "libc6": (
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "lib64/ld-linux-x86-64.so.2 -> /lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libm.so.6",
    ),
    "libcrypt1": (
        "lib/x86_64-linux-gnu/libcrypt.so.1 -> libcrypt.so.1.1.0",
        "lib/x86_64-linux-gnu/libcrypt.so.1.1.0",
    ),
    "libpcre2-8-0": ("usr/lib/x86_64-linux-gnu/libpcre2-8.so.0",),
    "libssl3": ("usr/lib/x86_64-linux-gnu/libcrypto.so.3", "usr/lib/x86_64-linux-gnu/libssl.so.3"),
    "zlib1g": ("lib/x86_64-linux-gnu/libz.so.1",),
    "catatonit": ("usr/bin/catatonit",),
    "wget": ("usr/bin/wget",),
    **{
        package: (f"usr/lib/x86_64-linux-gnu/{library}",)
        for package, library in {
            "libffi8": "libffi.so.8",
            "libgmp10": "libgmp.so.10",
            "libgnutls30": "libgnutls.so.30",
            "libhogweed6": "libhogweed.so.6",
            "libidn2-0": "libidn2.so.0",
            "libnettle8": "libnettle.so.8",
            "libp11-kit0": "libp11-kit.so.0",
            "libpsl5": "libpsl.so.5",
            "libtasn1-6": "libtasn1.so.6",
            "libunistring2": "libunistring.so.2",
            "libuuid1": "libuuid.so.1",
        }.items()
    },
}

# The libraries of GNU wget.
WGETS = {path.rpartition("/")[2] for files in PACKAGES.values() for path in files if "lib" in path and len(files) == 1}
WGETS -= {"libpcre2-8.so.0", "libz.so.1", "wget", "busybox", "catatonit"}
FetchDebs = Callable[[Sequence[str], Path, Progress], list[Path]]


def fetch_debs(packages: Sequence[str], into: Path, progress: Progress, options: Sequence[str] = ()) -> list[Path]:
    into.mkdir(parents=True, exist_ok=True)
    debs = [into / f"{package}.deb" for package in packages]
    for deb in debs:
        deb.touch()
    return debs


def extract(deb: Path, into: Path) -> None:
    assert deb.exists()
    for entry in PACKAGES[deb.stem]:
        name, _, points_to = entry.partition(" -> ")
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if points_to:
            path.symlink_to(points_to)
        else:
            path.write_text(name)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.core.debian.fetch_debs", fetch_debs)
    monkeypatch.setattr("tasks.core.debian.extract", extract)
    monkeypatch.setattr("tasks.core.debian.archive", lambda *_: contextlib.nullcontext(()))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def pulled(root: Path, repository: str, tag: str) -> tuple[dict[str, Any], dict[str, tarfile.TarInfo], tarfile.TarFile]:
    """Follow the links as a registry does: the config, the layer's entries by name, and the layer."""
    top = root / "docker/registry/v2"

    def blob(digest: str) -> bytes:
        hexadecimal = digest.removeprefix("sha256:")
        return (top / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data").read_bytes()

    manifest = json.loads(
        blob((top / "repositories" / repository / "_manifests/tags" / tag / "current/link").read_text())
    )
    layer = tarfile.open(fileobj=io.BytesIO(blob(manifest["layers"][0]["digest"])), mode="r:gz")  # noqa: SIM115
    config = json.loads(blob(manifest["config"]["digest"]))["config"]
    return config, {entry.name: entry for entry in layer.getmembers()}, layer


def test_nginx(tmp_path: Path) -> None:
    config, entries, layer = pulled(recipes.build(tmp_path, Silent()), "library/nginx", "latest")
    assert not entries["usr/bin/wget"].issym()  # busybox's crashes on `wget -T`
    assert "bin/wget" not in entries
    assert config["Cmd"] == ["nginx", "-g", "daemon off;"]
    assert config["Entrypoint"] is None  # so that `docker run nginx echo hello` runs echo
    assert config["StopSignal"] == "SIGQUIT"
    assert config["ExposedPorts"] == {"80/tcp": {}}
    assert {"usr/sbin/nginx", "usr/share/nginx/html/index.html", "run", "var/lib/nginx"} <= set(entries)
    assert entries["tmp"].mode == 0o1777
    assert {entries[f"bin/{name}"].linkname for name in ("sh", "ls", "cat", "echo")} == {"busybox"}
    text = layer.extractfile("etc/nginx/nginx.conf")
    assert text is not None
    assert "listen 80;" in text.read().decode()  # ours, not Debian's


def test_nginx_has_its_libraries_and_no_more(tmp_path: Path) -> None:
    _, entries, _ = pulled(recipes.build(tmp_path, Silent()), "library/nginx", "latest")
    assert {name.rpartition("/")[2] for name in entries if ".so." in name} == {
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libcrypt.so.1",
        "libcrypt.so.1.1.0",
        "libcrypto.so.3",
        "libpcre2-8.so.0",
        "libssl.so.3",
        "libz.so.1",
        *WGETS,
    }
    assert entries["lib64/ld-linux-x86-64.so.2"].issym()
    assert not any("doc" in name for name in entries)


def test_the_user_nginx_runs_as_is_there(tmp_path: Path) -> None:
    _, _, layer = pulled(recipes.build(tmp_path, Silent()), "library/nginx", "latest")
    for name in ("etc/passwd", "etc/group"):
        text = layer.extractfile(name)
        assert text is not None
        assert [line.split(":")[0] for line in text.read().decode().splitlines()] == ["root", "nginx"]


def test_pause(tmp_path: Path) -> None:
    config, entries, _ = pulled(recipes.build(tmp_path, Silent()), "library/pause", "3.2")
    assert config["Entrypoint"] == ["/catatonit", "-P"]
    assert sorted(entries) == ["catatonit", "usr", "usr/bin", "usr/bin/catatonit"]


def test_only_the_result_stays(tmp_path: Path) -> None:
    root = recipes.build(tmp_path, Silent())
    assert root == recipes.registry_root(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "images"]
    assert list((tmp_path / "images").iterdir()) == [root]
    assert [path.name for path in root.iterdir()] == ["docker"]


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    def content(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    one, other = (content(recipes.build(tmp_path / name, Silent())) for name in ("one", "other"))
    assert one == other


def test_already_built_is_given_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.core.debian.fetch_debs", None)  # calling it would be a TypeError
    root = recipes.registry_root(tmp_path)
    root.mkdir(parents=True)
    assert recipes.build(tmp_path, Silent()) == root


def test_another_processor_is_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = recipes.registry_root(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert recipes.registry_root(tmp_path) != here


def test_what_an_image_holds_makes_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {recipes.registry_root(tmp_path)}
    nginx = recipes.NGINX
    for changed in (
        replace(nginx, tags=("latest", "1")),
        replace(nginx, config=replace(nginx.config, stop_signal="SIGTERM")),
        replace(nginx, files={**nginx.files, "etc/motd": ""}),
        replace(nginx, directories={**nginx.directories, "tmp": 0o777}),
    ):
        monkeypatch.setattr(recipes, "RECIPES", (changed, recipes.PAUSE))
        roots.add(recipes.registry_root(tmp_path))
    monkeypatch.setattr(oci, "FORMAT", oci.FORMAT + 1)
    roots.add(recipes.registry_root(tmp_path))
    assert len(roots) == 6


def test_another_comment_in_the_source_makes_none(tmp_path: Path) -> None:
    def root() -> str:
        ask = "from pathlib import Path; from tasks.image_files.recipes import *; print(registry_root(Path()))"
        command = [sys.executable, "-c", ask]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    shutil.copytree(CHECKOUT / "tasks", tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    before = root()
    for file in (tmp_path / "tasks/image_files").glob("*.py"):
        file.write_text(f"{file.read_text()}\n# A comment\n")
    assert root() == before


@pytest.mark.parametrize("error", [DmucError("downloading", "no network"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fails(packages: Sequence[str], into: Path, progress: Progress, options: Sequence[str]) -> list[Path]:
        if "catatonit" in packages:  # the second image
            raise error
        return fetch_debs(packages, into, progress)

    monkeypatch.setattr("tasks.core.debian.fetch_debs", fails)
    with pytest.raises(type(error)):
        recipes.build(tmp_path, Silent())
    assert list((tmp_path / "images").iterdir()) == []


def test_a_package_without_an_expected_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "libssl3", ("usr/lib/x86_64-linux-gnu/libcrypto.so.4",))
    with pytest.raises(DmucError, match=r"library/nginx:latest\n.*libssl\.so.*libssl3"):
        recipes.build(tmp_path, Silent())
    assert list((tmp_path / "images").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("not a directory")
    with pytest.raises(DmucError, match="is writable"):
        recipes.build(tmp_path, Silent())


def test_another_dmuc_being_faster_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = recipes.registry_root(tmp_path)

    def meanwhile(deb: Path, into: Path) -> None:
        (root / "docker").mkdir(parents=True, exist_ok=True)
        extract(deb, into)

    monkeypatch.setattr("tasks.core.debian.extract", meanwhile)
    assert recipes.build(tmp_path, Silent()) == root
    assert list((tmp_path / "images").iterdir()) == [root]


def test_the_local_registry_accepts_pushes() -> None:
    config = yaml.safe_load(recipes.registry_config(Path("/a dir: #1"), "127.0.0.1:5000", None))
    assert config == {
        "version": 0.1,
        "log": {"level": "error"},
        "http": {"addr": "127.0.0.1:5000"},
        "storage": {
            "filesystem": {"rootdirectory": "/a dir: #1"},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
    }


def test_a_pull_through_cache_names_its_upstream() -> None:
    config = yaml.safe_load(recipes.registry_config(Path("/x"), "[::1]:5000", "https://registry-1.docker.io"))
    assert config["proxy"] == {"remoteurl": "https://registry-1.docker.io"}
    assert config["http"] == {"addr": "[::1]:5000"}
