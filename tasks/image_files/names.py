"""The names of images, as people write them: `app`, `app:1.0`, `quay.io/team/app`, `localhost:5000/app`.

The rules are those of distribution's reference/normalize.go, which Docker, containerd and the kubelet share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import DmucError

DOCKER_HUB = "docker.io"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[\w][\w.-]{0,127}\Z", re.ASCII)
_RULE = "A name has lower-case letters and digits, like app, team/app or quay.io/team/app; a tag follows, like app:1.0."


@dataclass(frozen=True)
class Name:
    """The name of an image, with everything that people leave out."""

    registry: str  # such as docker.io
    path: str  # the repository in the registry, such as library/nginx
    tag: str

    @property
    def full(self) -> str:
        """The whole name: docker.io/library/nginx:latest."""
        return f"{self.registry}/{self.place}"

    @property
    def place(self) -> str:
        """The name without the registry."""
        return f"{self.path}:{self.tag}"

    def __str__(self) -> str:
        if self.registry != DOCKER_HUB:
            return self.full
        return self.place.removeprefix("library/").removesuffix(":latest")


def parse(text: str) -> Name:
    """Return what `text` means as the name of an image. Raise DmucError when that is no name with a tag.

    `localhost/app` is what podman calls an image without a registry, so `localhost` counts as none.
    """
    tried = f"reading the name of an image: {text}"
    if "@" in text:
        seen = "It has a digest, and the digest of an image that an engine saves cannot be chosen."
        raise DmucError(tried, seen, "Name the image by a tag. An OCI archive keeps its digests under any name.")
    before, slash, rest = text.partition("/")
    registry, path = DOCKER_HUB, text
    if slash and ("." in before or ":" in before or before == "localhost"):
        registry, path = before, rest
    if registry in {"index.docker.io", "registry-1.docker.io", "localhost"}:
        registry = DOCKER_HUB
    path, colon, tag = path.partition(":")
    if registry == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    if not _PATH.match(path) or (colon and not _TAG.match(tag)) or not re.match(r"\w[\w.-]*(:\d+)?\Z", registry):
        raise DmucError(tried, "This is not the name of an image.", _RULE)
    return Name(registry, path, tag or "latest")
