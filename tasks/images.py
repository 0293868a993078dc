"""The images in the engine: nginx, and pause, whose container holds the namespaces of a Pod (the Pod sandbox).

The kubelet would pull nginx itself; pulling it earlier saves time.
"""

from __future__ import annotations

from .container_engine import CONTAINER_ENGINE
from .core.context import Context
from .core.goal import Goal
from .core.graph import Part
from .core.probe import All
from .core.progress import Progress
from .core.result import Result
from .engines.chosen import engine
from .registry import PARTS as REGISTRY_PARTS

NGINX = "nginx:latest"


def _wanted(context: Context) -> list[str]:
    return [NGINX, engine(context).pause_image(context)]


def _are_there(context: Context) -> Result:
    return All([engine(context).has(image) for image in _wanted(context)])(context)


def _pull(context: Context, progress: Progress) -> None:
    for image in _wanted(context):
        progress.note(f"pulling {image}")
        engine(context).pull(context, image)


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
