"""The token of the ServiceAccount `default`: every Pod gets it, and without it none is made.

The walk-through lists three ways out of the missing token; this is its third, done properly: a key pair, of which the
controller manager has the private key, to sign tokens with, and the API server the public one, to check them.
"""

from __future__ import annotations

from typing import Any

from .core.context import Context
from .core.goal import Goal
from .core.probe import Answer, ask_api, wait_or_fail
from .core.progress import Progress


def _has_token(context: Context) -> Answer:
    def judge(account: Any) -> Answer:
        secrets = [secret["name"] for secret in account.get("secrets", [])]
        return Answer(bool(secrets), f"its token is in the Secret {secrets[0]}" if secrets else "it has no token yet")

    return ask_api(context, "/api/v1/namespaces/default/serviceaccounts/default", judge)


def _await_token(context: Context, progress: Progress) -> None:
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
