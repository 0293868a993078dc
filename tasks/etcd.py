"""etcd: the database in which the API server keeps every object. Nobody else talks to it.

On the slide it is started as `etcd`, and so it is here: it listens on 127.0.0.1:2379 and keeps its data in
`default.etcd` in the directory that it is started in, which is var/dmuc1/etcd. There everybody on the machine can read
and change it. With security=rbac it listens to whoever has a certificate of its own CA: that is the API server. And
where there may be others beside it (machine=host.NAME) it is told where to listen.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from .choices import rbac_enabled
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.files import write_atomic
from .core.ports import Port
from .core.probe import Answer, Http, Tcp

PORT = Port("etcd", 2379)


def url(context: Context) -> str:
    """Where the API server finds it."""
    return f"http{'s' if rbac_enabled(context) else ''}://127.0.0.1:{context.port(PORT)}"


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
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
    """The file that is another one for every new, empty database.

    Such a one is another cluster: whoever knew the old one (the API server's caches, a kubelet that has registered)
    must start anew, and reads this file for that.
    """
    return context.state / "etcd" / "identity"


def _data(context: Context) -> Path:
    return context.state / "etcd" / "default.etcd"


def _identify(context: Context) -> None:
    if not (_data(context) / "member").exists() or not identity(context).exists():
        write_atomic(identity(context), f"{uuid.uuid4()}\n")


def _is_healthy(context: Context) -> Answer:
    return Http(f"{url(context)}/health", '"health":"true"', ca="etcd-ca", client="etcd")(context)


ETCD = Daemon(
    name="etcd",
    doc="start etcd, the database in which the API server stores every object",
    program="etcd",
    ports=(PORT,),
    flags=flags,
    needs=lambda context: ("machine", "binaries", *(["pki"] if rbac_enabled(context) else [])),
    answers=Tcp(PORT),  # the API server can start: it waits for the rest by itself
    ready=_is_healthy,
    reads=lambda context: files_of(flags(context)),
    prepare=_identify,
    keeps=lambda context: [_data(context)],
)

PARTS = [ETCD]
