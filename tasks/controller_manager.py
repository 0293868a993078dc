"""The controller manager: makes what is follow what is wanted. Of a Deployment it makes a ReplicaSet, of that Pods.

The slide gives it `--master`; with TLS it needs the kubeconfig. The key that it signs the Pods' tokens with is the
third way out of the missing token, and goes with service_account=keys.
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
    """The command line, and why."""
    flags = [way_in(context, "kube-controller-manager")]
    if context.settings.service_account == "keys":
        if not context.release_of("kube-apiserver").projected_tokens:
            why = "Signs a token for each ServiceAccount; without one a Pod waits for ever."
            flags.append(Flag(f"--service-account-private-key-file={context.pki / 'sa.key'}", why))
        if context.settings.uses_front_door:  # else it takes the CA from the kubeconfig
            why = "Goes with each token, so that Pods can trust the API server."
            flags.append(Flag(f"--root-ca-file={context.pki / 'ca.crt'}", why))
    if secure(context):
        why = "Each controller is somebody of its own: the roles that they need are given to those, not to it."
        flags.append(Flag("--use-service-account-credentials", why))
    if not context.settings.uses_front_door:
        why = "There is one: a new one need not wait 15 s until the old one's lease has ended."
        flags.append(Flag("--leader-elect=false", why, "speed"))
    if context.settings.on_host:
        flags.append(Flag("--bind-address=127.0.0.1", "The host's network is not ours: nobody else may ask."))
        if context.release_of("kube-controller-manager").controller_manager_http:
            flags.append(Flag("--port=0", "No second port without TLS."))
    if context.settings.free_ports:
        flags.append(Flag(f"--secure-port={context.port(PORT)}", "A free port: on the standard one may be another's."))
    return flags


CONTROLLER_MANAGER = Daemon(
    name="controller_manager",
    doc="start the controller manager, which makes Pods of Deployments",
    program="kube-controller-manager",
    ports=(PORT,),
    flags=flags,
    needs=needs,
    after=lambda context: upgrade.first(context, "apiserver"),
    ready=Http("https://127.0.0.1:{port}/healthz", own_ca=False, port=PORT),
    reads=lambda context: [*files_of(flags(context)), etcd.identity(context)],
    causes={
        "no configuration has been provided": "It needs to know where the API server is: --kubeconfig or --master."
    },
)

PARTS = [CONTROLLER_MANAGER]
