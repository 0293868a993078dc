"""The images, in the engine: nginx, and the pause image, whose container holds a Pod's namespaces (the pod sandbox).

The kubelet would pull nginx by itself, since it asks for nginx:latest; having it there already saves the time.
"""

from __future__ import annotations

from .core.context import Context
from .core.goal import Goal
from .core.graph import Part
from .core.machine import run
from .core.probe import All, Answer, Http
from .core.progress import Progress
from .registry import PARTS as REGISTRY_PARTS

NGINX = "nginx:latest"


def _has(image: str) -> Http:
    return Http(f"unix:///run/docker.sock:/images/{image}/json")


def _are_there(context: Context) -> Answer:
    return All([_has(NGINX), _has(context.release.pause_image)])(context)


def _pull(context: Context, progress: Progress) -> None:
    docker, deadline = str(context.bin / "docker"), context.settings.deadline_of("images")
    pause = context.release.pause_image
    progress.note(f"docker pull {NGINX}")
    run(context.machine, docker, "pull", NGINX, timeout=deadline)
    # The registry has it under its plain name: engines ask mirrors only for what has no registry in its name.
    plain = pause.rpartition("/")[2]
    progress.note(f"docker pull {plain}")
    run(context.machine, docker, "pull", plain, timeout=deadline)
    run(context.machine, docker, "tag", plain, pause, timeout=deadline)


def _remove(context: Context) -> None:
    if context.machine.down() is None and Http("unix:///run/docker.sock:/_ping")(context):
        docker = str(context.bin / "docker")
        pause = context.release.pause_image
        run(
            context.machine,
            "sh",
            "-c",
            '"$@" || true',
            "sh",
            docker,
            "rmi",
            "-f",
            NGINX,
            pause,
            pause.rpartition("/")[2],
        )


IMAGES = Goal(
    name="images",
    doc="have the images in the engine: nginx, and the pause image of the pod sandbox",
    holds=_are_there,
    make=_pull,
    undo=_remove,
    needs=("container_engine", "_registry", "_pull_through"),
)

PARTS: list[Part] = [*REGISTRY_PARTS, IMAGES]
