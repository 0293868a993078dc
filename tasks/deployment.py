"""The Deployment `web`: creates the same object as `kubectl create deployment web --image=nginx`."""

from __future__ import annotations

from typing import Any

from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.probe import ask_api
from .core.progress import Progress
from .core.result import Result

NAME = "web"
IMAGE = "nginx"
PATH = f"/apis/apps/v1/namespaces/default/deployments/{NAME}"

# Exactly the object that kubectl creates.
MANIFEST = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": NAME, "labels": {"app": NAME}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": NAME}},
        "template": {
            "metadata": {"labels": {"app": NAME}},
            "spec": {"containers": [{"name": IMAGE, "image": IMAGE}]},
        },
    },
}


def _exists(context: Context) -> Result:
    def judge(deployment: Any) -> Result:
        ready = deployment["status"].get("readyReplicas", 0)
        return Result(True, f"deployment.apps/{NAME} {ready}/{deployment['spec']['replicas']}")

    return ask_api(context, PATH, judge)


def _create(context: Context, progress: Progress) -> None:
    progress.note(f"kubectl create deployment {NAME} --image={IMAGE}")
    api.create(context, MANIFEST)


def _delete(context: Context) -> None:
    api.delete(context, PATH)


DEPLOYMENT = Goal(
    name="deployment",
    doc="create the Deployment web: kubectl create deployment web --image=nginx",
    holds=_exists,
    make=_create,
    undo=_delete,
    needs=("apiserver", "kubeconfig"),
    # A Pod that is created before there is a token or a node is delayed by a back-off of 1 to 10 s.
    after=("schedulable", "service_account"),
)

PARTS = [DEPLOYMENT]
