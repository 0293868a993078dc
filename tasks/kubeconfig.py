"""The kubeconfig files: the address and CA of the API server, and a client certificate for it.

var/dmuc1/kubeconfig is the administrator's. With security=rbac each component has a file of its own; with security=none
every component uses the administrator's.

The walk-through writes `~/.kube/config` with three `kubectl config` commands. The administrator's file also has the CA
and the certificate in it, so that it can be copied anywhere; in the machine `~/.kube/config` is a link to it. With
front_door=on, `~/.kube/config` is the file of the walk-through, for the components and for kubectl in the machine.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from . import choices, front_door
from .choices import secure, wants_dns
from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer
from .core.progress import Progress

COMPONENTS = ("kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")  # the names of their certificates


def text(context: Context, who: str = "admin", namespace: str = "") -> str:
    """Return the text of the kubeconfig file for the user of the certificate `who`.

    Raise FileNotFoundError when the certificates do not exist yet.
    """

    def embedded(name: str) -> str:
        return base64.b64encode((context.pki / name).read_bytes()).decode()

    name, user = context.settings.machine, who.rpartition("/")[2]
    place = f"\n    namespace: {namespace}" if namespace else ""
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


# What the walk-through's `kubectl config` commands write, without the empty fields.
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
    """Return the administrator's kubeconfig file, which any kubectl on the host can use."""
    return context.state / "kubeconfig"


def for_component(context: Context, who: str) -> Path:
    """Return the kubeconfig file of the component `who` (a program's name)."""
    return _in_home(context) if context.settings.uses_front_door else choices.kubeconfig(context, who)


def files(context: Context) -> list[Path]:
    """Return every file that the task writes."""
    return [path(context), *(choices.kubeconfig(context, who) for who in _own(context)), _in_home(context)]


def _own(context: Context) -> Sequence[str]:
    """Return the components that have a file of their own."""
    return (*COMPONENTS, *(["coredns"] if wants_dns(context) else [])) if secure(context) else ()


def _wanted(context: Context) -> dict[Path, str]:
    """Return every file with a certificate in it, with its text. Raise FileNotFoundError, as `text` does."""
    own = {choices.kubeconfig(context, who): text(context, who) for who in _own(context)}
    return {path(context): text(context), **own}


def _in_home(context: Context) -> Path:
    return context.home / ".kube" / "config"


def _is_written(context: Context) -> Answer:
    home = _in_home(context)
    try:
        wrong = [file for file, text in _wanted(context).items() if file.read_text() != text]
        if context.settings.uses_front_door:
            right = not home.is_symlink() and _server(home.read_text()) == front_door.URL
        else:
            right = home.resolve() == path(context).resolve()
    except FileNotFoundError as error:
        return Answer(False, f"{error.filename} does not exist")
    wrong += [] if right else [home]
    return Answer(not wrong, f"{wrong[0]} is not as it must be" if wrong else f"kubectl --kubeconfig {path(context)}")


def _server(text: str) -> str:
    """Return the server of the current context of a kubeconfig file that kubectl may have written."""
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
    if _is_written(context):  # ~/.kube/config is correct; kubectl may have written it
        return
    home = _in_home(context)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.unlink(missing_ok=True)
    if context.settings.uses_front_door:
        home.write_text(_SLIDE)
    else:
        home.symlink_to(Path("../../kubeconfig"))


def write(file: Path, content: str) -> None:
    """Write a file with a key in it, readable only by its owner."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(content)


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
