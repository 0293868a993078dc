"""The insecure port: plain HTTP on localhost:8080, as in the walk-through, where every request is the administrator's.

Up to 1.19 the API server itself serves it. Since 1.20 it does not, and `kubectl proxy` runs in front of the API
server and shows the administrator's certificate with each request. So it is there only with insecure_port=on, and only
inside the machine. With it, every command of the walk-through can be typed as printed, and the components are started
with the walk-through's flags.
"""

from __future__ import annotations

from collections.abc import Sequence

from .core.context import Context
from .core.daemon import Daemon
from .core.flags import Flag, files_of
from .core.probe import Http


def flags(context: Context) -> Sequence[Flag]:
    """Return the command line, with the reason for each flag."""
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


def _disabled_because(context: Context) -> str:
    if not context.settings.uses_insecure_port:
        return "insecure_port=off"
    return "the API server serves plain HTTP itself" if context.release_of("kube-apiserver").insecure_port else ""


KUBECTL_PROXY = Daemon(
    name="kubectl_proxy",
    hidden=True,
    doc="start kubectl proxy: plain HTTP on localhost:8080 in the machine, without authentication",
    program="kubectl",
    flags=flags,
    needs=("apiserver", "pki"),
    ready=Http("http://127.0.0.1:8080/version"),
    disabled_because=_disabled_because,
    reads=lambda context: files_of(flags(context)),
)

PARTS = [KUBECTL_PROXY]
