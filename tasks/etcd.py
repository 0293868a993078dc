"""etcd: the database in which the API server stores every object; the API server is its only client.

The walk-through starts `etcd` without flags, and so does security=none: etcd then listens on 127.0.0.1:2379, stores its
data in `default.etcd` in the directory that it is started in (var/dmuc1/etcd), and any process on the machine can read
and change the data. With security=rbac, etcd requires client certificates of a CA of its own, which the API server has.
Beside other clusters (machine=host.NAME), etcd listens on a free port.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .choices import rbac_enabled
from .core.context import Context
from .core.daemon import Daemon
from .core.files import write_atomic
from .core.flags import Flag, files_of
from .core.ports import Port
from .core.probe import Http, Tcp
from .core.release import minor_of
from .core.result import Result

PORT = Port("etcd", 2379)


def url(context: Context) -> str:
    """Return the URL at which the API server reaches etcd."""
    return f"http{'s' if rbac_enabled(context) else ''}://127.0.0.1:{context.port(PORT)}"


def flags(context: Context) -> Sequence[Flag]:
    """Return the flags of etcd, with their reasons."""
    if not rbac_enabled(context) and not context.settings.shares_host:
        return ()
    free = "A free port, because the standard one may be in use."
    flags = [
        Flag(
            f"--listen-client-urls={url(context)}", free if context.settings.shares_host else "Serves clients over TLS."
        ),
        Flag(
            f"--advertise-client-urls={url(context)}",
            "Required together with --listen-client-urls; no client uses it here.",
        ),
        Flag(
            "--listen-peer-urls=unix://peers:0",
            "This etcd has no peers. The Unix socket replaces port 2380, where any local process could act as a peer.",
            "security",
        ),
    ]
    if rbac_enabled(context):
        flags += [
            Flag(f"--cert-file={context.pki / 'etcd.crt'}", "Serving certificate of etcd."),
            Flag(f"--key-file={context.pki / 'etcd.key'}", "Private key of the serving certificate."),
            Flag(
                f"--trusted-ca-file={context.pki / 'etcd-ca.crt'}",
                "Clients must show a certificate of this CA, which signs only for etcd and the API server.",
                "security",
            ),
        ]
    return flags


def identity(context: Context) -> Path:
    """Return the file whose content is different for every new, empty database.

    A new database means a new cluster: components that knew the old one (the API server with its caches, a kubelet that
    has registered) must be restarted. So they list this file as one that they read.
    """
    return context.state / "etcd" / "identity"


def _data(context: Context) -> Path:
    return context.state / "etcd" / "default.etcd"


def _identify(context: Context) -> None:
    import uuid

    if not (_data(context) / "member").exists() or not identity(context).exists():
        write_atomic(identity(context), f"{uuid.uuid4()}\n")


def _is_healthy(context: Context) -> Result:
    path, expect = "health", '"health":"true"'
    if (0, 0) < minor_of(context.version_of("etcd")) < (3, 5):
        # There /health writes a request of the old API (v2) into the log of the database (checkHealth in
        # etcdserver/api/etcdhttp/metrics.go), and etcd 3.6 starts with no log that has one. The version of the cluster
        # is told once the database accepts writes.
        path, expect = "version", r'"etcdcluster":"\d'
    return Http(f"{url(context)}/{path}", expect, ca="etcd-ca", client="etcd")(context)


_OF_3_4 = (
    "etcd 3.4 has written this data, and 3.6 does not read all of it. Run etcd 3.5 once, with "
    "etcd_flags=--snapshot-count=1, then 3.6 with etcd_flags=. Or delete all objects: scripts/doit clean etcd."
)
_NEWER = (
    "A newer etcd has written this data, and an older one does not read it. Name the newer one: etcd_bin=PATH. "
    "Or delete all objects: scripts/doit clean etcd."
)

ETCD = Daemon(
    name="etcd",
    doc="start etcd, the database in which the API server stores every object",
    program="etcd",
    ports=(PORT,),
    flags=flags,
    needs=lambda context: ("machine", "binaries", *(["pki"] if rbac_enabled(context) else [])),
    started=Tcp(PORT),  # enough for the API server to start, which waits for the rest
    ready=_is_healthy,
    reads=lambda context: files_of(flags(context)),
    prepare=_identify,
    keeps=lambda context: [_data(context)],
    # https://etcd.io/docs/v3.6/upgrades/upgrade_3_6/
    causes={
        "detected disallowed v2 WAL": _OF_3_4,
        "cannot be downgraded|invalid downgrade": _NEWER,
    },
)

PARTS = [ETCD]
