"""Clients of the API server: the flag by which a component finds the server and authenticates, its needs, its files.

The flag names a kubeconfig with the component's own client certificate, or with the administrator's (security=none).
With insecure_port=on it is http://localhost:8080, where clients do not authenticate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import etcd
from .choices import rbac_enabled
from .core.context import Context
from .core.flags import Flag, files_of
from .core.ports import Port
from .insecure_port import KUBECTL_PROXY

INSECURE_URL = "http://localhost:8080"


def kubeconfig(context: Context, who: str) -> Path:
    """Return the kubeconfig of the component `who` (its program's name) on this node."""
    if context.settings.uses_insecure_port:
        return in_home(context)
    return context.node.state / "kubeconfigs" / who if rbac_enabled(context) else administrators(context)


def administrators(context: Context) -> Path:
    """Return the administrator's kubeconfig, with which any kubectl on the host works, too."""
    return context.state / "kubeconfig"


def in_home(context: Context) -> Path:
    """Return the default kubeconfig of kubectl in the machine."""
    return context.home / ".kube" / "config"


def flag(context: Context, who: str) -> Flag:
    """Return the flag that tells the component `who` (its program's name) where the API server is."""
    if context.settings.uses_insecure_port:
        return Flag(f"--master={INSECURE_URL}", "Address of the API server: plain HTTP, without authentication.")
    why = "Address and CA of the API server, and the client certificate to authenticate with."
    return Flag(f"--kubeconfig={kubeconfig(context, who)}", why)


def needs(context: Context) -> Sequence[str]:
    """Return the tasks that a client of the API server needs, if RBAC's roles say what the client may do."""
    return (*needs_without_roles(context), "roles")


def needs_without_roles(context: Context) -> Sequence[str]:
    """Return the tasks that a client of the API server needs, if the API server allows its requests without roles."""
    if context.settings.uses_insecure_port:
        return ("apiserver", "kubectl_proxy")
    # A proxy that runs although the insecure port must be closed: its task stops it.
    to_stop = ("kubectl_proxy",) if KUBECTL_PROXY.process(context) else ()
    return ("apiserver", "kubeconfig", *to_stop)


def reads(context: Context, flags: Sequence[Flag]) -> list[Path]:
    """Return the files of a client of the API server; when one changes, the client must be restarted.

    These are the files that its flags name, and the identity of etcd's database: a new database is a new cluster.
    """
    return [*files_of(flags), etcd.identity(context)]


def server_flags(context: Context, port: Port, *, also_http: bool) -> list[Flag]:
    """Return the flags that the controller manager and the scheduler have in common: their ports, no leader election.

    `also_http`: in this release they open a second port, which serves plain HTTP.
    """
    flags = []
    if not context.settings.uses_insecure_port:
        why = "Single instance: skips waiting up to 15 s for the old lease after a restart."
        flags.append(Flag("--leader-elect=false", why, "speed"))
    if context.settings.on_host:
        why = "Listens on localhost only; by default other hosts can connect to it over the network."
        flags.append(Flag("--bind-address=127.0.0.1", why))
        if also_http:
            flags.append(Flag("--port=0", "Closes the second port, which serves plain HTTP."))
    if context.settings.shares_host:
        why = "A free port, because the standard one may be in use."
        flags.append(Flag(f"--secure-port={context.port(port)}", why))
    return flags
