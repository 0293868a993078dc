"""The container engine: runs the containers of Pods. Docker, as in the walk-through, or containerd.

The engines are defined in engines/docker.py and engines/containerd.py. `engine=` chooses one, and can be changed at any
time: the other engine's containers are stopped and its network is removed, because both use the same range of addresses
for Pods.
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
    """The interface of an engine: a module such as docker.py or containerd.py."""

    DAEMON: Daemon

    def pause_image(self, context: Context) -> str:
        """Return the name of the image for Pod sandboxes."""

    def has(self, image: str) -> Probe:
        """Return a probe that asks the engine whether it has the image."""

    def pull(self, context: Context, image: str) -> None:
        """Pull the image. Raise DmucError when that fails."""

    def remove(self, context: Context, image: str) -> None:
        """Remove the image from the engine."""


ENGINES: dict[str, Engine] = {"docker": docker, "containerd": containerd}
_USED = "engines"  # the engines that have been started on this machine, the last one last


def engine(context: Context) -> Engine:
    """Return the chosen engine."""
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
    # A change of the engine stops all containers, so in an upgrade it comes as late as the kubelet.
    after=lambda context: upgrade.first(context, "controller_manager", "scheduler"),
    ready=Chosen(lambda context: _daemon(context).ready),
    writes=lambda context: _daemon(context).writes(context),
    prepare=_prepare,
    keeps=_keeps,
    take_back=_take_back,
    needs_root=True,
    causes={**docker.DAEMON.causes, **containerd.DAEMON.causes},
    grace=20.0,  # Docker stops its containers first
)

PARTS = [CONTAINER_ENGINE]
