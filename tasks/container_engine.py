"""The container engine: runs the containers that the kubelet asks for. Docker, as in the walk-through, or containerd.

What each is stands in docker.py and containerd.py. `engine=` chooses, at any time: the other's containers end, and its
network goes, for both give the Pods addresses of the same range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from . import choices, upgrade
from .core.context import Context
from .core.daemon import Daemon
from .core.goal import resolve
from .core.probe import Chosen, Probe
from .engines import containerd, docker


class Engine(Protocol):
    """What docker.py and containerd.py are, both."""

    DAEMON: Daemon

    def pause_image(self, context: Context) -> str:
        """Give the name of the pod sandbox's image."""

    def has(self, image: str) -> Probe:
        """Ask whether the image is there."""

    def pull(self, context: Context, image: str) -> None:
        """Fetch it. Raises DmucError when it does not come."""

    def remove(self, context: Context, image: str) -> None:
        """Forget it."""


ENGINES: dict[str, Engine] = {"docker": docker, "containerd": containerd}
_USED = "engines"  # those that were started here, the last one last


def engine(context: Context) -> Engine:
    """The one that is chosen."""
    return ENGINES[choices.engine(context)]


def _daemon(context: Context) -> Daemon:
    return engine(context).DAEMON


def _used(context: Context) -> list[str]:
    return (context.decided(_USED) or choices.engine(context)).split()


def _keeps(context: Context) -> Sequence[Path]:
    names = dict.fromkeys([choices.engine(context), *_used(context)])
    return [path for name in names for path in ENGINES[name].DAEMON.keeps(context)]


def _prepare(context: Context) -> None:
    chosen, used = choices.engine(context), _used(context)
    if used[-1] != chosen:
        _take_back(context)
    context.decide(_USED, " ".join([*(name for name in used if name != chosen), chosen]))
    if (prepare := _daemon(context).prepare) is not None:
        prepare(context)


def _take_back(context: Context) -> None:
    last = ENGINES[_used(context)[-1]].DAEMON
    assert last.take_back is not None
    last.take_back(context)


CONTAINER_ENGINE = Daemon(
    name="container_engine",
    doc="start the container engine, which runs the containers: Docker or containerd",
    program=lambda context: _daemon(context).program_name(context),
    tools=lambda context: resolve(_daemon(context).tools, context),
    flags=lambda context: _daemon(context).flags(context),
    needs=("machine", "binaries", "upstream"),
    # Another engine ends all containers: it comes when the kubelet does.
    after=lambda context: upgrade.first(context, "controller_manager", "scheduler"),
    ready=Chosen(lambda context: _daemon(context).ready),
    writes=lambda context: _daemon(context).writes(context),
    prepare=_prepare,
    keeps=_keeps,
    take_back=_take_back,
    needs_root=True,
    causes={**docker.DAEMON.causes, **containerd.DAEMON.causes},
    grace=20.0,  # Docker ends its containers first
)

PARTS = [CONTAINER_ENGINE]
