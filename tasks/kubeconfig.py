"""The kubeconfig files: the address and CA of the API server, and a client certificate for it.

var/dmuc1/kubeconfig is the administrator's. With security=rbac each component has a file of its own; with security=none
every component uses the administrator's.

The walk-through writes `~/.kube/config` with three `kubectl config` commands. The administrator's file also has the CA
and the certificate in it, so that it can be copied anywhere; in the machine `~/.kube/config` is a link to it. With
insecure_port=on, `~/.kube/config` is the file of the walk-through, for the components and for kubectl in the machine.
"""

from __future__ import annotations

import base64
import os
import shlex
from pathlib import Path

from .api_client import INSECURE_URL, administrators, in_home
from .choices import dns_enabled, rbac_enabled
from .core import caller
from .core.context import Context
from .core.files import quoted, write_atomic
from .core.goal import Goal
from .core.node import Node
from .core.progress import Progress
from .core.result import Result
from .service_proxy import proxy

CONTROL_PLANE = ("kube-controller-manager", "kube-scheduler")  # the names of their certificates


def text(context: Context, who: str = "admin", namespace: str = "") -> str:
    """Return the text of the kubeconfig file for the user of the certificate `who`.

    Raise FileNotFoundError when the certificates do not exist yet.
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


# What the walk-through's `kubectl config` commands write, without the empty fields.
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
    control_plane = (*CONTROL_PLANE, *(["coredns"] if dns_enabled(context) else []))
    own = {context.state / "kubeconfigs" / who: who for who in control_plane}
    for node in context.nodes:
        own |= {node.state / "kubeconfigs" / who: certificate for who, certificate in _of_node(context, node).items()}
    return own


def _of_node(context: Context, node: Node) -> dict[str, str]:
    """Return the components on a node, each with the name of its certificate."""
    identity = proxy(context).IDENTITY
    return {identity: identity, "kubelet": f"{node.prefix}kubelet"}


def _wanted(context: Context) -> dict[Path, str]:
    """Return every file that holds a certificate, with its content. Raises FileNotFoundError, as `text` does."""
    own = {file: text(context, certificate) for file, certificate in _own(context).items()}
    return {administrators(context): text(context), **own}


def _is_written(context: Context) -> Result:
    home = in_home(context)
    try:
        wrong = [file for file, text in _wanted(context).items() if file.read_text("utf-8") != text]
        if context.settings.uses_insecure_port:
            right = not home.is_symlink() and _server(home.read_text("utf-8")) == INSECURE_URL
        else:
            right = home.resolve() == administrators(context).resolve()
    except FileNotFoundError as error:
        return Result(False, f"{error.filename} does not exist")
    wrong += [] if right else [home]
    if wrong:
        return Result(False, f"{wrong[0]} is not as it must be")
    return Result(True, shlex.join(["kubectl", "--kubeconfig", str(administrators(context))]))


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
    caller.hand_over(administrators(context), os.environ)
    if _is_written(context):  # ~/.kube/config is correct; kubectl may have written it
        return
    home = in_home(context)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if context.settings.uses_insecure_port:
        write_atomic(home, _WITHOUT_KEYS)  # also in the place of a link
    else:
        home.unlink(missing_ok=True)
        home.symlink_to(Path("../../kubeconfig"))


def write(file: Path, content: str) -> None:
    """Write a file with a key in it, readable only by its owner."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(file, content, 0o600)


def _remove(context: Context) -> None:
    for node in context.nodes:
        for who in (*CONTROL_PLANE, "coredns", *_of_node(context, node)):
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
