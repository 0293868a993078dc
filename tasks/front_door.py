"""The front door: plain HTTP on localhost:8080, as in the walk-through, without authentication and authorization.

Up to 1.19 the API server itself serves this port. Since 1.20 `kubectl proxy` serves it, and passes on each request with
the administrator's certificate. So the front door exists only if requested (front_door=on), and only inside the
machine. With it, every command of the walk-through works as printed, and the components get the walk-through's flags.
"""

from __future__ import annotations

from collections.abc import Sequence

from .choices import kubeconfig
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.probe import Http

URL = "http://localhost:8080"


def way_in(context: Context, who: str) -> Flag:
    """Return the flag that tells the component `who` (a program's name) where the API server is."""
    if context.settings.uses_front_door:
        return Flag(f"--master={URL}", "Address of the API server: plain HTTP, without authentication.")
    why = "Address and CA of the API server, and the client certificate to authenticate with."
    return Flag(f"--kubeconfig={kubeconfig(context, who)}", why)


def needs(context: Context) -> Sequence[str]:
    """Return the tasks that a component needs to reach the API server."""
    return ("apiserver", "_front_door" if context.settings.uses_front_door else "kubeconfig")


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of `kubectl proxy`, with their reasons."""
    pki = context.pki
    return [
        Flag("proxy", "Subcommand of kubectl: a proxy in front of the API server."),
        Flag(f"--server={context.server}", "Address of the API server."),
        Flag(f"--certificate-authority={pki / 'ca.crt'}", "CA to verify the API server's serving certificate with."),
        Flag(f"--client-certificate={pki / 'admin.crt'}", "Admin certificate used for every proxied request."),
        Flag(f"--client-key={pki / 'admin.key'}", "Private key of the admin certificate."),
        Flag("--port=8080", "Port that the walk-through uses, and kubectl's default without a kubeconfig."),
        Flag("--reject-paths=^$", "Rejects no path; the default rejects `kubectl exec` and `attach`."),
    ]


def _is_unwanted(context: Context) -> str:
    if not context.settings.uses_front_door:
        return "front_door=off"
    return "the API server serves plain HTTP itself" if context.release_of("kube-apiserver").insecure_port else ""


FRONT_DOOR = Daemon(
    name="_front_door",
    doc="open the front door: plain HTTP on localhost:8080 in the machine, without authentication",
    program="kubectl",
    flags=flags,
    needs=("apiserver", "pki"),
    ready=Http("http://127.0.0.1:8080/version"),
    unwanted=_is_unwanted,
    reads=lambda context: files_of(flags(context)),
)

PARTS = [FRONT_DOOR]
