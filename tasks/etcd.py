"""etcd: the database in which the API server keeps every object. Nobody else talks to it.

On the slide it is started as `etcd`, and so it is here: it listens on 127.0.0.1:2379 and keeps its data in
`default.etcd` in the directory that it is started in, which is var/dmuc1/etcd. Only where there may be others beside it
(machine=host.NAME) it is told where to listen.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from .core.context import Context
from .core.daemon import Daemon, Flag
from .core.ports import Port
from .core.probe import Http, Tcp

PORT = Port("etcd", 2379)


def url(context: Context) -> str:
    """Where the API server finds it."""
    return f"http://127.0.0.1:{context.port(PORT)}"


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    if not context.settings.free_ports:
        return ()
    return [
        Flag(f"--listen-client-urls={url(context)}", "A free port: on the standard one may be another's."),
        Flag(f"--advertise-client-urls={url(context)}", "Must be said with the other, though nobody asks for it."),
        Flag("--listen-peer-urls=http://127.0.0.1:0", "It has no peers: any port will do."),
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


ETCD = Daemon(
    name="etcd",
    doc="start etcd, the database in which the API server keeps everything",
    program="etcd",
    ports=(PORT,),
    flags=flags,
    needs=("machine", "binaries"),
    answers=Tcp(PORT),  # the API server can start: it waits for the rest by itself
    ready=Http("http://127.0.0.1:{port}/health", expect='"health":"true"', port=PORT),
    prepare=_identify,
    keeps=lambda context: [_data(context)],
)

PARTS = [ETCD]
