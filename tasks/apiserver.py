"""The API server: kubectl and all components connect to it, and it alone connects to etcd.

The walk-through starts it with `--etcd-servers` only, because Kubernetes 1.19 still serves plain HTTP on port 8080
without authentication. Since 1.20 the API server requires TLS, client authentication, and keys for the tokens of Pods;
most of the other flags name the files for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import etcd
from .choices import rbac_enabled
from .core import api
from .core.context import Context
from .core.daemon import Daemon
from .core.flags import Flag, files_of
from .core.goal import Goal
from .core.graph import Part
from .core.ports import API
from .core.probe import Http, wait_or_fail
from .core.progress import Progress
from .core.result import Result
from .pki import FRONT_PROXY, FRONT_PROXY_CA


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of the API server, with their reasons."""
    pki, settings = context.pki, context.settings
    flags = [
        Flag(
            f"--etcd-servers={etcd.url(context)}",
            "The API server stores every object in etcd, and does not start without it.",
        ),
        Flag(
            f"--service-cluster-ip-range={settings.service_range}",
            "ClusterIPs come from this range (service_range=); the host has a route to it.",
        ),
        Flag(
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            "Serving certificate, signed by the cluster CA; its SANs are every name and address of the API server.",
        ),
        Flag(f"--tls-private-key-file={pki / 'apiserver.key'}", "Private key of the serving certificate."),
        Flag(f"--client-ca-file={pki / 'ca.crt'}", "Clients authenticate with certificates signed by this CA."),
        Flag(f"--service-account-key-file={pki / 'sa.pub'}", "Public key that verifies ServiceAccount tokens."),
    ]
    row = context.release_of("kube-apiserver")
    if row.needs_token_keys:
        issuer = "https://kubernetes.default.svc"
        flags += [
            Flag(
                f"--service-account-signing-key-file={pki / 'sa.key'}",
                "Private key that signs the ServiceAccount tokens issued by the API server.",
            ),
            Flag(f"--service-account-issuer={issuer}", "Issuer named in those tokens; required since 1.20."),
        ]
    if row.insecure_port and not settings.uses_insecure_port:
        why = "Turns off plain HTTP on localhost:8080, which up to 1.19 has no authentication and no authorization."
        flags.append(Flag("--insecure-port=0", why, "security"))
    client = "apiserver-kubelet-client" if rbac_enabled(context) else "admin"
    why = "Client certificate for requests to the kubelet (`kubectl logs` and `exec`)."
    flags += [
        Flag(f"--kubelet-client-certificate={pki / f'{client}.crt'}", why, "use"),
        Flag(f"--kubelet-client-key={pki / f'{client}.key'}", "Private key of that client certificate.", "use"),
    ]
    if rbac_enabled(context):
        flags += _with_rbac(pki)
    flags += _aggregation(pki)
    why = "Allows Pods with privileged containers; which Pods a user may create is up to RBAC and admission."
    flags.append(Flag("--allow-privileged=true", why, "use"))
    if settings.service_account == "disabled":
        why = "Pods get no ServiceAccount, and so need no token (service_account=disabled)."
        flags.append(Flag("--disable-admission-plugins=ServiceAccount", why))
    if settings.on_host:
        why = "Listens on localhost only; by default other hosts can connect to it over the network."
        flags.append(Flag("--bind-address=127.0.0.1", why))
    if settings.shares_host:
        why = "A free port, because the standard one may be in use."
        flags.append(Flag(f"--secure-port={context.port(API)}", why))
    return flags


def _with_rbac(pki: Path) -> Sequence[Flag]:
    return [
        Flag(
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            "CA to verify the kubelet's serving certificate with; by default any server on its port is trusted.",
            "security",
        ),
        Flag(
            "--authorization-mode=Node,RBAC",
            "RBAC authorizes requests by roles; Node lets a kubelet read what its Pods need. The default allows all.",
        ),
        Flag(
            "--enable-admission-plugins=NodeRestriction",
            "A kubelet can change only its own Node and the Pods bound to it.",
            "security",
        ),
        Flag(f"--etcd-cafile={pki / 'etcd-ca.crt'}", "CA to verify etcd's serving certificate with."),
        Flag(
            f"--etcd-certfile={pki / 'apiserver-etcd-client.crt'}", "Client certificate for etcd, which requires one."
        ),
        Flag(f"--etcd-keyfile={pki / 'apiserver-etcd-client.key'}", "Private key of the client certificate for etcd."),
    ]


def _aggregation(pki: Path) -> Sequence[Flag]:
    """Return the flags with which the API server passes requests on to the API servers that APIServices name.

    https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/
    """
    header = "Header with {} of the user who has sent the request."
    return [
        Flag(
            f"--proxy-client-cert-file={pki / f'{FRONT_PROXY}.crt'}",
            "Client certificate for requests to the API servers that APIServices name, such as metrics-server.",
            "use",
        ),
        Flag(f"--proxy-client-key-file={pki / f'{FRONT_PROXY}.key'}", "Private key of that client certificate.", "use"),
        Flag(
            f"--requestheader-client-ca-file={pki / f'{FRONT_PROXY_CA}.crt'}",
            "CA of that certificate; those API servers read it from a ConfigMap of this one.",
            "use",
        ),
        Flag(
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "Only this client may say in headers for which user it asks; by default each that the CA has signed.",
            "security",
        ),
        Flag("--requestheader-username-headers=X-Remote-User", header.format("the name"), "use"),
        Flag("--requestheader-group-headers=X-Remote-Group", header.format("the groups"), "use"),
        Flag("--requestheader-extra-headers-prefix=X-Remote-Extra-", header.format("further attributes"), "use"),
    ]


APISERVER = Daemon(
    name="apiserver",
    doc="start the API server, to which kubectl and all other components connect",
    program="kube-apiserver",
    ports=(API,),
    flags=flags,
    needs=("machine", "binaries", "pki", "etcd"),
    started=Http("{server}/version"),
    ready=Http("{server}/readyz"),
    meanwhile=api.import_client,  # the tasks that come next create objects
    reads=lambda context: [*files_of(flags(context)), etcd.identity(context)],
    grace=2.0,  # on SIGTERM it waits for its clients' watches, which do not end; and without etcd for ever
    causes={
        "etcd-servers must be specified": "The API server stores everything in etcd and needs etcd's address.",
        "no kind .* is registered for version": "The data in etcd is of a later release, and this API server cannot "
        "read it: use the later release (kubernetes=), or start with an empty cluster (scripts/doit clean).",
        "no default routes found": "The API server takes its address from the default route, and there is none.",
    },
)

_ROLES = "/readyz/poststarthook/rbac/bootstrap-roles"


def _has_roles(context: Context) -> Result:
    return Http(f"{{server}}{_ROLES if rbac_enabled(context) else '/version'}")(context)


def _await_roles(context: Context, progress: Progress) -> None:
    deadline = context.settings.deadline_of("apiserver")
    wait_or_fail(context, _has_roles, deadline=deadline, progress=progress, tried="waiting for RBAC's default roles")


# The API server creates them within seconds of its start. A client whose requests RBAC refuses until then gives up. The
# kubelet need not wait: the authorizer Node knows by itself what a kubelet may do.
ROLES = Goal(
    name="roles",
    hidden=True,
    doc="wait until RBAC's default roles exist, which allow the other components their requests",
    holds=_has_roles,
    make=_await_roles,
    needs=("apiserver",),
    needs_started=True,
)

PARTS: list[Part] = [APISERVER, ROLES]
