"""Recipes of the images nginx and pause, which are built from Debian packages and stored as a registry's files.

`kubectl create deployment web --image=nginx` means nginx:latest, for which the kubelet always asks the registry. The
registry in the machine, which the engine uses as a mirror, serves these images without access to other networks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from ..core import debian
from ..core.errors import DmucError
from ..core.files import quoted
from ..core.progress import Progress
from . import oci


@dataclass(frozen=True)
class Recipe:
    """The content of an image: files of Debian packages, and additional files. All paths are relative to its `/`."""

    repositories: tuple[str, ...]  # the names under which the registry serves the image
    tags: tuple[str, ...]  # the tags, in each of these repositories
    packages: tuple[str, ...]
    take: tuple[str, ...]  # patterns; each must match a file in the packages
    config: oci.ImageConfig
    links: Mapping[str, str] = field(default_factory=dict)  # name: target
    files: Mapping[str, str] = field(default_factory=dict)  # name: text
    directories: Mapping[str, int] = field(default_factory=dict)  # name: mode

    @property
    def name(self) -> str:
        """The image's name in messages."""
        return f"{self.repositories[0]}:{self.tags[0]}"


# For `kubectl exec`, `docker run nginx echo` and a look around. wget is GNU's, because the image has no curl, and
# Debian's busybox crashes on `wget -T`.
BUSYBOX_COMMANDS = (
    "sh awk basename cat chmod chown cp cut date dd df dirname du echo env false find free grep gzip head hostname id "
    "ip kill less ln ls mkdir more mount mv nc netstat nslookup ping ps pwd readlink rm rmdir sed sleep sort stat sync "
    "tail tar tee test time timeout top touch tr traceroute true umount uname uniq uptime vi wc which whoami xargs"
)

# The same as in nginx.org's own image: the page and its path, the command, the user and the stop signal.
NGINX_CONF = """\
user nginx;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events {}
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    server {
        listen 80;
        root /usr/share/nginx/html;
    }
}
"""

NGINX = Recipe(
    repositories=("library/nginx",),
    tags=("latest",),
    packages=(
        *("nginx", "nginx-common", "busybox-static"),
        *("libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"),
        *("wget", "libffi8", "libgmp10", "libgnutls30", "libhogweed6", "libidn2-0", "libnettle8", "libp11-kit0"),
        *("libpsl5", "libtasn1-6", "libunistring2", "libuuid1"),
    ),
    take=(
        "usr/sbin/nginx",
        "etc/nginx/mime.types",
        "usr/share/nginx/html/index.html",
        "bin/busybox",
        # The libraries of nginx (`objdump -p usr/sbin/nginx | grep NEEDED`), and the dynamic loader.
        "**/ld-linux*.so.*",
        "**/libc.so.*",
        "**/libcrypt.so.*",
        "**/libcrypto.so.*",
        "**/libpcre2-8.so.*",
        "**/libssl.so.*",
        "**/libz.so.*",
        "usr/bin/wget",
        *(f"**/lib{name}.so.*" for name in ("ffi", "gmp", "gnutls", "hogweed", "idn2", "nettle", "p11-kit", "psl")),
        *(f"**/lib{name}.so.*" for name in ("tasn1", "unistring", "uuid")),
    ),
    links={f"bin/{command}": "busybox" for command in BUSYBOX_COMMANDS.split()},
    files={
        "etc/nginx/nginx.conf": NGINX_CONF,
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:101:nginx:/nonexistent:/bin/false\n",
        "etc/group": "root:x:0:\nnginx:x:101:\n",
    },
    directories={"root": 0o755, "run": 0o755, "tmp": 0o1777, "var/lib/nginx": 0o755, "var/log/nginx": 0o755},
    config=oci.ImageConfig(
        cmd=("nginx", "-g", "daemon off;"),
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        expose=("80/tcp",),
        stop_signal="SIGQUIT",  # nginx finishes its open requests first; on SIGTERM it drops them
    ),
)

PAUSE = Recipe(
    # The name that Docker asks for, and that for which containerd asks a mirror of registry.k8s.io or k8s.gcr.io.
    repositories=("library/pause", "pause"),
    tags=("3.2", "3.4.1", "3.5", "3.6", "3.7", "3.8", "3.9", "3.10"),  # those of Kubernetes 1.19 to 1.36
    packages=("catatonit",),
    take=("usr/bin/catatonit",),
    links={"catatonit": "usr/bin/catatonit"},
    # catatonit has a mode for this: -P sleeps, reaps orphaned processes, and ends on SIGTERM, all as process 1.
    config=oci.ImageConfig(entrypoint=("/catatonit", "-P")),
)

RECIPES = (NGINX, PAUSE)


def registry_root(cache: Path) -> Path:
    """Return the directory in `cache` that `build` creates, whether it exists yet or not.

    Its name is a digest of the recipes, of how they are packed, and of the processor. So a changed recipe is built into
    another directory, and a registry can still serve the old one.
    """
    import platform

    made_of = [oci.FORMAT, platform.machine(), *(asdict(recipe) for recipe in RECIPES)]
    return cache / "images" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]


def build(cache: Path, progress: Progress) -> Path:
    """Build the images, unless they exist already; return the root directory for a registry that serves them.

    The directory is either complete or absent, and nothing else stays in `cache`, even after a failure. Downloads
    packages (7 MB), takes a few seconds and needs no root rights.

    Raise DmucError when a package cannot be downloaded or is not as expected, or the cache cannot be written.
    """
    root = registry_root(cache)
    if root.exists():
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=root.parent) as scratch:
            _make(Path(scratch), progress).rename(root)
    except OSError as error:
        if root.exists():  # another dmuc has built the same meanwhile
            return root
        raise DmucError(
            f"building the container images in {root.parent}",
            str(error),
            "Check that this directory is writable and has 100 MB of free space, then run the same command again.",
        ) from error
    return root


def registry_config(root: Path, listen: str, upstream: str | None) -> str:
    """Return the text of docker-registry's configuration, in YAML (distribution 2.8, docs/configuration.md).

    `root` is the directory that it serves and `listen` its HOST:PORT. Without `upstream` it accepts pushes. With
    `upstream` (a registry's URL) it is a pull-through cache of that registry and stores the images in `root`, which
    must not be that of `build`. Seen with 2.8.2: it panics at its start when the upstream does not answer, and serves
    what it has stored when the upstream becomes unreachable later.
    """
    # YAML accepts JSON's quotes. The access log, one line per request, is written at any level.
    text = f"""\
version: 0.1
log:
  level: error
http:
  addr: {quoted(listen)}
storage:
  filesystem:
    rootdirectory: {quoted(str(root))}
  maintenance:
    uploadpurging:
      enabled: false
"""
    return text if upstream is None else f"{text}proxy:\n  remoteurl: {quoted(upstream)}\n"


def _make(scratch: Path, progress: Progress) -> Path:
    """Build the images in `scratch`; return the directory in it that must be kept."""
    packages, made = scratch / "packages", scratch / "registry"
    with debian.archive(debian.SUITE, scratch / "lists", progress) as options:
        debs = [debian.fetch_debs(recipe.packages, scratch / "debs", progress, options) for recipe in RECIPES]
    for recipe, files in zip(RECIPES, debs, strict=True):
        progress.note(f"building the image {recipe.name}")
        tree = scratch / recipe.repositories[0]
        for deb in files:
            debian.extract(deb, packages)
        _fill(tree, packages, recipe)
        image = oci.pack(tree, recipe.config)
        for repository, tag in product(recipe.repositories, recipe.tags):
            oci.store(made, repository, tag, image)
    return made


def _fill(tree: Path, packages: Path, recipe: Recipe) -> None:
    """Create the image's content in `tree`, from the files in `packages`."""
    for pattern in recipe.take:
        found = list(packages.glob(pattern))
        if not found:
            raise DmucError(
                f"building the container image {recipe.name}",
                f"There is no file {pattern} in the packages {', '.join(recipe.packages)}.",
                f"They must be as in Debian 12 ({debian.SUITE}), from {debian.mirror()}.",
            )
        for source in found:
            target = _place(tree, source.relative_to(packages))
            shutil.copy(source, target, follow_symlinks=False)
    for name, points_to in recipe.links.items():
        _place(tree, name).symlink_to(points_to)
    for name, text in recipe.files.items():
        _place(tree, name).write_text(text, "utf-8")
    for name, mode in recipe.directories.items():
        directory = _place(tree, name)
        directory.mkdir()
        directory.chmod(mode)


def _place(tree: Path, name: str | Path) -> Path:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
