"""The registries: a small one in the machine and, if an upstream registry can be reached, a pull-through cache.

`--image=nginx` means nginx:latest, and for this tag the kubelet always asks the registry, whatever images the engine
has. So there must be a registry, which the engine uses as a mirror. Two can be running, both Debian's
`docker-registry`:

- `registry`, in the machine, always: it serves the images that users load or push, and, if no upstream registry can be
  reached, nginx, which is built from Debian's packages like the pause image (image_files/recipes.py). What it serves is
  below the cluster's state directory;
- `pull_through`, on the host at its end of the link, if an upstream registry can be reached: it fetches the images that
  it is asked for, and stores them in the cache. So the machine itself needs no route to other networks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from .core import caller
from .core.context import Context
from .core.daemon import Daemon
from .core.download import reachable
from .core.errors import DmucError
from .core.files import write_atomic
from .core.flags import Flag
from .core.goal import Goal
from .core.graph import Part
from .core.probe import Http
from .core.progress import Progress
from .core.result import Result
from .image_files import recipes
from .image_files.archive import unwritable
from .image_files.storage import Storage

LOCAL = "127.0.0.1:5000"
DOCKER_HUB = "https://registry-1.docker.io"
_NONE = "none"
_PROXY = "proxy of the registry"
_BUILT = "built"  # says which images of dmuc are in it


def upstream(context: Context) -> str | None:
    """Return the upstream registry; None when there is none, or when that is not decided yet."""
    decided = context.decided("registry")
    return None if decided == _NONE else decided


def pull_through_address(context: Context) -> str | None:
    """Return HOST:PORT of the pull-through cache; None when there is none."""
    return f"{context.settings.host_address}:5001" if upstream(context) else None


def mirrors(context: Context) -> list[str]:
    """Return the registries that the engine asks for an image, in this order: an image that was loaded comes first."""
    return [f"http://{mirror}" for mirror in (LOCAL, pull_through_address(context)) if mirror]


def storage(context: Context) -> Storage:
    """Return the files of the machine's registry; those of all nodes have the same."""
    return Storage(context.state / "registry")


def _wanted(context: Context) -> str | None:
    """Return what the setting registry= says; None for "auto"."""
    setting = context.settings.registry
    return {"auto": None, "local": _NONE}.get(setting, setting)


def _proxies(context: Context) -> Mapping[str, str]:
    """Return the proxy variables under which the upstream registry was decided, and is used."""
    found: Mapping[str, str] = json.loads(context.decided(_PROXY) or "{}")
    return found


def _is_decided(context: Context) -> Result:
    decided, wanted, proxies = context.decided("registry"), _wanted(context), caller.proxies(os.environ)
    if decided is None or wanted not in (None, decided):
        return Result(False, "it is not known yet where images come from")
    if decided == _NONE:
        return Result(True, "images are built from Debian's packages")
    if proxies and proxies != _proxies(context):
        return Result(False, "another proxy leads to the registry")
    return Result(True, f"images from {decided}{' through a proxy' if _proxies(context) else ''}")


def _decide(context: Context, progress: Progress) -> None:
    wanted = _wanted(context)
    if wanted is None:
        progress.note(f"trying to reach {DOCKER_HUB}")
        wanted = DOCKER_HUB if reachable(DOCKER_HUB) else _NONE
    context.decide(_PROXY, json.dumps(caller.proxies(os.environ)))
    context.decide("registry", wanted)
    progress.note(_is_decided(context).why)


UPSTREAM = Goal(
    name="upstream",
    hidden=True,
    doc="find out whether an upstream registry can be reached",
    holds=_is_decided,
    make=_decide,
)


def _content(context: Context) -> str:
    """Return what dmuc's own images in the registry must be: their directory's name, and whether nginx is one."""
    without = " without nginx" if upstream(context) else ""
    return f"{recipes.registry_root(context.settings.cache).name}{without}"


def are_built(context: Context) -> bool:
    """Return whether the cache has dmuc's own images, so that none is built."""
    return recipes.registry_root(context.settings.cache).is_dir()


def _is_built(context: Context) -> Result:
    marker = storage(context).root / _BUILT
    if not marker.is_file():
        return Result(False, f"{marker.parent} does not have them")
    same = marker.read_text("utf-8") == _content(context)
    return Result(same, str(marker.parent) if same else f"{marker.parent} has others")


def _build(context: Context, progress: Progress) -> None:
    recipes.build(context.settings.cache, progress)
    publish(context)


def publish(context: Context) -> None:
    """Let the machine's registry serve the images that were built in the cache. Raise DmucError when that fails."""
    there, built = storage(context), recipes.registry_root(context.settings.cache)
    if _is_built(context) or not built.is_dir():
        return
    try:
        there.take_over(built, but_not=recipes.NGINX.repositories[0] if upstream(context) else "")
        write_atomic(there.root / _BUILT, _content(context))
    except OSError as error:
        raise unwritable("copying the images of dmuc", there.root, error) from error


CONTENT = Goal(
    name="image_content",
    hidden=True,
    doc="build the images from Debian's packages",
    holds=_is_built,
    make=_build,
    needs=("upstream",),
)


def _local_files(context: Context) -> Mapping[Path, str]:
    config = recipes.registry_config(storage(context).root, LOCAL, None)
    return {context.node.state / "registry.yml": config}


REGISTRY = Daemon(
    name="registry",
    nodes="each",
    hidden=True,
    doc="start the registry that serves the images of dmuc and of its user",
    program="docker-registry",
    flags=lambda context: (
        Flag("serve", "Subcommand of docker-registry: run the registry."),
        Flag(str(context.node.state / "registry.yml"), "Configuration file: the address and the directory to serve."),
    ),
    needs=("machine", "binaries", "image_content"),
    ready=Http(f"http://{LOCAL}/v2/"),
    writes=_local_files,
    keeps=lambda context: [storage(context).root] if context.node is context.nodes[0] else [],
)


def _cache_files(context: Context) -> Mapping[Path, str]:
    config = recipes.registry_config(
        context.settings.cache / "pulled", pull_through_address(context) or "", upstream(context) or ""
    )
    return {context.state / "pull-through.yml": config}


def _reachable(context: Context) -> Result:
    # At the host's end of the link: that is where the machine reaches it.
    return Http(f"http://{pull_through_address(context)}/v2/")(context)


def _do_without(context: Context, error: DmucError) -> str:
    """Decide on images built from Debian's packages where the user leaves the choice to dmuc; return why."""
    if _wanted(context) is not None:
        return ""
    last = error.seen.strip().splitlines()[-1].strip()
    context.decide("registry", _NONE)
    return f"images are built from Debian's packages, as the cache of {DOCKER_HUB} does not start: {last}"


PULL_THROUGH = Daemon(
    name="pull_through",
    hidden=True,
    doc="start the pull-through cache of the upstream registry",
    program="docker-registry",
    flags=lambda context: (
        Flag("serve", "Subcommand of docker-registry: run the registry."),
        Flag(str(context.state / "pull-through.yml"), "Configuration file: the address and the upstream registry."),
    ),
    needs=("machine", "binaries", "upstream"),
    on_host=True,
    disabled_because=lambda context: "" if upstream(context) else "no upstream registry can be reached",
    ready=_reachable,
    writes=_cache_files,
    environment=_proxies,
    do_without=_do_without,
    causes={
        "panic: ": "The cache does not start when its upstream registry does not answer. Another one: registry=URL; "
        "images built from Debian's packages, without any: registry=local.",
    },
)

PARTS: list[Part] = [UPSTREAM, CONTENT, REGISTRY, PULL_THROUGH]
