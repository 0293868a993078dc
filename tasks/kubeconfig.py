"""The kubeconfig: where the API server is, and who we are. Every component reads this one file, and so can you.

The slide writes `~/.kube/config` with three `kubectl config` commands. This is the same file with the CA and the
administrator's certificate inside, so that it can be copied anywhere; in the machine `~/.kube/config` is a link to it.
"""

from __future__ import annotations

import base64
from pathlib import Path

from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer
from .core.progress import Progress


def text(context: Context) -> str:
    """The file's content. Raises FileNotFoundError when the certificates are not there yet."""

    def embedded(name: str) -> str:
        return base64.b64encode((context.pki / name).read_bytes()).decode()

    name = context.settings.machine
    return f"""\
apiVersion: v1
kind: Config
current-context: {name}
contexts:
- name: {name}
  context:
    cluster: {name}
    user: admin
clusters:
- name: {name}
  cluster:
    server: https://{context.settings.address}:6443
    certificate-authority-data: {embedded("ca.crt")}
users:
- name: admin
  user:
    client-certificate-data: {embedded("admin.crt")}
    client-key-data: {embedded("admin.key")}
"""


def path(context: Context) -> Path:
    """Where it is: any kubectl on the host works with it, too."""
    return context.state / "kubeconfig"


def _link(context: Context) -> Path:
    return context.home / ".kube" / "config"


def _is_written(context: Context) -> Answer:
    try:
        same = path(context).read_text() == text(context) and _link(context).resolve() == path(context).resolve()
    except FileNotFoundError as error:
        return Answer(False, f"{error.filename} is not there")
    return Answer(same, f"kubectl --kubeconfig {path(context)}" if same else f"{path(context)} is not as wanted")


def _write(context: Context, progress: Progress) -> None:
    path(context).touch(mode=0o600)
    path(context).write_text(text(context))
    link = _link(context)
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path("../../kubeconfig"))


def _remove(context: Context) -> None:
    path(context).unlink(missing_ok=True)
    _link(context).unlink(missing_ok=True)


KUBECONFIG = Goal(
    name="kubeconfig",
    doc="write the kubeconfig: where the API server is, and who we are",
    holds=_is_written,
    make=_write,
    undo=_remove,
    needs=("pki",),
)

PARTS = [KUBECONFIG]
