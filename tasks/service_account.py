"""The token of the ServiceAccount `default`, which every Pod gets, and without which no Pod is created.

The walk-through lists three ways past the missing token, and service_account= chooses one:

- `disabled`: Pods get no ServiceAccount (the admission plugin of the API server is disabled), and so need no token;
- `no-mount`: the ServiceAccount is configured not to mount its token, and so Pods do not wait for it;
- `keys`: properly, with a key pair. Up to 1.20 the controller manager has the private key, signs a token for each
  ServiceAccount and stores it in a Secret; the API server has the public key, and verifies the tokens. Since 1.21 the
  API server also signs them, a token for each Pod; Pods then wait for the ConfigMap with the CA, which the controller
  manager creates.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.probe import ask_api, wait_or_fail
from .core.progress import Progress
from .core.result import Result

_SECRETS = "/api/v1/namespaces/default/secrets"
_CA = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"
_REPLICA_SETS = "/apis/apps/v1/namespaces/default/replicasets"
ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"


def _ask(context: Context) -> tuple[Result, list[str]]:
    """Return whether there is a token, signed with the current key, and the Secrets whose token has another signature.

    Some of the Secrets that the ServiceAccount names may not exist any more: a restarted controller manager does not
    know them, and adds others. One that cannot be read now is not one of another key: Pods may use it.
    """
    names: list[str] = []
    foreign: list[str] = []

    def has_one(account: Any) -> Result:
        names.extend(secret["name"] for secret in account.get("secrets", []))
        if account.get("automountServiceAccountToken") is False:
            return Result(False, "the ServiceAccount default has automountServiceAccountToken: false")
        return Result(bool(names), "the ServiceAccount default has no token yet")

    def is_of_our_key(secret: Any) -> Result:
        if "token" not in secret.get("data", {}):
            return Result(False, f"the Secret {name} has no token yet")
        if _key_of(secret) != key_id((context.pki / "sa.pub").read_text("utf-8")):
            foreign.append(name)
            return Result(False, f"the token in the Secret {name} was signed with another key")
        return Result(True, f"the token is in the Secret {name}")

    result = ask_api(context, ACCOUNT, has_one)
    for name in names if result else ():
        result = ask_api(context, f"{_SECRETS}/{name}", is_of_our_key)
        if result:
            break
    return result, foreign


def key_id(public_key: str) -> str:
    """Return the name that Kubernetes gives a key in the tokens that it signs with it; `public_key` is in PEM.

    See keyIDFromPublicKey in pkg/serviceaccount/jwt.go of Kubernetes.
    """
    der = base64.b64decode("".join(line for line in public_key.splitlines() if "-----" not in line))
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def _key_of(secret: Any) -> str:
    """Return the id of the key that has signed the token in a Secret; empty when there is no such token (RFC 7515)."""
    try:
        header = base64.b64decode(secret["data"]["token"]).decode().partition(".")[0]
        return str(json.loads(base64.urlsafe_b64decode(f"{header}==")).get("kid", ""))
    except (KeyError, ValueError):
        return ""


def _is_given_to_pods(context: Context) -> Result:
    """Return whether each Pod gets a token from the API server, together with the CA."""

    def judge(account: Any) -> Result:
        if account.get("automountServiceAccountToken") is False:
            return Result(False, "the ServiceAccount default has automountServiceAccountToken: false")
        return ask_api(context, _CA, is_ours)

    def is_ours(ca: Any) -> Result:
        if ca["data"].get("ca.crt", "").strip() != (context.pki / "ca.crt").read_text("utf-8").strip():
            return Result(False, "the ConfigMap kube-root-ca.crt does not have the CA of this cluster")
        return Result(True, "Pods get a token from the API server, and the CA from the ConfigMap kube-root-ca.crt")

    return ask_api(context, ACCOUNT, judge)


def _needs_no_token(context: Context) -> Result:
    def judge(account: Any) -> Result:
        if account.get("automountServiceAccountToken") is False:
            return Result(True, "Pods do not mount a token (automountServiceAccountToken: false)")
        return Result(False, "Pods mount the token of the ServiceAccount default, and must not (no-mount)")

    return ask_api(context, ACCOUNT, judge)


def _is_there(context: Context) -> Result:
    return ask_api(context, ACCOUNT, lambda _: Result(True, ""))


def _holds(context: Context) -> Result:
    if context.settings.service_account == "disabled":
        return ask_api(context, "/version", lambda _: Result(True, "the API server gives Pods no ServiceAccount"))
    if context.settings.service_account == "no-mount":
        return _needs_no_token(context)
    return _is_given_to_pods(context) if _projected(context) else _ask(context)[0]


def _projected(context: Context) -> bool:
    return context.release_of("kube-apiserver").projected_tokens


def _make(context: Context, progress: Progress) -> None:
    way, deadline = context.settings.service_account, context.settings.deadline_of("service_account")
    tried = "waiting for the controller manager to create the ServiceAccount default"
    if way != "disabled":
        wait_or_fail(context, _is_there, deadline=deadline, progress=progress, tried=tried, about="service_account")
        mounts = False if way == "no-mount" else None  # null removes the field
        api.send(context, "PATCH", ACCOUNT, {"automountServiceAccountToken": mounts})
    if way == "keys":
        result, foreign = (Result(True, ""), []) if _projected(context) else _ask(context)
        for secret in foreign if not result else ():  # the controller manager creates another
            api.delete(context, f"{_SECRETS}/{secret}")
        tried = "waiting for the controller manager to create a token for the ServiceAccount default"
        wait_or_fail(context, _holds, deadline=deadline, progress=progress, tried=tried, about="service_account")
    _try_again(context)


def _try_again(context: Context) -> None:
    """Delete ReplicaSets that could not create Pods: each failure doubles the time until the next attempt.

    The Deployment gets a new ReplicaSet at once, and for a new ReplicaSet there is no wait.
    """
    failed: list[str] = []

    def judge(sets: Any) -> Result:
        for one in sets["items"]:
            status = {c["type"]: c["status"] for c in one["status"].get("conditions", [])}
            owners = [owner["kind"] for owner in one["metadata"].get("ownerReferences", [])]
            if status.get("ReplicaFailure") == "True" and not one["status"]["replicas"] and "Deployment" in owners:
                failed.append(one["metadata"]["name"])
        return Result(True, "")

    ask_api(context, _REPLICA_SETS, judge)
    for name in failed:
        api.delete(context, f"{_REPLICA_SETS}/{name}")


SERVICE_ACCOUNT = Goal(
    name="service_account",
    doc="get a token for the ServiceAccount default, without which no Pod is created",
    holds=_holds,
    make=_make,
    needs=("controller_manager",),
)

PARTS = [SERVICE_ACCOUNT]
