"""The images in the engine: nginx, pause, whose container holds the namespaces of a Pod (the Pod sandbox), and loaded
ones (`doit load`).

The kubelet would pull nginx itself; pulling it earlier saves time. An image that was loaded again under the same name
must replace the old one in the engine, which the kubelet otherwise uses (imagePullPolicy IfNotPresent).
"""

from __future__ import annotations

import json
from pathlib import Path

from .container_engine import CONTAINER_ENGINE
from .core.context import Context
from .core.files import read_json, write_atomic
from .core.goal import Goal
from .core.graph import Part
from .core.probe import All
from .core.progress import Progress
from .core.result import Result
from .engines.chosen import engine
from .image_files.names import Name, parse
from .registry import LOCAL, REGISTRY, publish, storage, upstream
from .registry import PARTS as REGISTRY_PARTS

NGINX = "nginx:latest"
_LONGEST = 120  # characters of a list of images
_ADD = "One of your own: scripts/doit load IMAGE|FILE; one from Debian's packages: scripts/doit image NAME PACKAGE."


def _wanted(context: Context) -> list[str]:
    return [NGINX, engine(context).pause_image(context)]


def _are_there(context: Context) -> Result:
    there = All([engine(context).has(image) for image in _wanted(context)])(context)
    new = [str(name) for name in _new(context)] if there else []
    return Result(False, f"not in the engine yet: {', '.join(new)}") if new else there


def _pull(context: Context, progress: Progress) -> None:
    publish(context)
    for image in _wanted(context):
        progress.note(f"pulling {image}")
        engine(context).pull(context, image)
    bring_in(context, progress)


def _fetched(context: Context) -> Path:
    """The file with the loaded images that this engine has: their names and digests."""
    return context.node.state / f"images-{engine(context).NAME}.json"


def _new(context: Context) -> list[Name]:
    """The loaded images that this engine does not have yet, or has an older one of."""
    fetched = read_json(_fetched(context))
    return [parse(full) for full, digest in storage(context).loaded().items() if fetched.get(full) != digest]


def bring_in(context: Context, progress: Progress) -> None:
    """Bring every loaded image into the engine, which runs. Raise DmucError when that fails."""
    engine(context).know_registries(context)
    for name in _new(context):
        progress.note(f"pulling {name}")
        digest = storage(context).loaded()[name.full]
        engine(context).fetch(context, name)
        write_atomic(_fetched(context), json.dumps(read_json(_fetched(context)) | {name.full: digest}, indent=1))


def registry_answers(context: Context) -> Result:
    """Return whether the machine's registry answers."""
    return REGISTRY.is_ready(context)


def available(context: Context) -> str:
    """Return, for people, which images there are, and how to add one."""
    names = ", ".join(storage(context).names(LOCAL)) or "none"
    names = names if len(names) <= _LONGEST else f"{names[:_LONGEST].rpartition(', ')[0]}, …"
    more = f"; others come from {upstream(context)}" if upstream(context) else ""
    return f"Images that are here: {names}{more}. {_ADD}"


def _remove(context: Context) -> None:
    if context.machine.is_up() and CONTAINER_ENGINE.ready(context):
        for image in _wanted(context):
            engine(context).remove(context, image)


IMAGES = Goal(
    name="images",
    nodes="each",
    doc="pull the images into the engine: nginx, and pause for the Pod sandbox",
    holds=_are_there,
    make=_pull,
    undo=_remove,
    needs=("container_engine", "registry", "pull_through"),
)

PARTS: list[Part] = [*REGISTRY_PARTS, IMAGES]
