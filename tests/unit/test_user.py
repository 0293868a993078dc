"""`doit user`: what is refused before anything is made. What is made is tested on a real cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks import pki
from tasks.commands import user
from tasks.core import certificates
from tasks.core.errors import DmucError
from tests.unit.support import a_context


def refused(tmp_path: Path, name: str, namespace: str, **settings: Any) -> DmucError:
    context = a_context(tmp_path, **settings)
    with pytest.raises(DmucError) as error:
        user.make(context, name, namespace)
    assert not context.pki.exists() and not (context.state / "users").exists()
    return error.value


@pytest.mark.parametrize("name", ["", "Ada", "ada lovelace", "system:masters", "-ada", "ada.", "../ada", "a" * 64, "ä"])
def test_a_name_that_is_none_is_said(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, name, "ada").seen.startswith(f"name={name}: not a valid name.")
    assert refused(tmp_path, "ada", name).seen.startswith(f"namespace={name}: not a valid name.")


def test_the_clusters_own_namespaces_are_not_given_away(tmp_path: Path) -> None:
    assert "the tokens of the cluster itself" in refused(tmp_path, "ada", "kube-system").seen


@pytest.mark.parametrize("settings", [{"security": "none"}, {"insecure_port": "on"}, {"kubernetes": "1.19"}])
def test_without_rbac_it_says_why_it_cannot(tmp_path: Path, settings: dict[str, str]) -> None:
    error = refused(tmp_path, "ada", "ada", **settings)
    assert error.seen == "security=none: every client with a certificate may do everything, and so could this user."
    assert "security=rbac" in error.do


def test_without_an_api_server_it_says_what_to_do(tmp_path: Path) -> None:
    error = refused(tmp_path, "ada", "ada")
    assert (error.seen, error.do) == ("The API server is not ready: not started", "Run: scripts/doit")


def test_a_user_is_not_signed_by_another_ca_than_the_clusters(tmp_path: Path) -> None:
    context = a_context(tmp_path)
    certificates.make(context.pki, pki.everything(context))
    (context.pki / "ca.key").write_text("junk")
    before = {file: file.read_bytes() for file in context.pki.iterdir() if file.is_file()}
    with pytest.raises(DmucError, match="The CA of the cluster must be renewed first") as error:
        user.make(context, "ada", "ada")
    assert error.value.do == "Run: scripts/doit"
    assert {file: file.read_bytes() for file in context.pki.iterdir() if file.is_file()} == before
