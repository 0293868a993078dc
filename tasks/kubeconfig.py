"""The kubeconfig: where the API server is, and who we are. Every component reads this one file, and so can you.

The slide writes `~/.kube/config` with three `kubectl config` commands. This is the same file with the CA and the
administrator's certificate inside, so that it can be copied anywhere; in the machine `~/.kube/config` is a link to it.
With front_door=on, `~/.kube/config` is the slide's own, for the components, and whoever types in the machine.
"""

from __future__ import annotations

import base64
from pathlib import Path

from . import front_door
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
    server: {context.server}
    certificate-authority-data: {embedded("ca.crt")}
users:
- name: admin
  user:
    client-certificate-data: {embedded("admin.crt")}
    client-key-data: {embedded("admin.key")}
"""


# What the slide's `kubectl config` commands write, without what means nothing.
_SLIDE = f"""\
apiVersion: v1
kind: Config
current-context: localhost
contexts:
- name: localhost
  context:
    cluster: localhost
clusters:
- name: localhost
  cluster:
    server: {front_door.URL}
"""


def path(context: Context) -> Path:
    """Where it is: any kubectl on the host works with it, too."""
    return context.state / "kubeconfig"


def for_components(context: Context) -> Path:
    """The one that the components are given."""
    return _in_home(context) if context.settings.uses_front_door else path(context)


def _in_home(context: Context) -> Path:
    return context.home / ".kube" / "config"


def _is_written(context: Context) -> Answer:
    file = path(context)
    try:
        same = file.read_text() == text(context)
        if same and context.settings.uses_front_door:
            file = _in_home(context)
            same = not file.is_symlink() and _server(file.read_text()) == front_door.URL
        elif same:
            same = _in_home(context).resolve() == file.resolve()
    except FileNotFoundError as error:
        return Answer(False, f"{error.filename} is not there")
    return Answer(same, f"kubectl --kubeconfig {path(context)}" if same else f"{file} is not as wanted")


def _server(text: str) -> str:
    """The server of the current context, whoever wrote the file and in which order."""
    import yaml

    try:
        config = yaml.safe_load(text)
        contexts = {c["name"]: c["context"] for c in config["contexts"]}
        clusters = {c["name"]: c["cluster"] for c in config["clusters"]}
        return str(clusters[contexts[config["current-context"]]["cluster"]]["server"])
    except (yaml.YAMLError, TypeError, KeyError):
        return ""


def _write(context: Context, progress: Progress) -> None:
    path(context).touch(mode=0o600)
    path(context).write_text(text(context))
    if _is_written(context):  # the one at home is as it must be, whoever wrote it
        return
    home = _in_home(context)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.unlink(missing_ok=True)
    if context.settings.uses_front_door:
        home.write_text(_SLIDE)
    else:
        home.symlink_to(Path("../../kubeconfig"))


def _remove(context: Context) -> None:
    path(context).unlink(missing_ok=True)
    _in_home(context).unlink(missing_ok=True)


KUBECONFIG = Goal(
    name="kubeconfig",
    doc="write the kubeconfig: where the API server is, and who we are",
    holds=_is_written,
    make=_write,
    undo=_remove,
    needs=("pki",),
)

PARTS = [KUBECONFIG]
