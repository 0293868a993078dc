"""Archives of images: what `docker save` and `podman save` write, and the OCI image layout in a tar file.

https://github.com/moby/docker-image-spec/blob/v1.2/v1.2.md#combined-image-json--filesystem-changeset-format
https://github.com/opencontainers/image-spec/blob/v1.0.2/image-layout.md
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..core.errors import DmucError
from . import names, oci
from .names import Name
from .storage import Storage

if TYPE_CHECKING:
    import tarfile

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PACKED = (_GZIP, _ZSTD, b"BZh", b"\xfd7zXZ\x00")
_PLAIN_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_FULL_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"
_TRUNCATED = "It ends too early: a part of the archive is missing."
_AGAIN = "Make the archive again (docker save -o app.tar app:1.0), and compare its size after copying it."


def load(file: IO[bytes], called: str, storage: Storage, name: Name | None) -> list[Name]:
    """Store the images of an archive; return their names. The file must be seekable, and stays open.

    `called` is what the user calls the archive. `name` replaces the name of the archive's only image.

    Raise DmucError when the file is not an archive of images, or is damaged, or when an image in it is not for this
    machine; no image of the archive is stored then.
    """
    tried = f"loading {called}"
    try:
        with _opened(file, tried, storage.root) as tar, storage.all_or_nothing():
            return _Archive(tar, tried, storage, name).load()
    except EOFError:
        raise DmucError(tried, _TRUNCATED, _AGAIN) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DmucError(tried, "It is damaged: a description in it is not as it must be.", _AGAIN) from None
    except OSError as error:
        raise unwritable(tried, storage.root, error) from error


def unwritable(tried: str, place: Path, error: OSError) -> DmucError:
    """Return the error for a failure to write below the directory `place`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DmucError(
            tried, f"The disk is full: {place} ({error.strerror}).", "Free some space there, and load again."
        )
    return DmucError(tried, f"{place}: {error.strerror or error}", "Check that this directory can be written.")


@contextmanager
def _opened(file: IO[bytes], tried: str, scratch: Path) -> Iterator[tarfile.TarFile]:
    """Yield the tar file, unpacked in a temporary file if it was compressed."""
    import tarfile
    import zlib

    start = file.read(6)
    file.seek(0)
    with tempfile.TemporaryFile(dir=scratch) as plain:
        try:
            if start.startswith(_PACKED):
                with _unpacked(file, start, tried) as stream:
                    shutil.copyfileobj(stream, plain, 1 << 20)
                plain.seek(0)
                file = plain
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it has nothing to be closed
            tar.getmembers()
        except (EOFError, zlib.error):
            raise DmucError(tried, _TRUNCATED, _AGAIN) from None
        except tarfile.ReadError as error:
            if "unexpected end" in str(error):
                raise DmucError(tried, _TRUNCATED, _AGAIN) from None
            seen = "This is not an archive of images: no tar file." if start else "This file is empty."
            raise DmucError(
                tried, seen, "Archives come from docker save, podman save, or tools that write OCI archives."
            ) from None
        yield tar


@contextmanager
def _unpacked(file: IO[bytes], start: bytes, tried: str) -> Iterator[IO[bytes]]:
    import bz2
    import gzip
    import lzma

    if start.startswith(_ZSTD):
        if shutil.which("zstd") is None:
            raise DmucError(tried, "It is compressed with zstd, and this host has no program zstd.", "Install zstd.")
        with tempfile.TemporaryFile() as copy:  # zstd needs a descriptor that begins there
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.seek(0)
            command = ["zstd", "-dcq"]
            with subprocess.Popen(command, stdin=copy, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                yield process.stdout
            if process.returncode:
                raise EOFError
        return
    module: Any = gzip if start.startswith(_GZIP) else bz2 if start.startswith(b"BZh") else lzma
    with module.open(file, "rb") as stream:
        yield stream


class _Archive:
    def __init__(self, tar: tarfile.TarFile, tried: str, storage: Storage, name: Name | None) -> None:
        self._tar, self._tried, self._storage, self._name = tar, tried, storage, name
        self._members = {os.path.normpath(member.name): member for member in tar.getmembers()}

    def load(self) -> list[Name]:
        if "index.json" in self._members and "oci-layout" in self._members:
            index = self._json("index.json")
            found = [(self._names_of(one), one) for one in index.get("manifests", [])]
            if len(found) > 1 and not any(called for called, _ in found):  # the platforms of one image
                found = [([], self._for_this_machine([one for _, one in found]))]
            read: Callable[[Name, Any], str] = self._oci
        elif "manifest.json" in self._members:
            entries: Any = self._json("manifest.json")
            found = [([names.parse(text) for text in one.get("RepoTags") or []], one) for one in entries]
            read = self._docker
        else:
            seen = "This tar file is not an archive of images: it has no manifest.json, and no index.json."
            raise self._error(seen, "Archives come from docker save, podman save, or tools that write OCI archives.")
        if not found:
            raise self._error("There is no image in it.")
        if self._name is not None:
            if len(found) > 1:
                raise self._error(f"There are {len(found)} images in it, which cannot all have the name {self._name}.")
            found = [([self._name], found[0][1])]
        if any(not called for called, _ in found):
            raise self._error("An image in it has no name.", "Give it one: scripts/doit load FILE name=app:1.0")
        for called, one in found:
            self._refuse_two_of_a_place(called)
            tops = [read(name, one) for name in called]
            for name, top in zip(called, tops, strict=True):
                self._storage.tag(name, top)
        return [name for called, _ in found for name in called]

    def _refuse_two_of_a_place(self, called: Sequence[Name]) -> None:
        """Refuse what the machine's registry cannot hold: two registries' images with the same path and tag."""
        for name in called:
            for full in self._storage.loaded():
                other = names.parse(full)
                if other.place == name.place and other.registry != name.registry:
                    seen = f"There is {full} already: the machine's registry has one image called {name.place}."
                    raise self._error(seen, "Give one of them another name or tag: scripts/doit load FILE name=NAME")

    # OCI

    def _names_of(self, descriptor: Any) -> list[Name]:
        notes = descriptor.get("annotations") or {}
        text = str(notes.get(_FULL_NAME) or notes.get(_REF_NAME) or "")
        return [names.parse(text)] if _FULL_NAME in notes or "/" in text or ":" in text else []

    def _oci(self, name: Name, descriptor: Any) -> str:
        """Store the image that the descriptor names; return the digest of what the tag must mean."""
        content = self._blob(descriptor)
        manifest = self._parsed(content)
        if "manifests" not in manifest:
            return self._image(name, content, manifest)
        chosen = self._for_this_machine(manifest["manifests"])
        top = self._oci(name, chosen)
        return self._storage.add_manifest(name.path, content) if top == chosen["digest"] else top

    def _for_this_machine(self, manifests: Sequence[Any]) -> Any:
        """Return the descriptor of this machine's platform in an index; an index in an index may not name one."""
        here = f"linux/{oci.architecture()}"
        platforms: dict[str, Any] = {}
        for one in manifests:
            platform = one.get("platform") or {}
            text = f"{platform.get('os')}/{platform.get('architecture')}" if platform else here
            platforms.setdefault(text, one)
        if here in platforms:
            return platforms[here]
        there = ", ".join(sorted(platforms)) or "no platform"
        raise self._error(f"It is for another processor: this machine is {here}, and the image is for {there}.", _BUILD)

    def _image(self, name: Name, content: bytes, manifest: Any) -> str:
        if manifest.get("schemaVersion") != 2 or "config" not in manifest:
            raise self._error("Its manifest is of a kind that dmuc does not know.", _AGAIN)
        self._refuse_another_platform(self._parsed(self._blob(manifest["config"])))
        layers = [self._layer(layer) for layer in manifest["layers"]]
        for blob in (manifest["config"], *layers):
            if blob not in layers:
                self._keep(blob)
            self._storage.link(name.path, blob["digest"])
        if layers != manifest["layers"]:
            content = json.dumps({**manifest, "layers": layers}).encode()
        return self._storage.add_manifest(name.path, content)

    def _layer(self, layer: Any) -> Any:
        """Store the layer; return its descriptor. zstd is undone: Docker 20.10 cannot read that."""
        kind = str(layer.get("mediaType", ""))
        if "encrypted" in kind:
            raise self._error(f"It has an encrypted layer ({kind}), which dmuc cannot load.")
        with self._file(_path(layer["digest"])) as file:
            start = file.read(4)
        if not start.startswith(_ZSTD):
            self._keep(layer)
            return layer
        with self._file(_path(layer["digest"])) as file, _unpacked(file, start, self._tried) as stream:
            found, size = self._storage.add(stream)
        return {**layer, "mediaType": re.sub(r"(\+zstd|\.zstd|\.gzip)$", "", kind), "digest": found, "size": size}

    def _keep(self, descriptor: Any) -> None:
        """Store a blob of the archive, if it is what the descriptor says."""
        with self._file(_path(descriptor["digest"])) as file:
            found, _ = self._storage.add(file)
        if found != descriptor["digest"]:
            raise self._error(f"It is damaged: a part has the digest {found}, not {descriptor['digest']}.", _AGAIN)

    def _blob(self, descriptor: Any) -> bytes:
        with self._file(_path(descriptor["digest"])) as file:
            content = file.read()
        if oci.digest(content) != descriptor["digest"]:
            raise self._error("It is damaged: a part does not have its digest.", _AGAIN)
        return content

    # Docker

    def _docker(self, name: Name, entry: Any) -> str:
        with self._file(entry["Config"]) as file:
            config = file.read()
        details = self._parsed(config)
        self._refuse_another_platform(details)
        layers = []
        for path in entry["Layers"]:
            with self._file(path) as file:
                packed = file.read(2) == _GZIP
            with self._file(path) as file:
                found, size = self._storage.add(file)
            layers.append({"mediaType": oci.LAYER_TYPE if packed else _PLAIN_LAYER, "size": size, "digest": found})
        known = details.get("rootfs", {}).get("diff_ids", [])
        plain = [
            (layer["digest"], diff)
            for layer, diff in zip(layers, known, strict=False)
            if layer["mediaType"] == _PLAIN_LAYER
        ]
        if len(known) != len(layers) or any(found != diff for found, diff in plain):
            raise self._error("It is damaged: a layer is not the one that the image has.", _AGAIN)
        described, size = self._storage.add(io.BytesIO(config))
        for blob in (described, *(layer["digest"] for layer in layers)):
            self._storage.link(name.path, str(blob))
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "config": {"mediaType": oci.CONFIG_TYPE, "size": size, "digest": described},
            "layers": layers,
        }
        return self._storage.add_manifest(name.path, json.dumps(manifest).encode())

    # Both

    def _refuse_another_platform(self, config: Any) -> None:
        there = f"{config.get('os')}/{config.get('architecture')}"
        here = f"linux/{oci.architecture()}"
        if there != here:
            seen = f"It is for another processor: this machine is {here}, and the image is for {there}."
            raise self._error(seen, _BUILD)

    @contextmanager
    def _file(self, path: str) -> Iterator[IO[bytes]]:
        member = self._members.get(os.path.normpath(path))
        try:
            file = self._tar.extractfile(member) if member is not None else None
        except KeyError:  # a link to what is not there
            file = None
        if file is None:
            raise self._error(
                f"A part of the image is missing in it: {path}. The archive is truncated, or incomplete.", _AGAIN
            )
        with file:
            yield file

    def _json(self, path: str) -> Any:
        with self._file(path) as file:
            return self._parsed(file.read())

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise self._error("It is damaged: a description in it cannot be read.", _AGAIN) from None

    def _error(self, seen: str, do: str = "") -> DmucError:
        return DmucError(self._tried, seen, do)


_BUILD = "Build or pull the image for this platform: docker build --platform=…, docker pull --platform=…"


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
