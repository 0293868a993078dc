"""The interface of a container engine: what docker.py and containerd.py are, both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.context import Context
from ..core.daemon import Daemon
from ..core.iptables import Chains
from ..core.machine import Machine
from ..core.probe import Probe
from ..image_files.names import Name

# The parents of the containers. They go on while the engine is restarted; the names are those of containerd's releases.
SHIMS = ("containerd-shim-runc-v2", "containerd-shim-runc-v1", "containerd-shim")


@dataclass(frozen=True)
class Traces:
    """What an engine leaves on the machine when it ends, beside what it stores."""

    run: str  # the directory in /run that it works in
    bridge: str  # the link that its containers are on
    chains: Chains
    files: Callable[[Machine], Iterable[Any]] = lambda machine: ()  # paths in directories that others use, too


class Engine(Protocol):
    """The interface of an engine: a module such as docker.py or containerd.py."""

    NAME: str  # for people
    DAEMON: Daemon
    TRACES: Traces
    ENDPOINT: str  # the socket on which it serves CRI to the kubelet; "": the kubelet itself talks to it (dockershim)
    USES_CNI: bool  # whether it connects Pods to the network with CNI plugins (cni.py)

    def cri(self, version: str) -> Sequence[str]:
        """Return the versions of CRI that an engine of this version serves."""

    def pause_image(self, context: Context) -> str:
        """Return the name of the image for Pod sandboxes."""

    def has(self, image: str) -> Probe:
        """Return a probe that asks the engine whether it has the image."""

    def pull(self, context: Context, image: str) -> None:
        """Pull the image. Raise DmucError when that fails."""

    def fetch(self, context: Context, image: Name) -> None:
        """Pull an image from the machine's own registry, under its whole name. Raise DmucError when that fails."""

    def know_registries(self, context: Context) -> None:
        """Let the running engine ask the machine's registry for the images of every registry of which one is loaded."""

    def remove(self, context: Context, image: str) -> None:
        """Remove the image from the engine."""
