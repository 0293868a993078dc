"""etcd: the database in which the API server keeps every object. Nobody else talks to it.

On the slide it is started as `etcd`, and so it is here: it listens on 127.0.0.1:2379 and keeps its data in
`default.etcd` in the directory that it is started in, which is var/dmuc1/etcd.
"""

from __future__ import annotations

from .core.daemon import Daemon
from .core.probe import Http, Tcp

ETCD = Daemon(
    name="etcd",
    doc="start etcd, the database in which the API server keeps everything",
    program="etcd",
    flags=lambda context: (),
    needs=("machine", "binaries"),
    answers=Tcp(2379),  # the API server can start: it waits for the rest by itself
    ready=Http("http://127.0.0.1:2379/health", expect='"health":"true"'),
    keeps=lambda context: [context.state / "etcd" / "default.etcd"],
    causes={
        "address already in use": "Another etcd has port 2379 or 2380.",
        "no space left on device": "The disk is full.",
    },
)

PARTS = [ETCD]
