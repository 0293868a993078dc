"""The engine that the settings and the release come to, and whether a kubelet can use it."""

from __future__ import annotations

from .. import choices
from ..core.context import Context
from ..core.errors import DmucError
from ..core.release import Release
from . import containerd, docker
from .interface import Engine

ENGINES: dict[str, Engine] = {"docker": docker, "containerd": containerd}


def engine(context: Context) -> Engine:
    """Return the chosen engine."""
    return ENGINES[choices.engine(context)]


def refuse_kubelet(context: Context, its: Release, version: str = "") -> None:
    """Raise DmucError when a kubelet of the release `its` cannot use the engine, which is of this version if known."""
    chosen, said = engine(context), context.settings.engine
    tried, name = "choosing the container engine", chosen.NAME
    if not chosen.ENDPOINT and not its.dockershim:
        why = f"engine={said}" if said != "auto" else f"{name} is the engine of {context.release.minor}"
        seen = f"{why}: a kubelet of {its.minor} cannot use {name}; 1.23 is the last release that can."
        raise DmucError(tried, seen, "Use engine=containerd.")
    if chosen.ENDPOINT and version and not {*its.cri} & {*chosen.cri(version)}:
        seen = f"A kubelet of {its.minor} needs CRI {', '.join(its.cri)}, which {name} {version} does not have."
        raise DmucError(tried, seen, f"Use another with {choices.engine(context)}_bin=PATH, such as 1.7.")
