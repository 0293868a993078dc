"""The images of the walk-through, nginx and pause, made from Debian packages and kept as a registry's files.

`kubectl create deployment web --image=nginx` means nginx:latest, which kubelet asks the registry for each time. A
registry of our own, which the engine uses as its mirror, answers without any way out; this module is what it serves.
"""

from __future__ import annotations

import hashlib
import json
import platform
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
    """What an image holds: files of Debian packages, and what we add to them. All paths are relative to its `/`."""

    repositories: tuple[str, ...]  # under all of these it is served,
    tags: tuple[str, ...]  # with all of these
    packages: tuple[str, ...]
    take: tuple[str, ...]  # patterns; each must match something in the packages
    config: oci.ImageConfig
    links: Mapping[str, str] = field(default_factory=dict)  # name: what it points to
    files: Mapping[str, str] = field(default_factory=dict)  # name: text
    directories: Mapping[str, int] = field(default_factory=dict)  # name: mode

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.repositories[0]}:{self.tags[0]}"


# For `kubectl exec`, `docker run nginx echo` and a look around. wget, because the image has no curl.
BUSYBOX_COMMANDS = (
    "sh awk basename cat chmod chown cp cut date dd df dirname du echo env false find free grep gzip head hostname id "
    "ip kill less ln ls mkdir more mount mv nc netstat nslookup ping ps pwd readlink rm rmdir sed sleep sort stat sync "
    "tail tar tee test time timeout top touch tr traceroute true umount uname uniq uptime vi wc wget which whoami xargs"
)

# nginx.org's own image is the model: same page at the same place, same command, user and signal.
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
    ),
    take=(
        "usr/sbin/nginx",
        "etc/nginx/mime.types",
        "usr/share/nginx/html/index.html",
        "bin/busybox",
        # The libraries that nginx names (`objdump -p usr/sbin/nginx | grep NEEDED`), and what loads them.
        "**/ld-linux*.so.*",
        "**/libc.so.*",
        "**/libcrypt.so.*",
        "**/libcrypto.so.*",
        "**/libpcre2-8.so.*",
        "**/libssl.so.*",
        "**/libz.so.*",
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
        stop_signal="SIGQUIT",  # nginx ends its open requests first; on SIGTERM it drops them
    ),
)

PAUSE = Recipe(
    # As Docker asks for it, and as containerd asks a mirror for registry.k8s.io/pause and k8s.gcr.io/pause.
    repositories=("library/pause", "pause"),
    tags=("3.2", "3.4.1", "3.5", "3.6", "3.7", "3.8", "3.9", "3.10"),  # those that Kubernetes 1.19 to 1.36 know
    packages=("catatonit",),
    take=("usr/bin/catatonit",),
    links={"catatonit": "usr/bin/catatonit"},
    # Made for this: -P sleeps, reaps what is left to it, and ends on SIGTERM, all as process 1.
    config=oci.ImageConfig(entrypoint=("/catatonit", "-P")),
)

RECIPES = (NGINX, PAUSE)


def registry_root(cache: Path) -> Path:
    """Return the directory in `cache` that `build` makes, whether it is there yet or not.

    Its name is a digest of what the images hold, how they are packed, and the processor: when one of these changes,
    the images are built again, beside the old ones, which a registry may still be serving.
    """
    made_of = [oci.FORMAT, platform.machine(), *(asdict(recipe) for recipe in RECIPES)]
    return cache / "images" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]


def build(cache: Path, progress: Progress) -> Path:
    """Make the images, unless they are there already; give the root directory for a registry that serves them.

    The directory is either whole or absent, and nothing else stays in `cache`, also after a failure. Downloads
    packages (7 MB), takes a few seconds and needs no root rights.

    Raises DmucError when a package does not come, is not as expected, or the cache cannot be written.
    """
    root = registry_root(cache)
    if root.exists():
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=root.parent) as scratch:
            _make(Path(scratch), progress).rename(root)
    except OSError as error:
        if root.exists():  # another dmuc built it meanwhile; theirs is the same
            return root
        raise DmucError(
            f"making the container images in {root.parent}",
            str(error),
            "Check that this directory can be written to and has 100 MB free, then run the same command again.",
        ) from error
    return root


def registry_config(root: Path, listen: str, upstream: str | None) -> str:
    """Give the YAML text of docker-registry's configuration (distribution 2.8, docs/configuration.md).

    `root` is the directory it serves from and `listen` its HOST:PORT. Without `upstream` it serves what is there and
    takes nothing: it writes no file at all. With `upstream` (a registry's URL) it is a pull-through cache of that
    registry and keeps what it fetched in `root`, which must not be that of `build`. Seen with 2.8.2: it panics at its
    start when the upstream does not answer, and serves what it has when the upstream goes away later.
    """
    # The access log, one line per request, comes at any level.
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
    readonly:
      enabled: {json.dumps(upstream is None)}
    uploadpurging:
      enabled: false
"""
    return text if upstream is None else f"{text}proxy:\n  remoteurl: {quoted(upstream)}\n"


def _make(scratch: Path, progress: Progress) -> Path:
    """Do all the work in `scratch`; give the directory in it that is to be kept."""
    packages, made = scratch / "packages", scratch / "registry"
    for recipe in RECIPES:
        progress.note(f"making the image {recipe.name}")
        tree = scratch / recipe.repositories[0]
        for deb in debian.fetch_debs(recipe.packages, scratch / "debs", progress):
            debian.extract(deb, packages)
        _fill(tree, packages, recipe)
        image = oci.pack(tree, recipe.config)
        for repository, tag in product(recipe.repositories, recipe.tags):
            oci.store(made, repository, tag, image)
    return made


def _fill(tree: Path, packages: Path, recipe: Recipe) -> None:
    """Make the image's content in `tree` out of the packages' files in `packages`."""
    for pattern in recipe.take:
        found = list(packages.glob(pattern))
        if not found:
            raise DmucError(
                f"making the container image {recipe.name}",
                f"No file {pattern} in the packages {', '.join(recipe.packages)}.",
                "They are expected as in Debian 12. Check where apt gets its packages from: apt-cache policy nginx",
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
