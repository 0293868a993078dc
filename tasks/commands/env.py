"""`eval "$(scripts/doit env)"`: the cluster for tests and other programs, in the variables that they look at."""

from __future__ import annotations

import shlex
import sys

from doit.exceptions import InvalidCommand

from .. import kubeconfig
from ..api_client import administrators
from ..apiserver import APISERVER
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.settings import Settings
from .base import Command


class Env(Command):
    """`doit env`."""

    doc_purpose = 'print what a shell is to export to use the cluster: eval "$(scripts/doit env)"'
    doc_usage = ""
    doc_description = (
        "KUBECONFIG and KUBEBUILDER_ASSETS, and DMUC_MACHINE where it is not the default one. Without an API server "
        "that is ready it is the word `false`: whoever evaluates it fails, and does not go on with another cluster."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print it; gives 1 when there is no API server that is ready."""
        if arguments:
            raise InvalidCommand("`env` takes no arguments.")
        context = cluster.context
        answer = APISERVER.ready(context)  # with whatever settings it was started
        if not answer:
            print("false")
            machine = f"machine={context.settings.machine} " if _is_said(context) else ""
            seen = f"No API server is ready on {context.machine.name}: {answer.why}."
            error = DmucError("telling how the cluster is used", seen, f"Run: scripts/doit {machine}apiserver")
            print(f"✗ {error}", file=sys.stderr)
            return 1
        file, text = administrators(context), kubeconfig.text(context)
        if not file.exists() or file.read_text("utf-8") != text:  # the API server alone does not need it
            kubeconfig.write(file, text)
        for name, value in variables(context).items():
            print(f"export {name}={shlex.quote(value)}")
        return 0


def variables(context: Context) -> dict[str, str]:
    """Give the variables: kubectl's and every client library's, envtest's, and ours."""
    found = {
        "KUBECONFIG": str(administrators(context)),
        "KUBEBUILDER_ASSETS": str(context.bin),  # has etcd, kube-apiserver and kubectl
    }
    return found | ({"DMUC_MACHINE": context.settings.machine} if _is_said(context) else {})


def _is_said(context: Context) -> bool:
    return context.settings.machine != Settings.machine
