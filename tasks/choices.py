"""Choices: what the user's settings and the release come to together, and what was asked for until it is taken back."""

from __future__ import annotations

from .core.context import Context
from .core.errors import DmucError
from .core.release import Release, cri_of_containerd

DNS_DECISION = "dns"  # "yes" once `doit dns` has been run, until it is taken back


def engine(context: Context) -> str:
    """The container engine: "docker" or "containerd"."""
    if context.settings.engine != "auto":
        return context.settings.engine
    return "docker" if context.release.dockershim else "containerd"


def rbac_enabled(context: Context) -> bool:
    """Whether each component is somebody of its own, who may do what it must and nothing else (security=rbac)."""
    if context.settings.security != "auto":
        return context.settings.security == "rbac"
    return context.release.security == "rbac" and not context.settings.uses_insecure_port


def wants_dns(context: Context) -> bool:
    """Whether the cluster is to have DNS: somebody has asked for it."""
    return context.decided(DNS_DECISION) == "yes"


def refuse_kubelet(context: Context, its: Release, containerd: str = "") -> None:
    """Raise DmucError when a kubelet of the release `its` cannot speak to the engine; `containerd` is its version."""
    if engine(context) == "docker" and not its.dockershim:
        said = (
            "engine=docker" if context.settings.engine != "auto" else f"Docker is the engine of {context.release.minor}"
        )
        seen = f"{said}: a kubelet of {its.minor} cannot speak to it; the last one that could is of 1.23."
        raise DmucError("choosing the container engine", seen, "Say engine=containerd.")
    if engine(context) == "containerd" and containerd and not {*its.cri} & {*cri_of_containerd(containerd)}:
        seen = f"A kubelet of {its.minor} speaks CRI {', '.join(its.cri)}, and containerd {containerd} does not."
        raise DmucError("choosing the container engine", seen, "Name another with containerd_bin=PATH, say of 1.7.")


def refuse_what_cannot_be(context: Context) -> None:
    """Raise DmucError when the release cannot do what the settings ask for."""
    row, chosen = context.release, context.settings
    tried = f"reading the settings for Kubernetes {chosen.kubernetes}"
    if "kubelet" not in chosen.programs:  # one's own may be of another release: it is asked when it is found
        refuse_kubelet(context, row)
    if chosen.proxy_mode not in row.proxy_modes and "kube-proxy" not in chosen.programs:  # one's own may be of another
        seen = f"proxy_mode={chosen.proxy_mode}: this kube-proxy has {', '.join(row.proxy_modes)}."
        raise DmucError(tried, seen, "nftables came with 1.29.")
    if chosen.proxy_mode == "ipvs" and not context.facts.has_ipvs:
        seen = "proxy_mode=ipvs: this kernel has no IPVS: no /proc/net/ip_vs, and no module ip_vs that could be loaded."
        raise DmucError(tried, seen, "Leave proxy_mode= out, or use a kernel with CONFIG_IP_VS.")
