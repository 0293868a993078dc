"""Each kubeconfig is its reader's own, and all are there before any is read."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import api_client, kubeconfig, pki
from tasks.api_client import administrators
from tasks.core.context import Context
from tasks.core.progress import Silent
from tests.unit.support import a_context

KUBECONFIG = kubeconfig.KUBECONFIG

COMPONENTS = ("kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")


def made(directory: Path, **settings: Any) -> Context:
    context = a_context(directory, **settings)
    context.home.mkdir()
    pki.PKI.make(context, Silent())
    KUBECONFIG.make(context, Silent())
    return context


def holder(context: Context, file: Path) -> str:
    """Whose certificate is in it: the name of the one that is the same; with its key and the CA."""
    config = yaml.safe_load(file.read_text())
    (user,), (cluster,) = config["users"], config["clusters"]
    inside = {
        name: base64.b64decode(text) for name, text in {**user["user"], **cluster["cluster"]}.items() if "-data" in name
    }
    assert inside["certificate-authority-data"] == (context.pki / "ca.crt").read_bytes()
    assert config["contexts"][0]["context"]["user"] == user["name"]
    (name,) = (
        path.stem for path in context.pki.glob("*.crt") if path.read_bytes() == inside["client-certificate-data"]
    )
    assert inside["client-key-data"] == (context.pki / f"{name}.key").read_bytes()
    return name


def test_with_rbac_each_component_has_its_own_and_the_first_is_the_administrators(tmp_path: Path) -> None:
    context = made(tmp_path)
    assert holder(context, administrators(context)) == "admin"
    for who in COMPONENTS:
        file = api_client.kubeconfig(context, who)
        assert holder(context, file) == who
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KUBECONFIG.holds(context)


def test_without_all_are_the_administrator(tmp_path: Path) -> None:
    context = made(tmp_path, security="none")
    assert {api_client.kubeconfig(context, who) for who in COMPONENTS} == {administrators(context)}
    assert not (context.state / "kubeconfigs").exists()


@pytest.mark.parametrize("who", COMPONENTS)
def test_a_renewed_certificate_changes_its_holders_file_and_no_other(tmp_path: Path, who: str) -> None:
    context = made(tmp_path)
    before = {file: file.read_bytes() for file in kubeconfig.files(context)}
    (context.pki / f"{who}.crt").unlink()
    assert not KUBECONFIG.holds(context)
    pki.PKI.make(context, Silent())
    assert KUBECONFIG.holds(context).why == f"{api_client.kubeconfig(context, who)} is not as it must be"
    KUBECONFIG.make(context, Silent())
    assert KUBECONFIG.holds(context)
    assert [file for file, text in before.items() if file.read_bytes() != text] == [api_client.kubeconfig(context, who)]


def test_taking_them_back_leaves_none_of_either_way(tmp_path: Path) -> None:
    context = made(tmp_path)
    assert KUBECONFIG.undo is not None
    KUBECONFIG.undo(replace(context, settings=replace(context.settings, security="none")))
    assert not any(file.exists() or file.is_symlink() for file in kubeconfig.files(context))
