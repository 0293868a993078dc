"""The token of the ServiceAccount `default`: every Pod gets it, and without it none is made.

The walk-through lists three ways out of the missing token; this is its third, done properly: a key pair, of which the
controller manager has the private key, to sign tokens with, and the API server the public one, to check them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from .core import api
from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer, ask_api, wait_or_fail
from .core.progress import Progress


def _ask(context: Context) -> tuple[Answer, str]:
    """Is there a token, signed with the key that there is? Also gives the name of its Secret, if there is one."""
    names: list[str] = []

    def has_one(account: Any) -> Answer:
        names.extend(secret["name"] for secret in account.get("secrets", []))
        return Answer(bool(names), "it has no token yet")

    def is_of_our_key(secret: Any) -> Answer:
        made = datetime.strptime(secret["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if made.timestamp() < int((context.pki / "sa.key").stat().st_mtime):
            return Answer(False, f"the token in {names[0]} was signed with a key that is no more")
        return Answer(True, f"its token is in the Secret {names[0]}")

    answer = ask_api(context, "/api/v1/namespaces/default/serviceaccounts/default", has_one)
    if answer:
        answer = ask_api(context, f"/api/v1/namespaces/default/secrets/{names[0]}", is_of_our_key)
    return answer, names[0] if names else ""


def _has_token(context: Context) -> Answer:
    return _ask(context)[0]


def _await_token(context: Context, progress: Progress) -> None:
    answer, secret = _ask(context)
    if secret and not answer:  # the controller manager makes another
        api.delete(context, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}})
    deadline = context.settings.deadline_of("service_account")
    tried = "waiting for the controller manager to make a token for the ServiceAccount default"
    wait_or_fail(context, _has_token, deadline=deadline, progress=progress, tried=tried)


SERVICE_ACCOUNT = Goal(
    name="service_account",
    doc="have a token for the ServiceAccount default, without which no Pod is made",
    holds=_has_token,
    make=_await_token,
    needs=("controller_manager",),
)

PARTS = [SERVICE_ACCOUNT]
