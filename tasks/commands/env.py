"""`doit env`: print the environment variables with which tests and other programs find the cluster."""

from __future__ import annotations

import os
import shlex
import sys

from doit.exceptions import InvalidCommand

from .. import kubeconfig
from ..api_client import administrators
from ..apiserver import APISERVER
from ..core import caller
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.errors import DmucError
from ..core.settings import Settings
from .base import Command


class Env(Command):
    """`doit env`."""

    doc_purpose = 'print the variables with which programs find the cluster: eval "$(scripts/doit env)"'
    doc_usage = ""
    doc_description = (
        "Exports KUBECONFIG, KUBEBUILDER_ASSETS and NO_PROXY, and DMUC_MACHINE if the machine is not the default one. "
        "If no API server is ready, it prints `false` instead: then `eval` fails, and no program uses another cluster "
        "by mistake."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print the variables; return 1 when no API server is ready."""
        if arguments:
            raise InvalidCommand("`env` takes no arguments.")
        context = cluster.context
        result = APISERVER.ready(context)  # with whatever settings it was started
        if not result:
            print("false")
            seen = f"No API server is ready on {context.machine.name}: {result.why}."
            error = DmucError("printing the environment variables", seen, "Run: scripts/doit apiserver")
            print(f"✗ {error}", file=sys.stderr)
            return 1
        file, text = administrators(context), kubeconfig.text(context)
        if not file.exists() or file.read_bytes() != text.encode("utf-8"):  # the API server alone does not need it
            kubeconfig.write(file, text)
        for name, value in variables(context).items():
            print(f"export {name}={shlex.quote(value)}")
        return 0


def variables(context: Context) -> dict[str, str]:
    """Return the variables: for kubectl and client libraries, for envtest, and for dmuc."""
    found = {
        "KUBECONFIG": str(administrators(context)),
        "KUBEBUILDER_ASSETS": str(context.bin),  # has etcd, kube-apiserver and kubectl
    }
    settings = context.settings
    ranges = (
        () if settings.on_host else (settings.address, settings.link_range, settings.service_range, settings.pod_range)
    )
    # Clients of the cluster would otherwise send their requests to the caller's proxy, if there is one.
    found |= dict.fromkeys(("NO_PROXY", "no_proxy"), caller.no_proxy(os.environ, "localhost", "127.0.0.1", *ranges))
    return found | ({"DMUC_MACHINE": context.settings.machine} if _is_said(context) else {})


def _is_said(context: Context) -> bool:
    return context.settings.machine != Settings.machine
