"""etcd: the database in which the API server keeps every object. Nobody else talks to it.

On the slide it is started as `etcd`, and so it is here: it listens on 127.0.0.1:2379 and keeps its data in
`default.etcd` in the directory that it is started in, which is var/dmuc1/etcd. There everybody on the machine can read
and change it. With security=rbac it listens to whoever has a certificate of its own CA: that is the API server.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from .choices import secure
from .core.context import Context
from .core.daemon import Daemon, Flag, files_of
from .core.probe import Answer, Http, Tcp


def url(context: Context) -> str:
    """Where the API server finds it."""
    return f"http{'s' if secure(context) else ''}://127.0.0.1:2379"


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    if not secure(context):
        return ()
    pki = context.pki
    return [
        Flag(f"--listen-client-urls={url(context)}", "With TLS; by default it answers everybody."),
        Flag(f"--advertise-client-urls={url(context)}", "It insists on being told this, too."),
        Flag(f"--cert-file={pki / 'etcd.crt'}", "Who it is."),
        Flag(f"--key-file={pki / 'etcd.key'}", "The key to that certificate."),
        Flag(
            f"--trusted-ca-file={pki / 'etcd-ca.crt'}",
            "Who its clients are: whoever has a certificate of this CA, which the API server alone has.",
            "security",
        ),
        Flag(
            "--listen-peer-urls=unix://peers:0",
            "A socket in its own directory: it has no peers, and by default everybody can be one on port 2380.",
            "security",
        ),
    ]


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
        identity(context).write_text(f"{uuid.uuid4()}\n")


def _is_healthy(context: Context) -> Answer:
    return Http(f"{url(context)}/health", '"health":"true"', ca="etcd-ca", client="etcd")(context)


ETCD = Daemon(
    name="etcd",
    doc="start etcd, the database in which the API server keeps everything",
    program="etcd",
    flags=flags,
    needs=lambda context: ("machine", "binaries", *(["pki"] if secure(context) else [])),
    answers=Tcp(2379),  # the API server can start: it waits for the rest by itself
    ready=_is_healthy,
    reads=lambda context: files_of(flags(context)),
    prepare=_identify,
    keeps=lambda context: [_data(context)],
)

PARTS = [ETCD]
