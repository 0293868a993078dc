"""The kubeconfig: the address of the API server, and a client certificate. It is the administrator's, and so yours.

With security=rbac each component has one of its own; with security=none every component reads this one file.

The walk-through writes `~/.kube/config` with three `kubectl config` commands. This is the same file with the CA and the
administrator's certificate inside, so that it can be copied anywhere; in the machine `~/.kube/config` is a link to it.
With insecure_port=on, `~/.kube/config` is the walk-through's own: for the components, and for kubectl in the machine.
"""

from __future__ import annotations

import base64
import shlex
from pathlib import Path

from .api_client import INSECURE_URL, administrators, in_home
from .choices import rbac_enabled, wants_dns
from .core.context import Context
from .core.files import quoted, write_atomic
from .core.goal import Goal
from .core.node import Node
from .core.probe import Answer
from .core.progress import Progress

CONTROL_PLANE = ("kube-controller-manager", "kube-scheduler")  # as their certificates are called


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


# What the walk-through's `kubectl config` commands write, without what means nothing.
_WITHOUT_KEYS = f"""\
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
    server: {INSECURE_URL}
"""


def files(context: Context) -> list[Path]:
    """Return every file that is written."""
    return [administrators(context), *_own(context), in_home(context)]


def _own(context: Context) -> dict[Path, str]:
    """Return the kubeconfig of each component that has its own, with the name of the certificate in it."""
    if not rbac_enabled(context):
        return {}
    control_plane = (*CONTROL_PLANE, *(["coredns"] if wants_dns(context) else []))
    own = {context.state / "kubeconfigs" / who: who for who in control_plane}
    for node in context.nodes:
        own |= {node.state / "kubeconfigs" / who: certificate for who, certificate in _of_node(node).items()}
    return own


def _of_node(node: Node) -> dict[str, str]:
    return {"kube-proxy": "kube-proxy", "kubelet": f"{node.prefix}kubelet"}


def _wanted(context: Context) -> dict[Path, str]:
    """Return every file that holds a certificate, with its content. Raises FileNotFoundError, as `text` does."""
    own = {file: text(context, certificate) for file, certificate in _own(context).items()}
    return {administrators(context): text(context), **own}


def _is_written(context: Context) -> Answer:
    home = in_home(context)
    try:
        wrong = [file for file, text in _wanted(context).items() if file.read_text("utf-8") != text]
        if context.settings.uses_insecure_port:
            right = not home.is_symlink() and _server(home.read_text("utf-8")) == INSECURE_URL
        else:
            right = home.resolve() == administrators(context).resolve()
    except FileNotFoundError as error:
        return Answer(False, f"{error.filename} is not there")
    wrong += [] if right else [home]
    if wrong:
        return Answer(False, f"{wrong[0]} is not as wanted")
    return Answer(True, shlex.join(["kubectl", "--kubeconfig", str(administrators(context))]))


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
    home = in_home(context)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if context.settings.uses_insecure_port:
        write_atomic(home, _WITHOUT_KEYS)  # also in the place of a link
    else:
        home.unlink(missing_ok=True)
        home.symlink_to(Path("../../kubeconfig"))


def write(file: Path, content: str) -> None:
    """Write a file with a key in it: for its owner alone."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(file, content, 0o600)


def _remove(context: Context) -> None:
    for node in context.nodes:
        for who in (*CONTROL_PLANE, "coredns", *_of_node(node)):
            (node.state / "kubeconfigs" / who).unlink(missing_ok=True)
    administrators(context).unlink(missing_ok=True)
    in_home(context).unlink(missing_ok=True)


KUBECONFIG = Goal(
    name="kubeconfig",
    doc="write the kubeconfig files: the address of the API server, and a client certificate for it",
    holds=_is_written,
    make=_write,
    undo=_remove,
    needs=("pki",),
)

PARTS = [KUBECONFIG]
