"""The API server: everyone talks to it, and it alone to etcd.

The slide starts it with `--etcd-servers` alone, for Kubernetes 1.19 still answers on port 8080 without asking who you
are. From 1.20 on it insists on TLS and on knowing its clients and its Pods' tokens; each further flag is one of these
files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import etcd
from .choices import secure
from .core import api
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.ports import API
from .core.probe import Answer, Http


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    pki, settings = context.pki, context.settings
    flags = [
        Flag(f"--etcd-servers={etcd.url(context)}", "It keeps everything in etcd and cannot start without it."),
        Flag(
            f"--service-cluster-ip-range={settings.service_range}", "The ClusterIPs; the host reaches them through us."
        ),
        Flag(f"--tls-cert-file={pki / 'apiserver.crt'}", "Who it is: signed by our CA, with all its names."),
        Flag(f"--tls-private-key-file={pki / 'apiserver.key'}", "The key to that certificate."),
        Flag(f"--client-ca-file={pki / 'ca.crt'}", "Who its clients are: whoever has a certificate of our CA."),
        Flag(f"--service-account-key-file={pki / 'sa.pub'}", "Checks the tokens that Pods show."),
    ]
    row = context.release_of("kube-apiserver")
    if row.needs_token_keys:
        issuer = "https://kubernetes.default.svc"
        flags += [
            Flag(f"--service-account-signing-key-file={pki / 'sa.key'}", "Signs the tokens that it gives out itself."),
            Flag(f"--service-account-issuer={issuer}", "Stands in these tokens; required since 1.20."),
        ]
    if row.insecure_port and not settings.uses_front_door:
        why = "Up to 1.19 it answers on localhost:8080, too, and there everybody may do everything."
        flags.append(Flag("--insecure-port=0", why, "security"))
    client = "apiserver-kubelet-client" if secure(context) else "admin"
    who = "Who it is for the kubelet, which it asks for logs and for `kubectl exec`."
    flags += [
        Flag(f"--kubelet-client-certificate={pki / f'{client}.crt'}", who, "use"),
        Flag(f"--kubelet-client-key={pki / f'{client}.key'}", who, "use"),
    ]
    if secure(context):
        flags += _with_rbac(pki)
    if settings.service_account == "disabled":
        why = "It no longer gives each Pod a ServiceAccount, so none needs a token (service_account=disabled)."
        flags.append(Flag("--disable-admission-plugins=ServiceAccount", why))
    if settings.on_host:
        flags.append(Flag("--bind-address=127.0.0.1", "The host's network is not ours: nobody else may ask."))
    if settings.free_ports:
        flags.append(Flag(f"--secure-port={context.port(API)}", "A free port: on the standard one may be another's."))
    return flags


def _with_rbac(pki: Path) -> Sequence[Flag]:
    return [
        Flag(
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            "The kubelet, too, must show who it is, or whoever has its port reads what is typed there.",
            "security",
        ),
        Flag(
            "--authorization-mode=Node,RBAC",
            "Each may do what its role says, and a kubelet what its Pods need; by default everybody may do all.",
        ),
        Flag("--enable-admission-plugins=NodeRestriction", "A kubelet changes its own Node and Pods only.", "security"),
        Flag(f"--etcd-cafile={pki / 'etcd-ca.crt'}", "Tells that etcd is ours."),
        Flag(f"--etcd-certfile={pki / 'apiserver-etcd-client.crt'}", "Who it is for etcd, which knows nobody else."),
        Flag(f"--etcd-keyfile={pki / 'apiserver-etcd-client.key'}", "The key to that one."),
    ]


def _answers(context: Context) -> Answer:
    """Its clients can start: they try again by themselves. But whom it forbids too much for want of roles gives up."""
    path = "/readyz/poststarthook/rbac/bootstrap-roles" if secure(context) else "/version"
    return Http(f"{{server}}{path}")(context)


APISERVER = Daemon(
    name="apiserver",
    doc="start the API server, to which everyone talks",
    program="kube-apiserver",
    ports=(API,),
    flags=flags,
    needs=("machine", "binaries", "pki", "etcd"),
    answers=_answers,
    ready=Http("{server}/readyz"),
    prepare=api.load_ahead,  # whoever waits for it has something to create then
    reads=lambda context: [*files_of(flags(context)), etcd.identity(context)],
    grace=2.0,  # asked to end, it waits for its clients' watches, which never end; and without etcd for ever
    causes={
        "etcd-servers must be specified": "It keeps everything in etcd: tell it where that is.",
        "no kind .* is registered for version": "A later release has written to etcd what this one cannot read: "
        "go on with the later one (kubernetes=), or begin anew (scripts/doit clean).",
        "no default routes found": "It takes its own address from the default route, and there is none.",
    },
)

PARTS = [APISERVER]
