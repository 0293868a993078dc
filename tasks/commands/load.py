"""`doit load IMAGE|FILE …`: bring images into the cluster, from engines of the host or from archives."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from doit import get_var

from .. import host_images, images
from ..container_engine import CONTAINER_ENGINE
from ..core import caller
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.lock import only_one
from ..core.machine import is_root
from ..core.progress import Progress, Silent
from ..image_files import archive, names
from ..image_files.names import Name
from ..image_files.storage import Storage
from ..registry import storage
from .base import Command

_USAGE = (
    "For example: scripts/doit load app:1.0, scripts/doit load app.tar, or docker save app:1.0 | scripts/doit load -"
)
_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".oci")


class Load(Command):
    """`doit load IMAGE|FILE …`."""

    doc_purpose = (
        "bring images into the cluster: from the host's Docker, podman or containerd, an archive, or - (stdin)"
    )
    doc_usage = "IMAGE|FILE|- ... [name=NAME]"
    doc_description = (
        "FILE is an archive of `docker save`, or an OCI archive. The images are kept until `clean`. "
        "name=NAME gives the one image of an archive another name."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Load the images, and print their names. Raise DmucError."""
        context = cluster.context
        refuse_without_engine(context, "loading images")
        if not arguments:
            raise DmucError("loading images", "The name of an image or of a file is needed.", _USAGE)
        name = names.parse(get_var("name")) if get_var("name") else None
        if name and len(arguments) > 1:
            raise DmucError("loading images", "name=NAME is for one image, and there are more.", _USAGE)
        with only_one(context), scratch(context) as directory:
            for argument in arguments:
                finish(context, _load(context, argument, name, directory), argument)
        return 0


def _load(context: Context, argument: str, name: Name | None, directory: Path) -> list[Name]:
    there = storage(context)
    if argument == "-":
        if sys.stdin.isatty():
            raise DmucError("loading from standard input", "It is a terminal, not an archive.", _USAGE)
        with _copied(sys.stdin.buffer, directory, "standard input") as file:
            return archive.load(file, "standard input", there, name)
    path = Path(caller.directory(os.environ), argument).expanduser()
    if path.exists() or argument.startswith(("/", ".", "~")) or argument.endswith(_ENDINGS):
        return _load_file(path, argument, there, name, directory)
    wanted = names.parse(argument)
    saved = directory / "saved.tar"
    print(f"  saving {argument}", flush=True)
    try:
        where = host_images.save(context, argument, wanted, saved, Silent(context.run.stop))
    except OSError as error:
        raise archive.unwritable(f"saving the image {argument}", directory, error) from error
    print(f"  from {where}", flush=True)
    with saved.open("rb") as file:
        # An image that is asked for by its ID, or that has several names, comes with the asked one.
        return archive.load(file, argument, there, name or wanted)


def _load_file(path: Path, argument: str, there: Storage, name: Name | None, directory: Path) -> list[Name]:
    tried = f"loading {argument}"
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            do = f"Of an OCI layout make an archive: tar -C {path} -cf - . | scripts/doit load -"
            raise DmucError(tried, "This is a directory, not an archive.", do)
        with path.open("rb") as file:
            if stat.S_ISREG(kind):
                return archive.load(file, argument, there, name)
            with _copied(file, directory, argument) as copy:
                return archive.load(copy, argument, there, name)
    except FileNotFoundError:
        raise DmucError(tried, f"There is no file {path}.", _USAGE) from None
    except OSError as error:
        raise DmucError(tried, f"{path}: {error.strerror}", "Check that the file can be read.") from error


@contextmanager
def _copied(stream: IO[bytes], directory: Path, called: str) -> Iterator[IO[bytes]]:
    """Yield a seekable copy of the stream."""
    with tempfile.TemporaryFile(dir=directory) as copy:
        try:
            shutil.copyfileobj(stream, copy, 1 << 20)
        except OSError as error:
            raise archive.unwritable(f"reading {called}", directory, error) from error
        copy.seek(0)
        yield copy


# What `load` and `image` share


def refuse_without_engine(context: Context, tried: str) -> None:
    """Raise DmucError for a cluster that can never run a container, and without the rights to write its files."""
    if context.settings.shares_host:
        seen = f"The cluster {context.settings.machine} has no container engine."
        raise DmucError(tried, seen, "Use a machine of its own: machine=NAME.")
    if not is_root():
        raise DmucError(tried, "The images belong to the machine, and so to root.", "Run the same as root (sudo).")


@contextmanager
def scratch(context: Context) -> Iterator[Path]:
    """Yield a directory below the registry's, for what is not to be kept. Raise DmucError when there can be none."""
    root = storage(context).root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in root.glob(".loading-*"):  # of a run that was killed; this one has the lock
            shutil.rmtree(old, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix=".loading-", dir=root))
    except OSError as error:
        raise archive.unwritable("loading images", root, error) from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def finish(context: Context, loaded: Sequence[Name], called: str) -> None:
    """Bring the images into the engine of every node that runs one, and say what there is. Raise DmucError."""
    later = bring_in(context, Silent(context.run.stop))
    for name in loaded:
        print(f"✓ {name} ({storage(context).loaded()[name.full][:19]})")
    if later:
        print(f"Kept for the next start of {', '.join(later)}: scripts/doit")


def bring_in(context: Context, progress: Progress) -> list[str]:
    """Bring loaded images into the engines that run; return the nodes whose engine does not run."""
    later = []
    for node in context.nodes:
        there = context.on(node.name)
        if there.machine.is_up() and CONTAINER_ENGINE.is_ready(there) and images.registry_answers(there):
            images.bring_in(there, progress)
        else:
            later.append(node.name)
    return later
