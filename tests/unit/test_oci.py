from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.image_files import oci


def a_tree(root: Path, *, order: int = 1, mode: int = 0o755) -> Path:
    """The same content, made in one order or the other, with modes as one umask or another leaves them."""
    for name in ("bin/tool", "etc/text", "tmp")[::order]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "tmp":
            path.mkdir()
            path.chmod(0o1777 & (mode | 0o1000))
        else:
            path.write_text(name)
            path.chmod(mode if name == "bin/tool" else mode & 0o666)
        path.parent.chmod(mode)
    (root / "bin/link").symlink_to("tool")
    os.utime(root / "etc/text", (1, 1000 + order))
    return root


def entries(image: oci.Image) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(image.layer), mode="r:gz") as tar:
        return {entry.name: entry for entry in tar.getmembers()}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one = oci.pack(a_tree(tmp_path / "one"), oci.ImageConfig())
    other = oci.pack(a_tree(tmp_path / "other", order=-1, mode=0o700), oci.ImageConfig())
    assert one == other


def test_other_bytes_of_the_same_content_are_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in caches are made again only when FORMAT says so: raise it with the digests here."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    config = oci.ImageConfig(("/a",), ("b",), {"C": "d"}, ("80/tcp",))
    image = oci.pack(a_tree(tmp_path / "tree"), config)
    # Without the layer and what follows from it: other versions of zlib compress otherwise.
    described = json.loads(image.manifest) | {"layers": [], "config": {}}
    content = [gzip.decompress(image.layer), image.config, json.dumps(described).encode()]
    digests = [hashlib.sha256(part).hexdigest()[:12] for part in content]
    oci.store(tmp_path / "registry", "a/b", "c", oci.Image(b"layer", b"config", b"manifest"))
    stored = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "registry").rglob("*") if path.is_file())
    digests.append(hashlib.sha256("\n".join(stored).encode()).hexdigest()[:12])
    assert (oci.FORMAT, digests) == (1, ["3180d4d9482d", "06bb4511d7da", "51801c22ac1e", "8ca4d3c1ff45"])


def test_other_content_gives_another_image(tmp_path: Path) -> None:
    one, other = a_tree(tmp_path / "one"), a_tree(tmp_path / "other")
    (other / "etc/text").write_text("changed")
    assert oci.pack(one, oci.ImageConfig()) != oci.pack(other, oci.ImageConfig())
    assert oci.pack(one, oci.ImageConfig()) != oci.pack(one, oci.ImageConfig(cmd=("x",)))


def test_the_layer_is_anonymous_and_sorted(tmp_path: Path) -> None:
    found = entries(oci.pack(a_tree(tmp_path, mode=0o700), oci.ImageConfig()))
    assert list(found) == ["bin", "bin/link", "bin/tool", "etc", "etc/text", "tmp"]
    assert {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) for entry in found.values()} == {
        (0, 0, "", "", 0)
    }
    assert {name: oct(entry.mode) for name, entry in found.items() if not entry.issym()} == {
        "bin": "0o755",
        "bin/tool": "0o755",
        "etc": "0o755",
        "etc/text": "0o644",
        "tmp": "0o1777",
    }
    assert found["bin/link"].linkname == "tool"


def test_a_link_out_of_the_tree_is_packed_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "nowhere").symlink_to("/not/there")
    found = entries(oci.pack(tmp_path, oci.ImageConfig()))
    assert {name: entry.linkname for name, entry in found.items()} == {"out": "/etc", "nowhere": "/not/there"}


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, architecture: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    image = oci.pack(
        a_tree(tmp_path),
        oci.ImageConfig(entrypoint=("/a",), cmd=("b", "c"), env={"D": "e"}, expose=("80/tcp",), stop_signal="SIGQUIT"),
    )
    config = json.loads(image.config)
    assert (config["os"], config["architecture"]) == ("linux", architecture)
    assert config["config"] == {
        "Entrypoint": ["/a"],
        "Cmd": ["b", "c"],
        "Env": ["D=e"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    tar = hashlib.sha256(gzip.decompress(image.layer)).hexdigest()
    assert config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{tar}"]}
    assert len(config["history"]) == 1  # one layer, one entry


def test_the_manifest_names_the_blobs(tmp_path: Path) -> None:
    image = oci.pack(a_tree(tmp_path), oci.ImageConfig())
    assert json.loads(image.manifest) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(image.config),
            "digest": "sha256:" + hashlib.sha256(image.config).hexdigest(),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": len(image.layer),
                "digest": "sha256:" + hashlib.sha256(image.layer).hexdigest(),
            }
        ],
    }


def test_an_unknown_processor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(DmucError, match="vax"):
        oci.pack(tmp_path, oci.ImageConfig())


def test_the_registry_layout_is_what_a_real_push_leaves(tmp_path: Path) -> None:
    image = oci.Image(b"layer", b"config", b"manifest")
    layer, config, manifest = (hashlib.sha256(name).hexdigest() for name in (b"layer", b"config", b"manifest"))
    assert oci.store(tmp_path, "library/web", "1.0", image) == f"sha256:{manifest}"
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    # docker-registry 2.8.2, after a push of the three blobs
    top = "docker/registry/v2"
    here = f"{top}/repositories/library/web"
    assert found == {
        f"{top}/blobs/sha256/{layer[:2]}/{layer}/data": "layer",
        f"{top}/blobs/sha256/{config[:2]}/{config}/data": "config",
        f"{top}/blobs/sha256/{manifest[:2]}/{manifest}/data": "manifest",
        f"{here}/_layers/sha256/{layer}/link": f"sha256:{layer}",
        f"{here}/_layers/sha256/{config}/link": f"sha256:{config}",
        f"{here}/_manifests/revisions/sha256/{manifest}/link": f"sha256:{manifest}",
        f"{here}/_manifests/tags/1.0/index/sha256/{manifest}/link": f"sha256:{manifest}",
        f"{here}/_manifests/tags/1.0/current/link": f"sha256:{manifest}",
    }


def test_storing_a_tag_again_moves_it_and_keeps_the_rest(tmp_path: Path) -> None:
    old = oci.store(tmp_path, "a", "latest", oci.Image(b"l", b"c", b"old"))
    other = oci.store(tmp_path, "b/c", "1", oci.Image(b"l", b"c", b"other"))
    new = oci.store(tmp_path, "a", "latest", oci.Image(b"l", b"c", b"new"))
    repositories = tmp_path / "docker/registry/v2/repositories"
    assert (repositories / "a/_manifests/tags/latest/current/link").read_text() == new
    assert (repositories / "b/c/_manifests/tags/1/current/link").read_text() == other
    revisions = {path.name for path in (repositories / "a/_manifests/revisions/sha256").iterdir()}
    assert {f"sha256:{name}" for name in revisions} == {old, new}
