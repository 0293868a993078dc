"""Choices: what follows from the user's settings together with the release, and what the user has requested so far."""

from __future__ import annotations

from .core.context import Context
from .core.errors import DmucError

DNS_DECISION = "dns"  # "yes" after `doit dns`, until `doit clean dns`


def engine(context: Context) -> str:
    """Return the container engine: "docker" or "containerd"."""
    if context.settings.engine != "auto":
        return context.settings.engine
    return "docker" if context.release.dockershim else "containerd"


def rbac_enabled(context: Context) -> bool:
    """Return whether RBAC is on: each component has an identity of its own, with the permissions that it needs."""
    if context.settings.security != "auto":
        return context.settings.security == "rbac"
    return context.release.security == "rbac" and not context.settings.uses_insecure_port


def dns_enabled(context: Context) -> bool:
    """Return whether the user has requested cluster DNS."""
    return context.decided(DNS_DECISION) == "yes"


def refuse_impossible(context: Context) -> None:
    """Raise DmucError when the release, or the kernel, does not support what the settings ask for."""
    row, chosen = context.release, context.settings
    tried = f"reading the settings for Kubernetes {chosen.kubernetes}"
    if chosen.proxy_mode not in row.proxy_modes and "kube-proxy" not in chosen.programs:  # likewise
        seen = f"proxy_mode={chosen.proxy_mode}: this kube-proxy has {', '.join(row.proxy_modes)}."
        raise DmucError(tried, seen, "nftables came with 1.29.")
    if chosen.proxy_mode == "ipvs" and not context.facts.has_ipvs:
        seen = "proxy_mode=ipvs: this kernel has no IPVS: no /proc/net/ip_vs, and no module ip_vs that could be loaded."
        raise DmucError(tried, seen, "Leave out proxy_mode=, or use a kernel with CONFIG_IP_VS.")
