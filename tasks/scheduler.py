"""The scheduler: gives each Pod a node, by creating a Binding. Even with only one node somebody must decide."""

from __future__ import annotations

from collections.abc import Sequence

from . import etcd
from .core.context import Context
from .core.daemon import Daemon, Flag
from .core.probe import Http


def flags(context: Context) -> Sequence[Flag]:
    """The command line, and why."""
    flags = [
        Flag(f"--kubeconfig={context.state / 'kubeconfig'}", "Where the API server is, and who we are."),
        Flag("--leader-elect=false", "There is one: a new one need not wait 15 s until the old one's lease has ended."),
    ]
    if context.settings.on_host:
        flags.append(Flag("--bind-address=127.0.0.1", "The host's network is not ours: nobody else may ask."))
        flags.append(Flag("--port=0", "No second port without TLS."))
    return flags


SCHEDULER = Daemon(
    name="scheduler",
    doc="start the scheduler, which gives each Pod a node",
    program="kube-scheduler",
    flags=flags,
    needs=("apiserver", "kubeconfig"),
    ready=Http("https://127.0.0.1:10259/healthz", own_ca=False),
    reads=lambda context: [context.state / "kubeconfig", etcd.identity(context)],
)

PARTS = [SCHEDULER]
