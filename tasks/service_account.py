"""The token of the ServiceAccount `default`: every Pod gets it, and without it none is made.

The walk-through lists three ways out of the missing token, and service_account= chooses one:

- `disabled`: the API server gives Pods no ServiceAccount (its admission plugin is disabled), so none needs a token;
- `no-mount`: the ServiceAccount is told not to mount its token, so its Pods do not wait for it;
- `keys`: done properly, with a key pair. Up to 1.20 the controller manager has the private key, signs a token for each
  ServiceAccount and keeps it in a Secret; the API server has the public one, to check them. Since 1.21 the API server
  signs, too, a token for each Pod; what Pods wait for is the ConfigMap with the CA, from the controller manager.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer, ask_api, wait_or_fail
from .core.progress import Progress

_SECRETS = "/api/v1/namespaces/default/secrets"
_CA = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"
_REPLICA_SETS = "/apis/apps/v1/namespaces/default/replicasets"
ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"


def _ask(context: Context) -> tuple[Answer, list[str]]:
    """Is there a token, signed with the key that there is? Also gives the Secrets that the ServiceAccount names.

    One of these may be no more: the controller manager, new itself, does not know of it, and adds another.
    """
    names: list[str] = []

    def has_one(account: Any) -> Answer:
        names.extend(secret["name"] for secret in account.get("secrets", []))
        if account.get("automountServiceAccountToken") is False:
            return Answer(False, "it has automountServiceAccountToken: false")
        return Answer(bool(names), "it has no token yet")

    def is_of_our_key(secret: Any) -> Answer:
        made = datetime.strptime(secret["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if made.timestamp() < int((context.pki / "sa.key").stat().st_mtime):
            return Answer(False, f"the token in {name} was signed with a key that is no more")
        return Answer(True, f"its token is in the Secret {name}")

    answer = ask_api(context, ACCOUNT, has_one)
    for name in names if answer else ():
        answer = ask_api(context, f"{_SECRETS}/{name}", is_of_our_key)
        if answer:
            break
    return answer, names


def _is_given_to_pods(context: Context) -> Answer:
    """Does each Pod get a token from the API server, and the CA beside it?"""

    def judge(account: Any) -> Answer:
        if account.get("automountServiceAccountToken") is False:
            return Answer(False, "it has automountServiceAccountToken: false")
        return ask_api(context, _CA, is_ours)

    def is_ours(ca: Any) -> Answer:
        if ca["data"].get("ca.crt", "").strip() != (context.pki / "ca.crt").read_text("utf-8").strip():
            return Answer(False, "the ConfigMap kube-root-ca.crt has another CA than ours")
        return Answer(True, "Pods get its token from the API server, and the CA from the ConfigMap kube-root-ca.crt")

    return ask_api(context, ACCOUNT, judge)


def _needs_no_token(context: Context) -> Answer:
    def judge(account: Any) -> Answer:
        if account.get("automountServiceAccountToken") is False:
            return Answer(True, "it does not mount its token (automountServiceAccountToken: false)")
        return Answer(False, "it mounts its token into Pods, and none is wanted")

    return ask_api(context, ACCOUNT, judge)


def _is_there(context: Context) -> Answer:
    return ask_api(context, ACCOUNT, lambda _: Answer(True, ""))


def _holds(context: Context) -> Answer:
    if context.settings.service_account == "disabled":
        return ask_api(context, "/version", lambda _: Answer(True, "the API server gives Pods no ServiceAccount"))
    if context.settings.service_account == "no-mount":
        return _needs_no_token(context)
    return _is_given_to_pods(context) if _projected(context) else _ask(context)[0]


def _projected(context: Context) -> bool:
    return context.release_of("kube-apiserver").projected_tokens


def _make(context: Context, progress: Progress) -> None:
    way, deadline = context.settings.service_account, context.settings.deadline_of("service_account")
    tried = "waiting for the controller manager to make the ServiceAccount default"
    if way != "disabled":
        wait_or_fail(context, _is_there, deadline=deadline, progress=progress, tried=tried)
        mounts = False if way == "no-mount" else None  # null takes the field away
        api.send(context, "PATCH", ACCOUNT, {"automountServiceAccountToken": mounts})
    if way == "keys":
        answer, secrets = (Answer(True, ""), []) if _projected(context) else _ask(context)
        for secret in secrets if not answer else ():  # the controller manager makes another
            api.delete(context, f"{_SECRETS}/{secret}")
        tried = "waiting for the controller manager to make a token for the ServiceAccount default"
        wait_or_fail(context, _holds, deadline=deadline, progress=progress, tried=tried)
    _try_again(context)


def _try_again(context: Context) -> None:
    """Have Pods made now: a ReplicaSet that could make none tries again after a time that doubles with each failure.

    Its Deployment makes it anew at once when it is gone, and a new one does not wait.
    """
    failed: list[str] = []

    def judge(sets: Any) -> Answer:
        for one in sets["items"]:
            status = {c["type"]: c["status"] for c in one["status"].get("conditions", [])}
            owners = [owner["kind"] for owner in one["metadata"].get("ownerReferences", [])]
            if status.get("ReplicaFailure") == "True" and not one["status"]["replicas"] and "Deployment" in owners:
                failed.append(one["metadata"]["name"])
        return Answer(True, "")

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
