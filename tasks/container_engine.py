"""The container engine: runs the containers of Pods. Docker, as in the walk-through, or containerd.

The engines are defined in engines/docker.py and engines/containerd.py. `engine=` chooses one, and can be changed at any
time: the other engine's containers are stopped and its network is removed, because both use the same range of addresses
for Pods.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from . import choices, upgrade
from .core import iptables, ownership
from .core.context import Context
from .core.daemon import Daemon
from .core.errors import DmucError
from .core.goal import resolve
from .core.machine import Machine, run
from .core.probe import Chosen
from .engines import containerd, docker
from .engines.chosen import ENGINES, engine
from .engines.interface import SHIMS

_USED = "engines"  # the engines that have been started on this machine, the last one last


def _daemon(context: Context) -> Daemon:
    return engine(context).DAEMON


def _used(context: Context) -> list[str]:
    return (context.decided(context.of_node(_USED)) or choices.engine(context)).split()


def _keeps(context: Context) -> Sequence[Path]:
    names = dict.fromkeys([choices.engine(context), *_used(context)])
    return [path for name in names for path in ENGINES[name].DAEMON.keeps(context)]


def _prepare(context: Context) -> None:
    chosen, used = choices.engine(context), _used(context)
    if used[-1] != chosen:
        _clean_up(context)
    if not context.machine.disposable:
        _claim(Path(ENGINES[chosen].TRACES.run), context)
    context.decide(context.of_node(_USED), " ".join([*(name for name in used if name != chosen), chosen]))
    if (prepare := _daemon(context).prepare) is not None:
        prepare(context)


def _claim(directory: Path, context: Context) -> None:
    """Make the directory ours. Raises DmucError when there is something in it that is not."""
    # Shims have their sockets in /run/containerd/s, whatever directory their containerd has: Docker's, too.
    machine, place = context.machine, context.machine.path(directory)
    there = [path for path in place.iterdir() if path.name != "s"] if place.is_dir() else []
    if there and not ownership.is_ours(machine, directory, context.state):
        raise DmucError(
            f"starting container_engine on {context.machine.name}",
            f"{directory} already exists and was not created by dmuc.",
            f"Use a machine of its own (machine=NAME), or find out which program uses {directory}, and move it away.",
        )
    ownership.claim(context.machine, directory, context.state)


def _clean_up(context: Context) -> None:
    """End the containers of the engine that was used last, and remove its traces; what it stores stays.

    On the host they are ours only while our mark is in its directory in /run, so that is removed last.
    """
    traces, machine = ENGINES[_used(context)[-1]].TRACES, context.machine
    machine.processes.kill_heirs(CONTAINER_ENGINE.record(context))
    directory = Path(traces.run)
    if not machine.disposable:
        if not ownership.is_ours(machine, directory, context.state):
            return
        _refuse_others(directory, machine)
    ownership.unmount_below(machine, directory)
    _remove_bridge(context, traces.bridge)
    iptables.remove(machine, traces.chains)
    for file in traces.files(machine):
        file.unlink()
    if machine.path(directory).is_dir():
        ownership.empty(machine, directory)
        machine.path(directory).rmdir()


def _refuse_others(directory: Path, machine: Machine) -> None:
    """Raise DmucError when an engine that is not ours, or a container of it, uses the directory."""
    if sockets := ownership.sockets_below(machine, directory):
        raise DmucError(
            f"removing what is in {directory} on {machine.name}",
            f"dmuc's engine has ended, but another process has a socket there: {sockets[0]}.",
            "See which with `ss -lxp`, stop it, and run clean again.\n"
            f"What is in {directory} is removed then; to keep it, remove the file {ownership.MARK} there first.",
        )


def _remove_bridge(context: Context, name: str) -> None:
    """Remove the bridge if its address is the one that ours has."""
    ours = str(ipaddress.ip_network(context.node.pod_range)[1])
    for link in json.loads(run(context.machine, "ip", "-json", "-4", "address")):
        if link.get("ifname") == name and ours in {address["local"] for address in link["addr_info"]}:
            run(context.machine, "ip", "link", "delete", name)


CONTAINER_ENGINE = Daemon(
    name="container_engine",
    nodes="each",
    doc="start the container engine, which runs the containers: Docker or containerd",
    program=lambda context: _daemon(context).program_name(context),
    tools=lambda context: resolve(_daemon(context).tools, context),
    outlived_by=SHIMS,
    flags=lambda context: _daemon(context).flags(context),
    needs=("machine", "binaries", "upstream"),
    # A change of the engine stops all containers, so in an upgrade it comes as late as the kubelet.
    after=lambda context: upgrade.if_upgrading(context, "controller_manager", "scheduler"),
    ready=Chosen(lambda context: _daemon(context).ready),
    writes=lambda context: _daemon(context).writes(context),
    environment=lambda context: _daemon(context).environment(context),
    prepare=_prepare,
    keeps=_keeps,
    clean_up=_clean_up,
    rival=Chosen(lambda context: ENGINES[_used(context)[-1]].DAEMON.ready),
    needs_root=True,
    causes={**docker.DAEMON.causes, **containerd.DAEMON.causes},
    passing="timeout waiting for containerd to start",  # dockerd waits 15 s for it, and one CPU can be busy for longer
    grace=20.0,  # Docker ends its containerd first
)

PARTS = [CONTAINER_ENGINE]
