"""The service proxy: makes Services reachable. On each node it leads packets for a ClusterIP to a Pod of the Service.

It is kube-proxy, as in the walk-through (proxies/kube_proxy.py); another one is a module with the same interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .core.context import Context
from .core.daemon import Daemon
from .proxies import kube_proxy
from .proxies.netfilter import Table


class ServiceProxy(Protocol):
    """The interface of a service proxy: a module such as proxies/kube_proxy.py."""

    DAEMON: Daemon
    IDENTITY: str  # the name of its client certificate and of its kubeconfig

    def modes(self, context: Context) -> Mapping[str, str]:
        """Return the values of proxy_mode= that this release of it has, each with the feature gate that it needs."""

    def rules(self, context: Context) -> Mapping[str, Table] | None:
        """Return the rules that it has written, for `doit trace` and `doit why`; None when there are none.

        Raise DmucError when they cannot be read.
        """


PROXIES: dict[str, ServiceProxy] = {"kube-proxy": kube_proxy}


def proxy(context: Context) -> ServiceProxy:
    """Return the service proxy of the cluster."""
    return PROXIES["kube-proxy"]


TASK = kube_proxy.DAEMON.name
PARTS = [kube_proxy.DAEMON]
