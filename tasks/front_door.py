"""The front door: plain HTTP on localhost:8080, as the walk-through has it, where whoever knocks may do everything.

Up to 1.19 it is the API server's own; since 1.20 there is none, and `kubectl proxy` stands in front of the API server
and shows the administrator's certificate for everybody who comes. So it is only there when it is asked for
(front_door=on), and only inside the machine. With it, every command on the slides can be typed as printed, and the
components are started as they are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from .choices import kubeconfig
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.probe import Http

URL = "http://localhost:8080"


def way_in(context: Context, who: str) -> Flag:
    """The flag that tells the component `who` (its program's name) where the API server is."""
    if context.settings.uses_front_door:
        return Flag(f"--master={URL}", "Address of the API server: plain HTTP, without authentication.")
    why = "Address and CA of the API server, and the client certificate to authenticate with."
    return Flag(f"--kubeconfig={kubeconfig(context, who)}", why)


def needs(context: Context) -> Sequence[str]:
    """What a component needs to get to the API server."""
    return ("apiserver", "_front_door" if context.settings.uses_front_door else "kubeconfig")


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
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
