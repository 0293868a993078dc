"""The images of a registry as files: what is there, and how an image is added while the registry runs, or does not.

The layout is that of distribution 2.8 (registry/storage/paths.go). docker-registry, as dmuc configures it, remembers
nothing of these files, so it serves what is written here from the next request on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..core.files import read_json, write_atomic
from .names import DOCKER_HUB, Name
from .oci import digest

_PAUSE = re.compile("(library/)?pause:")  # for the engine alone
_CHUNK = 1 << 20  # bytes
_LOADED = "loaded.json"  # the whole name of each image that was loaded -> the digest of what its tag names


class Storage:
    """The directory of a registry."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._top = root / "docker/registry/v2"

    # What is there

    def loaded(self) -> dict[str, str]:
        """Return the whole names of the loaded images, each with its digest."""
        return {str(name): str(value) for name, value in read_json(self.root / _LOADED).items()}

    def tags(self) -> dict[str, str]:
        """Return the digest of every REPOSITORY:TAG that the registry serves."""
        found = {}
        for link in sorted(self._repositories.glob("**/_manifests/tags/*/current/link")):
            tag = link.parents[1]
            repository = tag.parents[2].relative_to(self._repositories)
            found[f"{repository}:{tag.name}"] = link.read_text("utf-8")
        return found

    def names(self, address: str) -> list[str]:
        """Return the names of all images in it, as people write them, but those of the pause image.

        An image that was pushed under a name that no other registry can have has the registry's `address`.
        """
        known = [_name(full) for full in self.loaded()]
        paths = {name.place for name in known}
        served = [place for place in self.tags() if place not in paths and not _PAUSE.match(place)]
        others = [_name(f"{DOCKER_HUB if '/' in place else address}/{place}") for place in served]
        return sorted(str(name) for name in [*known, *others])

    def blob(self, name: str) -> Path:
        """Return the file of the blob with this digest, whether it is there or not."""
        hexadecimal = name.removeprefix("sha256:")
        return self._top / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"

    @property
    def _repositories(self) -> Path:
        return self._top / "repositories"

    # What is added

    def add(self, content: IO[bytes]) -> tuple[str, int]:
        """Store a blob; return its digest and size (bytes). Raise OSError when that fails; nothing stays then."""
        self.root.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=self.root)
        part = Path(name)
        try:
            hashed, size = hashlib.sha256(), 0
            with os.fdopen(handle, "wb") as file:
                while chunk := content.read(_CHUNK):
                    hashed.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
            found = f"sha256:{hashed.hexdigest()}"
            place = self.blob(found)
            place.parent.mkdir(parents=True, exist_ok=True)
            part.chmod(0o644)
            part.rename(place)
        finally:
            part.unlink(missing_ok=True)
        return found, size

    def link(self, repository: str, blob: str) -> None:
        """Let the repository have this blob, a layer or a config."""
        self._link(self._repositories / repository / "_layers", blob)

    def add_manifest(self, repository: str, manifest: bytes) -> str:
        """Store a manifest in the repository; return its digest."""
        name, place = digest(manifest), self.blob(digest(manifest))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(manifest)
        self._link(self._repositories / repository / "_manifests/revisions", name)
        return name

    def tag(self, name: Name, manifest: str) -> None:
        """Let the image's name mean the manifest with this digest, and note that the image was loaded."""
        here = self._repositories / name.path / "_manifests/tags" / name.tag
        self._link(here / "index", manifest)
        (here / "current").mkdir(parents=True, exist_ok=True)
        write_atomic(here / "current/link", manifest)
        write_atomic(self.root / _LOADED, json.dumps(self.loaded() | {name.full: manifest}, indent=1))

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Remove the blobs that the body has added, when the body fails."""
        before = self._blobs()
        try:
            yield
        except BaseException:
            for blob in self._blobs() - before:
                shutil.rmtree(blob, ignore_errors=True)
            raise

    def _blobs(self) -> set[Path]:
        return set(self._top.glob("blobs/sha256/*/*"))

    # The images of dmuc itself

    def take_over(self, built: Path, *, but_not: str = "") -> None:
        """Serve the images in the directory of another registry, too, but not the repository `but_not`.

        Images that were loaded keep their names. Raise OSError when that fails.
        """
        loaded = {_name(full).place for full in self.loaded()}
        there = Storage(built)
        shutil.copytree(there._top / "blobs", self._top / "blobs", dirs_exist_ok=True)
        for place in there.tags():
            repository, _, tag = place.rpartition(":")
            if place in loaded:
                continue
            here, source = self._repositories / repository, there._repositories / repository
            if repository == but_not:
                shutil.rmtree(here / "_manifests/tags" / tag, ignore_errors=True)
                continue
            for part in ("_layers", "_manifests/revisions", f"_manifests/tags/{tag}"):
                shutil.copytree(source / part, here / part, dirs_exist_ok=True)

    @staticmethod
    def _link(directory: Path, name: str) -> None:
        place = directory / name.replace(":", "/") / "link"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, name)


def _name(full: str) -> Name:
    registry, _, rest = full.partition("/")
    path, _, tag = rest.rpartition(":")
    return Name(registry, path, tag)
