"""The controller manager: creates ReplicaSets for Deployments and Pods for ReplicaSets, among many other things.

The walk-through starts it with `--master`; with TLS it needs a kubeconfig. The key with which it signs the tokens of
Pods is the third way past the missing token (service_account=keys).
"""

from __future__ import annotations

from collections.abc import Sequence

from . import etcd, upgrade
from .choices import secure
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.ports import Port
from .core.probe import Http
from .front_door import needs, way_in

PORT = Port("controller_manager", 10257)


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of the controller manager, with their reasons."""
    flags = [way_in(context, "kube-controller-manager")]
    if context.settings.service_account == "keys":
        if not context.release_of("kube-apiserver").projected_tokens:
            why = "Private key that signs a token for each ServiceAccount; without the token no Pod is created."
            flags.append(Flag(f"--service-account-private-key-file={context.pki / 'sa.key'}", why))
        if context.settings.uses_front_door:  # else the CA is in the kubeconfig
            why = "CA certificate that Pods get with each token, to verify the API server with."
            flags.append(Flag(f"--root-ca-file={context.pki / 'ca.crt'}", why))
    if secure(context):
        why = "Each controller uses its own ServiceAccount; RBAC's default roles are bound to those."
        flags.append(Flag("--use-service-account-credentials", why))
    if not context.settings.uses_front_door:
        why = "Single instance: skips waiting up to 15 s for the old lease after a restart."
        flags.append(Flag("--leader-elect=false", why, "speed"))
    if context.settings.on_host:
        why = "Listens on localhost only; by default other hosts can connect to it over the network."
        flags.append(Flag("--bind-address=127.0.0.1", why))
        if context.release_of("kube-controller-manager").controller_manager_http:
            flags.append(Flag("--port=0", "Closes the second port, which serves plain HTTP."))
    if context.settings.free_ports:
        why = "A free port, because the standard one may be in use."
        flags.append(Flag(f"--secure-port={context.port(PORT)}", why))
    return flags


CONTROLLER_MANAGER = Daemon(
    name="controller_manager",
    doc="start the controller manager, which creates ReplicaSets and Pods for Deployments",
    program="kube-controller-manager",
    ports=(PORT,),
    flags=flags,
    needs=needs,
    after=lambda context: upgrade.first(context, "apiserver"),
    ready=Http("https://127.0.0.1:{port}/healthz", own_ca=False, port=PORT),
    reads=lambda context: [*files_of(flags(context)), etcd.identity(context)],
    causes={
        "no configuration has been provided": "The controller manager needs the API server's address: --kubeconfig or "
        "--master."
    },
)

PARTS = [CONTROLLER_MANAGER]
