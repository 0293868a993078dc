"""The controller manager: creates ReplicaSets for Deployments and Pods for ReplicaSets, among many other things.

The walk-through starts it with `--master`; with TLS it needs a kubeconfig. The key with which it signs the tokens of
Pods is the third way past the missing token (service_account=keys).
"""

from __future__ import annotations

from collections.abc import Sequence

from . import api_client, upgrade
from .choices import rbac_enabled
from .core import api
from .core.context import Context
from .core.daemon import Daemon
from .core.flags import Flag
from .core.ports import Port
from .core.probe import Http

PORT = Port("controller_manager", 10257)

# https://kubernetes.io/docs/concepts/storage/storage-classes/ ; pkg/volume/hostpath in kubernetes/kubernetes: the
# volumes are directories below /tmp/hostpath_pv.
_STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kubernetes.io/host-path",
}


def has_storage(context: Context) -> bool:
    """Return whether there is a default StorageClass: its volumes are on the machine's disk, in its own /tmp."""
    return not context.settings.on_host and not context.settings.uses_insecure_port


def _create_storage_class(context: Context) -> None:
    if has_storage(context):
        api.create(context, _STORAGE_CLASS)


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of the controller manager, with their reasons."""
    flags = [api_client.flag(context, "kube-controller-manager")]
    if context.settings.service_account == "keys":
        if not context.release_of("kube-apiserver").projected_tokens:
            why = "Private key that signs a token for each ServiceAccount; without the token no Pod is created."
            flags.append(Flag(f"--service-account-private-key-file={context.pki / 'sa.key'}", why))
        if context.settings.uses_insecure_port:  # else the CA is in the kubeconfig
            why = "CA certificate that Pods get with each token, to verify the API server with."
            flags.append(Flag(f"--root-ca-file={context.pki / 'ca.crt'}", why))
    if not context.settings.uses_insecure_port:
        why = "CA that signs the certificates of approved CertificateSigningRequests; without it none is issued."
        flags.append(Flag(f"--cluster-signing-cert-file={context.pki / 'ca.crt'}", why, "use"))
        why = "Private key of that CA."
        flags.append(Flag(f"--cluster-signing-key-file={context.pki / 'ca.key'}", why, "use"))
    if has_storage(context):
        why = "Creates volumes for PersistentVolumeClaims of the StorageClass `standard`: directories on the machine."
        flags.append(Flag("--enable-hostpath-provisioner", why, "use"))
    if context.settings.shares_host:
        why = "Directory of FlexVolume plugins, which the controller manager creates: by default in /usr/libexec."
        place = context.state / CONTROLLER_MANAGER.name / "volume-plugins"
        flags.append(Flag(f"--flex-volume-plugin-dir={place}/", why, "isolation"))
    if rbac_enabled(context):
        why = "Each controller uses its own ServiceAccount; RBAC's default roles are bound to those."
        flags.append(Flag("--use-service-account-credentials", why))
        why = "Requests at once; the default of 30, and then 20 per second, delays the start of the controllers by 4 s."
        flags.append(Flag("--kube-api-burst=300", why, "speed"))
    also_http = context.release_of("kube-controller-manager").controller_manager_http
    return [*flags, *api_client.server_flags(context, PORT, also_http=also_http)]


CONTROLLER_MANAGER = Daemon(
    name="controller_manager",
    doc="start the controller manager, which creates ReplicaSets and Pods for Deployments",
    program="kube-controller-manager",
    ports=(PORT,),
    flags=flags,
    needs=api_client.needs,
    after=lambda context: upgrade.if_upgrading(context, "apiserver"),
    ready=Http("https://127.0.0.1:{port}/healthz", own_ca=False, port=PORT),
    prepare=_create_storage_class,
    reads=lambda context: api_client.reads(context, flags(context)),
    causes={
        "no configuration has been provided": "The controller manager needs the API server's address: --kubeconfig or "
        "--master."
    },
)

PARTS = [CONTROLLER_MANAGER]
