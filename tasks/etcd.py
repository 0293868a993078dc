"""etcd: the database in which the API server keeps every object. Nobody else talks to it.

On the slide it is started as `etcd`, and so it is here: it listens on 127.0.0.1:2379 and keeps its data in
`default.etcd` in the directory that it is started in, which is var/dmuc1/etcd.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from .core.context import Context
from .core.daemon import Daemon
from .core.probe import Http, Tcp


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
    flags=lambda context: (),
    needs=("machine", "binaries"),
    answers=Tcp(2379),  # the API server can start: it waits for the rest by itself
    ready=Http("http://127.0.0.1:2379/health", expect='"health":"true"'),
    prepare=_identify,
    keeps=lambda context: [_data(context)],
)

PARTS = [ETCD]
