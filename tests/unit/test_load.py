"""Loading images: archives of every kind become a registry's files, or are refused with one clear message."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import host_images, images
from tasks.core.errors import DmucError
from tasks.core.progress import Silent
from tasks.image_files import archive, from_packages, names, oci
from tasks.image_files.storage import Storage
from tasks.registry import LOCAL, storage
from tests.unit.checkout import Checkout, is_told
from tests.unit.private_host import on_a_private_host
from tests.unit.support import a_context

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def a_tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


LAYERS = [a_tar({"a": b"a" * 50_000}), a_tar({"b": b"b"}), a_tar({"c": b"c"})]


def a_config(layers: list[bytes], architecture: str = "amd64") -> bytes:
    rootfs = {"type": "layers", "diff_ids": [oci.digest(layer) for layer in layers]}
    return json.dumps({"os": "linux", "architecture": architecture, "rootfs": rootfs}).encode()


def docker_save(
    *tags: str, layers: list[bytes] = LAYERS, architecture: str = "amd64", images: int = 1
) -> dict[str, bytes]:
    """The files of an archive as `docker save` makes it."""
    files = {f"{number}/layer.tar": layer for number, layer in enumerate(layers)}
    files["config.json"] = a_config(layers, architecture)
    entry = {"Config": "config.json", "RepoTags": list(tags) or None, "Layers": [*files][:-1]}
    return files | {"manifest.json": json.dumps([entry] * images).encode()}


def an_oci_archive(
    name: str = "docker.io/team/app:1",
    pack: Callable[[bytes], bytes] = gzip.compress,
    kind: str = f"{LAYER}+gzip",
    platforms: tuple[str, ...] = (),
) -> dict[str, bytes]:
    """The files of an OCI archive; with an index if there are platforms, of which only ours is in the archive."""
    blobs: dict[str, bytes] = {}

    def add(media_type: str, content: bytes) -> dict[str, Any]:
        blobs[f"blobs/{oci.digest(content).replace(':', '/')}"] = content
        return {"mediaType": media_type, "digest": oci.digest(content), "size": len(content)}

    def one(architecture: str) -> dict[str, Any]:
        layers = [add(kind, pack(layer)) for layer in LAYERS]
        described = {"schemaVersion": 2, "config": add(CONFIG, a_config(LAYERS, architecture)), "layers": layers}
        return add(MANIFEST, json.dumps(described).encode())

    if platforms:
        there = [{**one(text), "platform": {"os": "linux", "architecture": text}} for text in platforms]
        top = add(INDEX, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": there}).encode())
        for entry in there:
            if entry["platform"]["architecture"] != "amd64":
                del blobs[f"blobs/{entry['digest'].replace(':', '/')}"]
    else:
        top = one("amd64")
    if name:
        top["annotations"] = {"org.opencontainers.image.ref.name": name}
    index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    return {**blobs, "index.json": index, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}


def load(root: Path, content: bytes | Mapping[str, bytes], name: str = "") -> list[str]:
    """Load an archive into the registry at `root`; return the whole names of its images."""
    data = content if isinstance(content, bytes) else a_tar(content)
    root.mkdir(exist_ok=True)
    loaded = archive.load(io.BytesIO(data), "app.tar", Storage(root), names.parse(name) if name else None)
    return [one.full for one in loaded]


def served(root: Path, place: str) -> tuple[dict[str, Any], list[bytes]]:
    """What the registry serves for REPOSITORY:TAG: the manifest for this machine, and the content of the layers."""
    there = Storage(root)
    repository = root / "docker/registry/v2/repositories" / place.rpartition(":")[0]

    def manifest(digest: str) -> dict[str, Any]:
        assert (repository / "_manifests/revisions" / digest.replace(":", "/") / "link").read_text() == digest
        found: dict[str, Any] = json.loads(there.blob(digest).read_bytes())
        if "manifests" not in found:
            return found
        ours = [one for one in found["manifests"] if one["platform"]["architecture"] == "amd64"]
        return manifest(ours[0]["digest"])

    found = manifest(there.tags()[place])
    for blob in (found["config"], *found["layers"]):
        content = there.blob(blob["digest"]).read_bytes()
        assert (oci.digest(content), len(content)) == (blob["digest"], blob["size"])
        assert (repository / "_layers" / blob["digest"].replace(":", "/") / "link").read_text() == blob["digest"]
    return found, [there.blob(one["digest"]).read_bytes() for one in found["layers"]]


def files_below(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


# Names


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("app", "docker.io/library/app:latest", "app"),
        ("app:1.0", "docker.io/library/app:1.0", "app:1.0"),
        ("team/app", "docker.io/team/app:latest", "team/app"),
        ("docker.io/app", "docker.io/library/app:latest", "app"),
        ("index.docker.io/library/app", "docker.io/library/app:latest", "app"),
        ("localhost/app:2", "docker.io/library/app:2", "app:2"),  # podman's name of an image without a registry
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("quay.io/a/b__c/d-e:x", "quay.io/a/b__c/d-e:x", "quay.io/a/b__c/d-e:x"),
    ],
)
def test_what_a_name_leaves_out(text: str, full: str, short: str) -> None:
    name = names.parse(text)
    assert (name.full, str(name)) == (full, short)
    assert names.parse(full) == name


@pytest.mark.parametrize("text", ["", "App", "app:", "app:a b", "a//b", "../app", "quay.io/", ":1", "-app"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(DmucError, match="not the name of an image"):
        names.parse(text)


def test_a_name_with_a_digest_is_refused_clearly() -> None:
    with pytest.raises(DmucError, match=r"has a digest(.|\n)*by a tag"):
        names.parse(f"app@sha256:{'0' * 64}")


# Archives


@pytest.mark.parametrize("outer", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_docker_save(tmp_path: Path, outer: Callable[[bytes], bytes]) -> None:
    assert load(tmp_path / "r", outer(a_tar(docker_save("app:1", "quay.io/team/app:2")))) == [
        "docker.io/library/app:1",
        "quay.io/team/app:2",
    ]
    manifest, layers = served(tmp_path / "r", "library/app:1")
    assert manifest["mediaType"] == oci.MANIFEST_TYPE
    assert layers == LAYERS
    assert served(tmp_path / "r", "team/app:2")[0] == manifest
    assert Storage(tmp_path / "r").names(LOCAL) == ["app:1", "quay.io/team/app:2"]


def test_an_oci_archive_keeps_its_digests(tmp_path: Path) -> None:
    files = an_oci_archive()
    assert load(tmp_path / "r", files) == ["docker.io/team/app:1"]
    digest = json.loads(files["index.json"])["manifests"][0]["digest"]
    assert Storage(tmp_path / "r").tags() == {"team/app:1": digest}
    assert [gzip.decompress(layer) for layer in served(tmp_path / "r", "team/app:1")[1]] == LAYERS


def test_an_index_of_several_platforms(tmp_path: Path) -> None:
    files = an_oci_archive(platforms=("arm64", "amd64", "s390x"))
    load(tmp_path / "r", files)
    digest = json.loads(files["index.json"])["manifests"][0]["digest"]
    assert Storage(tmp_path / "r").tags() == {"team/app:1": digest}, "the digest of the index stays usable"
    assert len(served(tmp_path / "r", "team/app:1")[1]) == 3


def test_an_index_without_this_platform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DmucError, match=r"this machine is linux/amd64, and the image is for linux/arm64, linux/s390x\."
    ):
        load(tmp_path / "r", an_oci_archive(platforms=("arm64", "s390x")))
    assert files_below(tmp_path) == set()


def test_another_processors_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DmucError, match=r"loading app.tar\n.*linux/amd64, and the image is for linux/arm64\.\n.*--plat"
    ):
        load(tmp_path / "r", docker_save("app:1", architecture="arm64"))
    assert files_below(tmp_path) == set()


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs zstd")
def test_zstd_is_undone(tmp_path: Path) -> None:
    def pack(content: bytes) -> bytes:
        return subprocess.run(["zstd", "-cq"], input=content, capture_output=True, check=True).stdout

    load(tmp_path / "r", pack(a_tar(an_oci_archive(pack=pack, kind=f"{LAYER}+zstd"))))
    manifest, layers = served(tmp_path / "r", "team/app:1")
    assert layers == LAYERS
    assert {one["mediaType"] for one in manifest["layers"]} == {LAYER}


def test_without_zstd_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DmucError, match="Install zstd"):
        load(tmp_path / "r", b"\x28\xb5\x2f\xfd....")


def test_an_image_without_a_name_needs_one(tmp_path: Path) -> None:
    for files in (docker_save(), an_oci_archive(name=""), an_oci_archive(name="latest")):
        with pytest.raises(DmucError, match=r"name=app:1\.0"):
            load(tmp_path / "r", files)
        assert load(tmp_path / "r", files, "mine") == ["docker.io/library/mine:latest"]


def test_one_name_is_not_for_two_images(tmp_path: Path) -> None:
    with pytest.raises(DmucError, match="There are 2 images in it"):
        load(tmp_path / "r", docker_save("app:1", images=2), "mine")


def test_two_registries_have_the_same_path(tmp_path: Path) -> None:
    load(tmp_path / "r", docker_save("quay.io/team/app:1"))
    with pytest.raises(DmucError, match=r"There is quay\.io/team/app:1 already"):
        load(tmp_path / "r", docker_save("ghcr.io/team/app:1"))
    assert load(tmp_path / "r", docker_save("ghcr.io/team/app:2"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "This file is empty"),
        (b"hello" * 1000, "no tar file"),
        (a_tar({"a": b"a"}), "not an archive of images"),
        (a_tar(docker_save("app:1"))[:30_000], "ends too early"),
        (gzip.compress(a_tar(docker_save("app:1")))[:300], "ends too early"),
        (a_tar({k: v for k, v in docker_save("app:1").items() if not k.startswith("1/")}), "A part .* missing"),
        (a_tar(docker_save("app:1") | {"1/layer.tar": LAYERS[2]}), "damaged: a layer"),
        (a_tar(docker_save("app:1") | {"config.json": b"{"}), "cannot be read"),
        (a_tar(docker_save("app:1") | {"manifest.json": b'[{"RepoTags": ["app:1"]}]'}), "not as it must be"),
        (a_tar(docker_save("app:1") | {"manifest.json": b"[]"}), "no image in it"),
        (a_tar({k: b"x" if "blobs" in k else v for k, v in an_oci_archive().items()}), "damaged"),
        (a_tar(an_oci_archive(kind=f"{LAYER}+gzip+encrypted")), "encrypted layer"),
    ],
    ids=["empty", "text", "tar", "cut", "cut-gzip", "lacks", "layer", "json", "keys", "none", "digest", "encrypted"],
)
def test_what_is_no_archive_leaves_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(DmucError, match=said) as caught:
        load(tmp_path / "r", content)
    assert caught.value.tried == "loading app.tar"
    blobs = {path for path in files_below(tmp_path) if path.name == "data"}
    assert not blobs, blobs
    assert Storage(tmp_path / "r").loaded() == Storage(tmp_path / "r").tags() == {}


@on_a_private_host
def test_a_full_disk(tmp_path: Path) -> None:
    disk = Path("/run/disk")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    import platform

    layers = [a_tar({"a": b"a" * 200_000})]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    with pytest.raises(DmucError, match=r"The disk is full: /run/disk"):
        load(disk / "r", docker_save("app:1", layers=layers, architecture=architecture))
    assert files_below(disk) == set()


def test_dmucs_own_images_do_not_replace_loaded_ones(tmp_path: Path) -> None:
    built, here = tmp_path / "built", tmp_path / "r"
    load(built, docker_save("nginx", "pause:3.2"))
    (built / "loaded.json").unlink()
    load(here, docker_save("nginx", layers=LAYERS[:1]))
    mine = Storage(here).tags()
    Storage(here).take_over(built)
    assert Storage(here).tags()["library/nginx:latest"] == mine["library/nginx:latest"]
    assert served(here, "library/pause:3.2")[1] == LAYERS
    assert Storage(here).names(LOCAL) == ["nginx"], "the pause image is for the engine alone"


def test_with_an_upstream_registry_nginx_is_its_own(tmp_path: Path) -> None:
    load(tmp_path / "built", docker_save("nginx", "pause:3.2"))
    there = Storage(tmp_path / "r")
    there.take_over(tmp_path / "built")
    assert "library/nginx:latest" in there.tags()
    there.take_over(tmp_path / "built", but_not="library/nginx")
    assert [*there.tags()] == ["library/pause:3.2"]


# Engines of the host

ENGINE = """#!/bin/sh
case "$*" in
*inspect*missing* | *name==*missing*) echo "Error: no such image" >&2; exit 1 ;;
*" ls "*) echo found ;;
*save*broken*) echo "disk error" >&2; exit 1 ;;
*save* | *export*) cat "$0.tar" ;;
esac
"""


def an_engine(directory: Path, name: str, image: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(ENGINE)
    (directory / name).chmod(0o755)
    (directory / f"{name}.tar").write_bytes(a_tar(docker_save(image)))


@pytest.mark.parametrize(("program", "called"), [("docker", "docker"), ("podman", "podman"), ("ctr", "containerd")])
def test_an_image_comes_from_each_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, called: str
) -> None:
    an_engine(tmp_path / "bin", program, "app:1")
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "bin" / name) if name == program else None)
    saved = tmp_path / "saved.tar"
    assert host_images.save(a_context(tmp_path), "app:1", names.parse("app:1"), saved, Silent()) == called
    assert load(tmp_path / "r", saved.read_bytes()) == ["docker.io/library/app:1"]


def test_no_engine_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("docker", "podman"):
        an_engine(tmp_path / "bin", program, "app:1")
    found = {name: str(tmp_path / "bin" / name) for name in ("docker", "podman")}
    monkeypatch.setattr(shutil, "which", found.get)
    with pytest.raises(DmucError, match=r"docker: Error: no such image\npodman: Error: no such image\n") as caught:
        host_images.save(a_context(tmp_path), "missing", names.parse("missing"), tmp_path / "saved", Silent())
    assert caught.value.tried == "loading the image missing"


def test_an_engine_that_cannot_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    an_engine(tmp_path / "bin", "docker", "app:1")
    monkeypatch.setattr(shutil, "which", {"docker": str(tmp_path / "bin/docker")}.get)
    with pytest.raises(DmucError, match="disk error"):
        host_images.save(a_context(tmp_path), "broken", names.parse("broken"), tmp_path / "saved", Silent())


def test_there_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DmucError, match=r"no container engine on this host(.|\n)*docker save -o app.tar"):
        host_images.save(a_context(tmp_path), "app", names.parse("app"), tmp_path / "saved", Silent())


# The engine of the machine


def test_an_image_that_was_loaded_again_is_brought_in_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    context = a_context(tmp_path, engine="docker")
    monkeypatch.setattr("tasks.engines.docker.fetch", lambda context, image: fetched.append(str(image)))
    load(storage(context).root, docker_save("app:1"))
    images.bring_in(context, Silent())
    images.bring_in(context, Silent())
    assert fetched == ["app:1"]
    load(storage(context).root, docker_save("app:1", layers=LAYERS[:1]))
    images.bring_in(context, Silent())
    assert fetched == ["app:1", "app:1"]
    other = replace(context, settings=replace(context.settings, engine="containerd"))
    monkeypatch.setattr("tasks.engines.containerd.fetch", lambda context, image: fetched.append(f"other {image}"))
    images.bring_in(other, Silent())
    assert fetched[2:] == ["other app:1"]


def test_what_there_is_is_listed_up_to_a_length(tmp_path: Path) -> None:
    context = a_context(tmp_path)
    load(storage(context).root, docker_save("app:1", "quay.io/x/y:2"))
    assert images.available(context).startswith("Images that are here: app:1, quay.io/x/y:2. One of your own: ")
    load(storage(context).root, docker_save(*(f"app{number}:1" for number in range(50))))
    assert ", …. One of your own" in images.available(context)
    context.decide("registry", "https://registry.example")
    assert "others come from https://registry.example" in images.available(context)


# The commands


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_cluster_that_is_off_keeps_the_image(checkout: Checkout) -> None:
    (checkout.root / "app.tar").write_bytes(a_tar(docker_save("app:1")))
    done = checkout.doit("load", "app.tar", CALLER_PWD=str(checkout.root))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("✓ app:1 (sha256:")
    assert done.stdout.endswith(f"Kept for the next start of {checkout.machine}: scripts/doit\n")
    root = checkout.state / "registry"
    assert Storage(root).names(LOCAL) == ["app:1"]
    assert not [*root.glob(".*")]
    assert checkout.doit("clean").returncode == 0
    assert not checkout.state.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["load"], "For example: scripts/doit load app:1.0"),
        (["load", "/nosuch.tar"], "There is no file /nosuch.tar"),
        (["load", "."], "This is a directory"),
        (["load", "-"], "This file is empty"),
        (["load", "a", "b", "name=c"], "name=NAME is for one image"),
        (["load", "a", "name=C"], "not the name of an image"),
        (["load", "a@sha256:1"], "has a digest"),
        (["image"], "These need no packages: busybox"),
        (["image", "mine"], "No package is named"),
        (["image", "mine", "curl", 'command="'], "Quote it as for a shell"),
        (["load", "app.tar", "machine=host.one"], "has no container engine"),
    ],
    ids=lambda value: "-".join(value).replace("/", "") if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(checkout: Checkout, words: list[str], said: str) -> None:
    is_told(checkout.doit(*words), said)
    assert not (checkout.state / "registry/docker").exists()


# Images from packages


def test_the_usual_images_and_ones_own() -> None:
    redis = from_packages.usual(names.parse("redis:6"))
    assert redis is not None
    assert from_packages.described([], [], redis) == redis
    assert from_packages.described([], ["sh"], redis) == replace(redis, command=("sh",))
    assert from_packages.described(["curl"], [], redis) == from_packages.Usual(("curl",), ("sh",))
    assert from_packages.described([], [], None) is None
    assert {"busybox", "httpd", "redis", "toolbox"} <= set(from_packages.USUAL)


def test_an_image_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "busybox": {"bin/busybox": "b", "usr/share/doc/busybox/copyright": "c"},
        "wget": {"usr/bin/wget": "w"},
        "libc6": {"lib/x/libc.so.6": "l"},
        "ca-certificates": {"usr/share/ca-certificates/one.crt": "1\n", "usr/share/ca-certificates/two.crt": "2\n"},
        "perl-base": {"usr/bin/perl": "p"},
    }

    def fetch_debs(packages: list[str], into: Path, *_: object) -> list[Path]:
        into.mkdir(parents=True)
        for package in packages:
            (into / f"{package}.deb").touch()
        return [into / f"{package}.deb" for package in packages]

    def extract(deb: Path, into: Path) -> None:
        for name, text in content[deb.stem].items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_text(text)

    import contextlib

    monkeypatch.setattr("tasks.core.debian.archive", lambda *_: contextlib.nullcontext(()))
    monkeypatch.setattr("tasks.core.debian.with_dependencies", lambda *_: [*content])
    monkeypatch.setattr("tasks.core.debian.fetch_debs", fetch_debs)
    monkeypatch.setattr("tasks.core.debian.extract", extract)
    there = Storage(tmp_path / "r")
    what = from_packages.usual(names.parse("busybox"))
    assert what is not None
    (tmp_path / "scratch").mkdir()
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    from_packages.build(names.parse("tools:1"), what, there, cache, scratch, Silent())
    monkeypatch.setattr("tasks.core.debian.archive", None)  # calling it would be a TypeError
    from_packages.build(names.parse("again:1"), what, there, cache, scratch, Silent())
    assert served(tmp_path / "r", "library/again:1") == served(tmp_path / "r", "library/tools:1")
    assert len([*(cache / "packages").iterdir()]) == 1
    _, (layer,) = served(tmp_path / "r", "library/tools:1")
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as tar:
        entries = {entry.name: entry for entry in tar}
        bundle = tar.extractfile("etc/ssl/certs/ca-certificates.crt")
        assert bundle is not None
        assert bundle.read() == b"1\n2\n"
    assert (entries["bin"].linkname, entries["lib"].linkname) == ("usr/bin", "usr/lib")
    assert entries["usr/bin/sh"].linkname == "busybox"
    assert entries["usr/bin/wget"].isfile(), "GNU's own"
    assert "usr/lib/x/libc.so.6" in entries
    assert "usr/bin/perl" not in entries, "only scripts of packages need it"
    assert "usr/share/doc" not in entries
    assert there.names(LOCAL) == ["again:1", "tools:1"]
