"""Debian's package manager: install packages, download packages, and download source packages."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DmucError, Interrupted
from .machine import SYSTEM_PATH
from .progress import Progress

if TYPE_CHECKING:
    from plumbum.machines.base import PopenWithAddons

_SOURCES = Path("/etc/apt")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITE = "bookworm"  # Debian 12: images and Kubernetes are made from its packages, whatever the host is
KEYS = "debian-archive-keyring"  # the package with this file
# URLs in a file of apt's sources, in both of its formats (sources.list(5)).
_URL = re.compile(r"(?m)^(?:URIs:|deb(?:-src)?[ \t]+(?:\[[^\]]*\][ \t]+)?)[ \t]*(\S+)")
# dpkg runs maintainer scripts from here, so this is never mounted noexec, as /tmp or /run may be.
_DPKG = Path("/var/lib/dpkg")

# The programs with which maintainer scripts start and enable services (see their manual pages). During an installation
# they are replaced by scripts that do nothing and exit with 0.
_NOTHING = ("deb-systemd-invoke", "invoke-rc.d", "systemctl", "update-rc.d")
# The replacement of deb-systemd-helper. To was-enabled it answers no. For such a unit the scripts call update-state,
# which only records in /var/lib/systemd/deb-systemd-helper-enabled that the unit is known. That must happen: otherwise
# the package's next upgrade takes the unit for a new one, and enables and starts it.
_HELPER = """#!/bin/sh
case " $* " in
*" was-enabled "*) exit 1 ;;
*" update-state "*) exec /usr/bin/deb-systemd-helper "$@" ;;
esac
"""
# Messages of apt-get when its package lists are missing or older than the mirror.
_OLD_LISTS = re.compile("Unable to locate package|has no installation candidate|maybe run apt-get update")
# The lines of apt-get's output that are shown while it runs.
_NEWS = re.compile("^(?:Get:|Unpacking |Setting up |Waiting ).*", re.MULTILINE)


_WITHOUT = """Use what needs no package of Debian: programs of your own (bin_dir=DIRECTORY) or downloaded ones
(obtain=download), and images from a registry (registry=URL)."""


def available() -> bool:
    """Return whether this host has apt-get."""
    return shutil.which("apt-get") is not None


def install(packages: Sequence[str], progress: Progress) -> None:
    """Install `packages` without their Recommends. No service is started, or enabled at boot.

    Raise DmucError when dmuc does not run as root or apt-get fails. Raise Interrupted when the run ends meanwhile, but
    only after apt-get has ended cleanly.
    """
    names = " ".join(packages)
    _check_available(f"installing the Debian packages {names}")
    if os.geteuid() != 0:
        raise DmucError(
            f"installing the Debian packages {names}",
            "Only root can install packages.",
            f"Run dmuc as root, or: sudo apt-get install --no-install-recommends {names}\n"
            "(which also starts their services; dmuc does not).",
        )
    progress.note(f"install {names}")
    with tempfile.TemporaryDirectory(prefix="dmuc-", dir=_DPKG) as directory:
        write_replacements(Path(directory))
        options = (
            f"DPkg::Path={directory}:{SYSTEM_PATH}",
            "DPkg::Lock::Timeout=120",  # seconds to wait for another apt
            # Keep a configuration file that was changed on this host: dpkg cannot ask the user about it.
            "DPkg::Options::=--force-confold",
        )
        command = ("install", "-y", "--no-install-recommends", *packages)
        try:
            _apt_get(*command, options=options, progress=progress)
        except DmucError as error:
            if not _OLD_LISTS.search(error.seen):
                raise
            _apt_get("update", progress=progress)
            _apt_get(*command, options=options, progress=progress)


def write_replacements(directory: Path) -> None:
    """Write into `directory` the programs that, first in PATH, keep maintainer scripts from starting services."""
    for name in (*_NOTHING, "deb-systemd-helper"):
        script = directory / name
        script.write_text(_HELPER if name == "deb-systemd-helper" else "#!/bin/sh\n", "utf-8")
        script.chmod(0o755)


def fetch_debs(packages: Sequence[str], into: Path, progress: Progress, options: Sequence[str] = ()) -> list[Path]:
    """Download the .deb files of `packages` (candidate versions) into the directory `into`; return their paths.

    Needs no root. `options` are of apt-get, such as those of `archive`. The order is apt-get's. Files that exist
    already are kept. Raise DmucError when apt-get does not know a package or cannot download it.
    """
    progress.note(f"downloading {' '.join(packages)}")
    into.mkdir(parents=True, exist_ok=True)
    # One line for each package: 'URI' FILE SIZE HASH
    uris = _apt_get("download", "--print-uris", *packages, options=options, progress=progress)
    _apt_get("download", *packages, options=options, progress=progress, directory=into)
    return [into / name for name in re.findall(r"^'[^']*' (\S+) ", uris, re.MULTILINE)]


def with_dependencies(packages: Sequence[str], progress: Progress, options: Sequence[str]) -> list[str]:
    """Return the names of these packages and of all that they depend on, without Recommends.

    `options` are those of `archive`, for which no package is installed yet. Raise DmucError when apt-get does not know
    a package, or some cannot be installed together.
    """
    progress.note(f"looking for {' '.join(packages)}")
    said = _apt_get(
        "install", "-y", "--no-install-recommends", "--print-uris", *packages, options=options, progress=progress
    )
    return re.findall(r"^'[^']*' ([a-z0-9][a-z0-9.+-]*)_\S+\.deb ", said, re.MULTILINE)


def extract(deb: Path, into: Path) -> None:
    """Unpack the files of a .deb below the directory `into`, without installing it. Raise DmucError on failure."""
    from plumbum import CommandNotFound, ProcessExecutionError, local

    try:
        local["dpkg-deb"]("-x", deb, into)
    except (CommandNotFound, ProcessExecutionError) as error:
        raise DmucError(f"unpacking {deb} into {into}", getattr(error, "stderr", "").strip() or str(error)) from None


@contextlib.contextmanager
def archive(suite: str, scratch: Path, progress: Progress) -> Iterator[Sequence[str]]:
    """Yield options with which apt-get sees the packages and sources of one release of Debian, whatever the host is.

    `suite` is the release's name, such as bookworm. The host's own configuration, lists and packages stay as they are,
    and only tell the mirror. The lists are below `scratch` while the body runs. Raise DmucError when apt-get fails.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="apt-", dir=scratch) as directory:
        private = Path(directory)
        for name in ("sources", "lists", "cache"):
            (private / name).mkdir()
        (private / "status").touch()  # no package is installed
        signed = f"[signed-by={_KEYRING}]"  # Debian's, and on other distributions that of the package of this name
        entries = (f"{kind} {signed} {mirror()} {suite} main\n" for kind in ("deb", "deb-src"))
        (private / "sources" / "debian.list").write_text("".join(entries), "utf-8")
        options = (
            "Dir::Etc::sourcelist=/dev/null",
            f"Dir::Etc::sourceparts={private / 'sources'}",
            f"Dir::State::lists={private / 'lists'}",
            f"Dir::State::status={private / 'status'}",
            f"Dir::Cache={private / 'cache'}",
            "Acquire::Languages=none",
        )
        progress.note(f"reading the lists of Debian {suite}")
        _apt_get("update", options=options, progress=progress)
        yield options


def mirror() -> str:
    """Return the URL of the mirror of Debian that this host uses; of Debian's own where it uses none."""
    texts = (
        file.read_text("utf-8", "replace")
        for file in (_SOURCES / "sources.list", *sorted(_SOURCES.glob("sources.list.d/*")))
        if file.suffix in (".list", ".sources") and file.is_file()
    )
    urls = (url for text in texts for url in _URL.findall(text))
    return next(
        (url.rstrip("/") for url in urls if url.rstrip("/").endswith("/debian")), "http://deb.debian.org/debian"
    )


def fetch_source(package: str, into: Path, progress: Progress, options: Sequence[str] = ()) -> Path:
    """Download the source package `package` and unpack it, patched, in the directory `into`; return its directory.

    Needs dpkg-dev, but no root; `options` are those of `archive`. Raise DmucError when apt-get fails.
    """
    progress.note(f"downloading the source of {package}")
    into.mkdir(parents=True, exist_ok=True)
    said = _apt_get("source", package, options=options, progress=progress, directory=into)
    tree = re.search(r"info: extracting \S+ in (\S+)", said)
    if not tree:
        raise DmucError(f"unpacking the source of {package} in {into}", _tail(said, 10), "Is dpkg-dev installed?")
    return into / tree[1]


def _apt_get(*arguments: str, progress: Progress, options: Sequence[str] = (), directory: Path = Path("/")) -> str:
    """Run apt-get in `directory`; return its output. Raise DmucError when it fails, Interrupted when the run ends."""
    from plumbum import local

    tried = f"apt-get {' '.join(arguments)}"
    _check_available(tried)
    apt_get = local["apt-get"]["-q", *(word for option in options for word in ("-o", option)), *arguments]
    with tempfile.NamedTemporaryFile() as output:
        process = apt_get.popen(
            cwd=str(directory),
            env={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},  # added to dmuc's own environment
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            new_session=True,  # so that Ctrl-C in the terminal does not reach dpkg
        )
        try:
            while process.poll() is None:
                if progress.stop.wait(0.1):
                    raise Interrupted(tried, "the run was interrupted")
                if news := _NEWS.findall(Path(output.name).read_text("utf-8", "replace")):
                    progress.note(news[-1][:100])
        finally:
            _end(process)
        said = Path(output.name).read_text("utf-8", "replace")
    if process.returncode:
        raise DmucError(
            tried,
            f"exit code {process.returncode}\n{_tail(said, 10)}",
            "If a package cannot be found or downloaded: check that apt-get update works on this machine.",
        )
    return said


def _check_available(tried: str) -> None:
    if not available():
        raise DmucError(tried, "There is no apt-get: this is not a Debian system.", _WITHOUT)


def _end(process: PopenWithAddons[str]) -> None:
    """End apt-get, if it still runs, and wait for its end. It obeys SIGINT at once, but not while dpkg works."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    while process.poll() is None:
        # Even after several Ctrl-C: if dmuc ended here, the rest would be installed without the replacement programs.
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])
