"""The kubeconfig: where the API server is, and who we are. It is the administrator's, and so yours.

With security=rbac each component has one of its own; with security=none every component reads this one file.

The slide writes `~/.kube/config` with three `kubectl config` commands. This is the same file with the CA and the
administrator's certificate inside, so that it can be copied anywhere; in the machine `~/.kube/config` is a link to it.
With front_door=on, `~/.kube/config` is the slide's own, for the components, and whoever types in the machine.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path

from . import choices, front_door
from .choices import secure, wants_dns
from .core.context import Context
from .core.files import quoted, write_atomic
from .core.goal import Goal
from .core.probe import Answer
from .core.progress import Progress

COMPONENTS = ("kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")  # as their certificates are called


def text(context: Context, who: str = "admin", namespace: str = "") -> str:
    """The content of the file for whom the certificate `who` names.

    Raises FileNotFoundError when the certificates are not there yet.
    """

    def embedded(name: str) -> str:
        return base64.b64encode((context.pki / name).read_bytes()).decode()

    # In quotes: a machine may be called `no`, and a user `123`.
    name, user = quoted(context.settings.machine), quoted(who.rpartition("/")[2])
    place = f"\n    namespace: {quoted(namespace)}" if namespace else ""
    return f"""\
apiVersion: v1
kind: Config
current-context: {name}
contexts:
- name: {name}
  context:
    cluster: {name}
    user: {user}{place}
clusters:
- name: {name}
  cluster:
    server: {context.server}
    certificate-authority-data: {embedded("ca.crt")}
users:
- name: {user}
  user:
    client-certificate-data: {embedded(f"{who}.crt")}
    client-key-data: {embedded(f"{who}.key")}
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


def for_component(context: Context, who: str) -> Path:
    """The one that the component `who` (its program's name) is given."""
    return _in_home(context) if context.settings.uses_front_door else choices.kubeconfig(context, who)


def files(context: Context) -> list[Path]:
    """Every file that is written."""
    return [path(context), *(choices.kubeconfig(context, who) for who in _own(context)), _in_home(context)]


def _own(context: Context) -> Sequence[str]:
    """Who has one of its own."""
    return (*COMPONENTS, *(["coredns"] if wants_dns(context) else [])) if secure(context) else ()


def _wanted(context: Context) -> dict[Path, str]:
    """Every file that holds a certificate, with its content. Raises FileNotFoundError, as `text` does."""
    own = {choices.kubeconfig(context, who): text(context, who) for who in _own(context)}
    return {path(context): text(context), **own}


def _in_home(context: Context) -> Path:
    return context.home / ".kube" / "config"


def _is_written(context: Context) -> Answer:
    home = _in_home(context)
    try:
        wrong = [file for file, text in _wanted(context).items() if file.read_text("utf-8") != text]
        if context.settings.uses_front_door:
            right = not home.is_symlink() and _server(home.read_text("utf-8")) == front_door.URL
        else:
            right = home.resolve() == path(context).resolve()
    except FileNotFoundError as error:
        return Answer(False, f"{error.filename} is not there")
    wrong += [] if right else [home]
    if wrong:
        return Answer(False, f"{wrong[0]} is not as wanted")
    return Answer(True, shlex.join(["kubectl", "--kubeconfig", str(path(context))]))


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
    for file, content in _wanted(context).items():
        write(file, content)
    if _is_written(context):  # the one at home is as it must be, whoever wrote it
        return
    home = _in_home(context)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if context.settings.uses_front_door:
        write_atomic(home, _SLIDE)  # also in the place of a link
    else:
        home.unlink(missing_ok=True)
        home.symlink_to(Path("../../kubeconfig"))


def write(file: Path, content: str) -> None:
    """Write a file with a key in it: for its owner alone."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(file, content, 0o600)


def _remove(context: Context) -> None:
    for who in (*COMPONENTS, "coredns"):
        (context.state / "kubeconfigs" / who).unlink(missing_ok=True)
    path(context).unlink(missing_ok=True)
    _in_home(context).unlink(missing_ok=True)


KUBECONFIG = Goal(
    name="kubeconfig",
    doc="write the kubeconfig files: the address of the API server, and a client certificate for it",
    holds=_is_written,
    make=_write,
    undo=_remove,
    needs=("pki",),
)

PARTS = [KUBECONFIG]
