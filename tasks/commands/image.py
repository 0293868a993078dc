"""`doit image NAME [PACKAGE …]`: build an image from Debian packages, where no registry can be reached."""

from __future__ import annotations

import shlex

from doit import get_var

from ..core.cluster import Cluster
from ..core.errors import DmucError
from ..core.lock import only_one
from ..core.progress import Silent
from ..image_files import archive, from_packages, names
from ..registry import storage
from .base import Command
from .load import finish, refuse_without_engine, scratch

_LONGEST = 100  # characters of a line


class Image(Command):
    """`doit image NAME [PACKAGE …] [command=COMMAND]`."""

    doc_purpose = "build an image from Debian packages, and bring it into the cluster"
    doc_usage = "NAME [PACKAGE ...] [command='COMMAND ...']"
    doc_description = (
        f"These need no PACKAGE: {', '.join(from_packages.USUAL)}. The image has a shell only if a package has one, "
        "such as busybox or bash. The default command is sh."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Build the image, and print its name. Raise DmucError."""
        context = cluster.context
        refuse_without_engine(context, "building an image")
        known = ", ".join(from_packages.USUAL)
        if not arguments:
            raise DmucError("building an image", "A name is needed, and packages.", f"These need no packages: {known}.")
        name = names.parse(arguments[0])
        tried = f"building the image {name}"
        try:
            command = shlex.split(get_var("command", ""))
        except ValueError as error:
            raise DmucError(tried, f"command={get_var('command')}: {error}", "Quote it as for a shell.") from None
        what = from_packages.described(arguments[1:], command, from_packages.usual(name))
        if what is None:
            example = f"scripts/doit image {name} PACKAGE ... (as `apt-cache search` finds them)"
            raise DmucError(tried, "No package is named.", f"For example: {example}. These need no packages: {known}.")
        with only_one(context), scratch(context) as directory:
            try:
                there, cache = storage(context), context.settings.cache
                from_packages.build(name, what, there, cache, directory, _Lines(context.run.stop))
            except OSError as error:
                raise archive.unwritable(tried, directory, error) from error
            finish(context, [name], str(name))
        return 0


class _Lines(Silent):
    """A Progress that prints each step once, and nothing of apt-get's own."""

    def note(self, text: str) -> None:
        """Print the line."""
        if not text.startswith(("Get:", "Unpacking ", "Setting up ", "Waiting ")):
            print(f"  {text if len(text) <= _LONGEST else f'{text[: _LONGEST - 2]} …'}", flush=True)
