"""`doit user name=ada namespace=ada`: create a user who may deploy in one namespace, and nowhere else.

Kubernetes has no object for a user: the common name of a client certificate is the user's name. The permissions come
from a RoleBinding to the ClusterRole `edit`, which every cluster with RBAC has:
https://kubernetes.io/docs/reference/access-authn-authz/rbac/#user-facing-roles .
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from doit import get_var
from doit.exceptions import InvalidCommand

from .. import kubeconfig, pki
from ..apiserver import APISERVER
from ..choices import rbac_enabled
from ..core import api, caller, certificates
from ..core.api import RBAC_GROUP
from ..core.certificates import Certificate
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.lock import only_one
from .base import Command

WORDS = {
    "user": ("name", "namespace"),
    "load": ("name",),
    "image": ("command",),
}  # commands' own NAME=VALUE words, which are no settings
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")  # RFC 1123, as for a namespace


class User(Command):
    """`doit user name=NAME [namespace=NAMESPACE]`."""

    doc_purpose = "create a user who may deploy in one namespace and nowhere else"
    doc_usage = "name=NAME [namespace=NAMESPACE]"
    doc_description = (
        "Creates the namespace, key, certificate, RoleBinding and kubeconfig. The default namespace is NAME."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Create the user and print how to use the kubeconfig. Raise DmucError."""
        if arguments:
            raise InvalidCommand("`user` takes name=NAME and namespace=NAMESPACE.")
        name = get_var("name", "")
        namespace = get_var("namespace", name)
        with only_one(cluster.context):
            file = make(cluster.context, name, namespace)
        command = shlex.join([str(cluster.context.bin / "kubectl"), "--kubeconfig", str(file)])
        print(f"{name} may deploy in the namespace {namespace}, with this kubeconfig:")
        print(f"  {command} create deployment web --image=nginx")
        print(f"List the permissions: {command} auth can-i --list")
        return 0


def make(context: Context, name: str, namespace: str) -> Path:
    """Create the user, and return her kubeconfig; objects and files that are valid are kept.

    Raise DmucError for a bad name, without RBAC, and when the API server is not ready.
    """
    _refuse(context, name, namespace)
    api.create(context, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    binding = {
        "apiVersion": f"{RBAC_GROUP}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"edit-{name}", "namespace": namespace},
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": RBAC_GROUP, "kind": "User", "name": name}],
    }
    api.create(context, binding)
    certificate = Certificate(f"users/{name}", "ca", name, client=True)
    if certificates.faults(context.pki, [certificate]):
        certificates.make(context.pki, [certificate])
    file = context.state / "users" / name
    kubeconfig.write(file, kubeconfig.text(context, certificate.name, namespace))
    caller.let_in(file.parent, os.environ)
    caller.hand_over(file, os.environ)
    return file


def _refuse(context: Context, name: str, namespace: str) -> None:
    tried, usage = f"creating the user {name or '(no name)'}", "scripts/doit user name=ada namespace=ada"
    for word, value in (("name", name), ("namespace", namespace)):
        if not _LABEL.match(value):
            rule = "Use up to 63 lower-case letters, digits and dashes, without a dash at either end."
            raise DmucError(tried, f"{word}={value}: not a valid name. {rule}", f"For example: {usage}")
    if namespace.startswith("kube-"):
        seen = f"namespace={namespace}: a user with the role `edit` there can read the tokens of the cluster itself."
        raise DmucError(tried, seen, f"For example: {usage}")
    if not rbac_enabled(context):
        seen = "security=none: every client with a certificate may do everything, and so could this user."
        raise DmucError(tried, seen, "Use security=rbac, and insecure_port=off: scripts/doit security=rbac")
    why = certificates.faults(context.pki, pki.everything(context)).get("ca") if context.pki.exists() else ""
    if why:
        # The running cluster would not know a user whose certificate a new CA has signed.
        raise DmucError(tried, f"The CA of the cluster must be renewed first: {why}", "Run: scripts/doit")
    ready = APISERVER.is_ready(context)
    if not ready:
        raise DmucError(tried, f"The API server is not ready: {ready.why}", "Run: scripts/doit")
