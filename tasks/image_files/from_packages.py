"""Images that a user has built from Debian packages (`doit image`): the usual ones, and how any of them is made.

No script of a package runs, so what these would do is missing: users, alternatives, generated files. What nearly every
image needs is made here: /etc/passwd, the commands of busybox where no other package has them, CA certificates.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..core import debian
from ..core.errors import DmucError
from ..core.progress import Progress
from . import oci, recipes
from .names import Name
from .storage import Storage

_PARTS = ("layer", "config", "manifest")  # of an image in the cache
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into /usr, as Debian has them since 12
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian")
_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
"""
_GROUP = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Usual:
    """An image that needs no list of packages."""

    packages: tuple[str, ...]
    command: tuple[str, ...] = ("sh",)
    expose: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # beginnings of the names of packages that it depends on, but does not need


# What only the scripts of packages need, which do not run here.
_SCRIPTS_ONLY: tuple[str, ...] = (
    "perl",
    "libperl",
    "libnumber-",
    "libtext-",
    "libfile-",
    "dpkg",
    "debconf",
    "usrmerge",
    "adduser",
    "passwd",
)
_SCRIPTS_ONLY += ("init-system-helpers", "sysvinit-utils", "libpam", "libsemanage", "libgdbm")

_HTTPD = """\
ServerRoot /usr/lib/apache2
ServerName localhost
Listen 80
PidFile /run/httpd.pid
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule dir_module modules/mod_dir.so
LoadModule mime_module modules/mod_mime.so
TypesConfig /etc/mime.types
User www-data
Group www-data
ErrorLog /proc/self/fd/2
LogFormat "%h %l %u %t \\"%r\\" %>s %b" common
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
"""

# The names under which exercises use them.
USUAL = {
    "busybox": Usual(("busybox", "wget")),
    "alpine": Usual(("busybox", "wget")),
    "toolbox": Usual(
        (
            "bash",
            "busybox",
            "curl",
            "wget",
            "bind9-dnsutils",
            "iproute2",
            "iputils-ping",
            "netcat-openbsd",
            "jq",
            "ca-certificates",
        ),
        ("bash",),
    ),
    "httpd": Usual(
        ("apache2-bin", "busybox"),
        ("apache2", "-f", "/etc/apache2/httpd.conf", "-D", "FOREGROUND"),
        ("80/tcp",),
        {
            "etc/apache2/httpd.conf": _HTTPD,
            "etc/mime.types": "text/html html htm\ntext/plain txt\ntext/css css\n",
            "usr/local/apache2/htdocs/index.html": "<html><body><h1>It works!</h1></body></html>\n",
        },
    ),
    "redis": Usual(
        ("redis-server", "redis-tools", "busybox"),
        ("redis-server", "--protected-mode", "no"),
        ("6379/tcp",),
    ),
}


def usual(name: Name) -> Usual | None:
    """Return what the image with this name usually is; None when dmuc does not know that."""
    found = USUAL.get(name.path.rpartition("/")[2])
    return replace(found, without=_SCRIPTS_ONLY) if found else None


def build(name: Name, what: Usual, storage: Storage, cache: Path, scratch: Path, progress: Progress) -> None:
    """Build the image from Debian packages and all that they depend on, and store it.

    What was built once is taken from the directory `cache`, which needs no network. Needs no root; everything else that
    it writes is below the directory `scratch`. Raise DmucError when a package is unknown or cannot be downloaded;
    OSError when a file cannot be written.
    """
    made_of = json.dumps([oci.FORMAT, oci.architecture(), debian.SUITE, asdict(what), _PASSWD, _GROUP])
    kept = cache / "packages" / hashlib.sha256(made_of.encode()).hexdigest()[:12]
    if kept.is_dir():
        progress.note(f"{name} has been built before: {kept}")
        image = oci.Image(*((kept / part).read_bytes() for part in _PARTS))
    else:
        image = _built(name, what, scratch, progress)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=kept.parent) as directory:
            complete = Path(directory, "complete")
            complete.mkdir()
            for part in _PARTS:
                (complete / part).write_bytes(getattr(image, part))
            with contextlib.suppress(FileExistsError):
                complete.rename(kept)
    oci.store(storage.root, name.path, name.tag, image)
    storage.tag(name, oci.digest(image.manifest))


def _built(name: Name, what: Usual, scratch: Path, progress: Progress) -> oci.Image:
    tree = Path(tempfile.mkdtemp(prefix="tree-", dir=scratch))
    with debian.archive(debian.SUITE, scratch / "lists", progress) as options:
        packages = debian.with_dependencies(what.packages, progress, options)
        if not packages:
            raise DmucError(f"building the image {name}", f"apt-get found nothing for {' '.join(what.packages)}.")
        packages = [one for one in packages if one in what.packages or not one.startswith(what.without)]
        debs = debian.fetch_debs(packages, scratch / "debs", progress, options)
    progress.note(f"unpacking {len(debs)} packages")
    for deb in debs:
        debian.extract(deb, tree)
        deb.unlink()
    progress.note(f"building the image {name}")
    _complete(tree, what)
    return oci.pack(tree, oci.ImageConfig(cmd=what.command, env={"PATH": _PATH}, expose=what.expose))


def _complete(tree: Path, what: Usual) -> None:
    for place in _NOT_NEEDED:
        shutil.rmtree(tree / place, ignore_errors=True)
    for top in _MERGED:
        _merge(tree, top)
    for name, mode in {"root": 0o755, "run": 0o755, "tmp": 0o1777, "var/tmp": 0o1777, "etc": 0o755}.items():
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name).chmod(mode)
    for name, text in {"etc/passwd": _PASSWD, "etc/group": _GROUP, **what.files}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, "utf-8")
    if (tree / "usr/bin/busybox").exists():
        for command in recipes.BUSYBOX_COMMANDS.split():
            places = [tree / "usr" / directory / command for directory in ("bin", "sbin")]
            if not any(place.exists() or place.is_symlink() for place in places):
                places[0].symlink_to("busybox")
    for alternative, program in (("nc", "nc.openbsd"), ("awk", "mawk"), ("redis-server", "redis-check-rdb")):
        link = tree / "usr/bin" / alternative
        if (tree / "usr/bin" / program).is_file() and (not link.exists() or link.readlink() == Path("busybox")):
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    certificates = sorted((tree / "usr/share/ca-certificates").rglob("*.crt"))
    if certificates:
        bundle = tree / "etc/ssl/certs/ca-certificates.crt"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_bytes(b"".join(file.read_bytes() for file in certificates))


def _merge(tree: Path, top: str) -> None:
    """Move what is in the directory /bin and so on to /usr/bin, and put a link in its place."""
    source, target = tree / top, tree / "usr" / top
    if source.is_dir() and not source.is_symlink():
        for path in sorted(source.rglob("*")):
            place = target / path.relative_to(source)
            if path.is_dir() and not path.is_symlink():
                place.mkdir(parents=True, exist_ok=True)
            elif not place.is_symlink() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
        shutil.rmtree(source)
    if target.is_dir():
        source.symlink_to(f"usr/{top}")


def described(packages: Sequence[str], command: Sequence[str], known: Usual | None) -> Usual | None:
    """Return what an image is made of: the usual, with what the user has named instead; None without any package."""
    if not packages:
        if known is None:
            return None
        return replace(known, command=tuple(command) or known.command)
    return Usual(tuple(packages), tuple(command) or ("sh",))
