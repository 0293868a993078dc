"""Container images without a container engine: pack a directory into an image, store an image as a registry's files.

Image: "Image Manifest Version 2, Schema 2" and "Docker Image Specification v1.2", which Docker 20.10 and containerd 1.6
can pull. Registry: the filesystem layout of distribution 2.8 (registry/storage/paths.go), the same as after a push.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DmucError
from ..core.machine import ARCHITECTURES

if TYPE_CHECKING:
    import tarfile

# Raise it when the same recipe comes out as other bytes, here or in recipes.py: then images in caches are made again.
FORMAT = 1

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"

# Images carry dates; a fixed one keeps the same content the same image.
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class ImageConfig:
    """How a container of the image is run, in the terms of a Dockerfile."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    expose: tuple[str, ...] = ()  # such as "80/tcp"
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True)
class Image:
    """The three blobs of an image with one layer, as they are stored and sent."""

    layer: bytes
    config: bytes
    manifest: bytes


def digest(blob: bytes) -> str:
    """Return the digest of `blob`, its name in images and registries: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def pack(root: Path, config: ImageConfig) -> Image:
    """Return an image of everything under `root`. Needs no root rights.

    The same content always gives the same bytes: names sorted, times zero, owner root, and modes reduced to what no
    umask changes (executable or not, sticky or not). The whole image is held in memory.

    Raise DmucError on a processor that is not in ARCHITECTURES.
    """
    import gzip

    tree = _tar(root)
    layer = gzip.compress(tree, mtime=0)
    details = {
        "architecture": architecture(),
        "os": "linux",
        "created": EPOCH,
        "config": {
            "Entrypoint": config.entrypoint or None,
            "Cmd": config.cmd or None,
            "Env": [f"{name}={value}" for name, value in config.env.items()],
            "ExposedPorts": {port: {} for port in config.expose},
            "StopSignal": config.stop_signal,
        },
        "history": [{"created": EPOCH, "created_by": "dmuc"}],
        "rootfs": {"type": "layers", "diff_ids": [digest(tree)]},  # of the tar, not of the gzip
    }
    described = _json(details)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, described),
        "layers": [_descriptor(LAYER_TYPE, layer)],
    }
    return Image(layer, described, _json(manifest))


def store(registry_root: Path, repository: str, tag: str, image: Image) -> str:
    """Write `image` as `repository`:`tag` into the root directory of a registry, without a push.

    Return the digest of the manifest. Several images may share one root; storing a tag again moves the tag. Meant for a
    registry that is not running, or that has not been asked for this repository yet.
    """
    top = registry_root / "docker/registry/v2"
    here = top / "repositories" / repository
    for blob in (image.layer, image.config, image.manifest):
        hexadecimal = digest(blob).removeprefix("sha256:")
        _write(top / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data", blob)
    for blob in (image.layer, image.config):
        _link(here / "_layers", blob)
    _link(here / "_manifests/revisions", image.manifest)
    _link(here / "_manifests/tags" / tag / "index", image.manifest)
    name = digest(image.manifest)
    _write(here / "_manifests/tags" / tag / "current/link", name.encode())
    return name


def _tar(root: Path) -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root).as_posix(), recursive=False, filter=_anonymous)
    return buffer.getvalue()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    executable = entry.isdir() or entry.issym() or entry.mode & stat.S_IXUSR
    entry.mode = 0o1777 if entry.mode & stat.S_ISVTX else 0o755 if executable else 0o644
    return entry


def architecture() -> str:
    """Return the name of this machine's processor in images. Raise DmucError when no image can be built for it."""
    import platform

    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise DmucError(
            "building a container image for this machine",
            f"The processor is {machine}; images can be built for {' and '.join(ARCHITECTURES)} only.",
        )
    return ARCHITECTURES[machine]


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "size": len(blob), "digest": digest(blob)}


def _link(directory: Path, blob: bytes) -> None:
    """Write the link file for a blob of a repository: both its path and its content are the digest."""
    name = digest(blob)
    _write(directory / name.replace(":", "/") / "link", name.encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
